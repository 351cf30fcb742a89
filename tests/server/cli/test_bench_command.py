"""python -m server bench: a short run on the shipped bundle, and what it proposes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from server_process import ROOT

from server.cli.bench import Throughput, best_of, propose
from server.config import load as config_reading
from server.config.load import merge_settings, write_settings
from server.errors import SettingsError


def test_it_measures_writes_and_proposes_usable_settings(shipped: Path, tmp_path: Path) -> None:
    shutil.copytree(shipped, tmp_path / "parts" / "1")
    settings = tmp_path / "lineside.toml"
    settings.write_text("# our line\nport = 8123  # not 8080\ninterpreters = 9\n")
    command = [
        sys.executable,
        "-m",
        "server",
        "bench",
        "--models",
        str(tmp_path),
        "--seconds",
        "0.2",
    ]
    done = subprocess.run(
        [*command, "--config", str(settings), "--write", "--export", str(tmp_path / "st4.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "parts").glob("bench-*.json")
    assert f"wrote {file}" in done.stdout
    figures = json.loads(file.read_text())
    assert json.loads((tmp_path / "st4.json").read_text()) == figures
    assert set(figures["stages"]) == {"sample", "720p", "1080p"}
    assert all(
        stage["median"] > 0 for stages in figures["stages"].values() for stage in stages.values()
    )
    assert all(each["fps"] > 0 for each in figures["throughput"])
    assert figures["served"]["fps"] > 0
    assert f"wrote the proposed settings into {settings}" in done.stdout
    loaded = config_reading.load({}, file=settings)
    assert loaded.port == 8123
    assert settings.read_text().startswith("# our line\nport = 8123  # not 8080\n")
    assert loaded.interpreters == figures["proposed"]["interpreters"]
    assert loaded.max_wait_ms == figures["proposed"]["max_wait_ms"]


def test_bare_model_is_measured_by_the_settings_recipe(shipped: Path, tmp_path: Path) -> None:
    """A bare model is measured by the recipe of the settings."""
    folder = tmp_path / "parts" / "1"
    shutil.copytree(shipped, folder)
    recipe = json.loads((folder / "bundle.json").read_text())["recipe"]
    (folder / "bundle.json").unlink()
    shutil.rmtree(folder / "golden")
    done = subprocess.run(
        [sys.executable, "-m", "server", "bench", "--models", str(tmp_path), "--seconds", "0.1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "LINESIDE_RECIPE": json.dumps(recipe)},
    )
    assert done.returncode == 0, done.stderr
    assert "through HTTP: " in done.stdout


def test_a_model_of_numbers_has_no_frame_to_time(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models" / "iris", tmp_path / "iris")
    done = subprocess.run(
        [sys.executable, "-m", "server", "bench", "--models", str(tmp_path), "--seconds", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "takes numbers, not images" in done.stderr


@pytest.mark.parametrize(
    ("text", "merged"),
    [
        ("", "a = 2\nb = 1.5\n"),
        ("a = 1", "a = 2\nb = 1.5\n"),
        ("  a=1 # why\n\n# end\n", "a = 2 # why\n\n# end\nb = 1.5\n"),
        ("c = 1\n[t]\na = 7\n", "c = 1\na = 2\nb = 1.5\n\n[t]\na = 7\n"),
        ("[t]\na = 7\n", "a = 2\nb = 1.5\n\n[t]\na = 7\n"),
        ("ba = 1\nab = 1\n", "ba = 1\nab = 1\na = 2\nb = 1.5\n"),
    ],
)
def test_merged_settings_keep_other_lines(text: str, merged: str) -> None:
    assert merge_settings(text, {"a": 2, "b": 1.5}) == merged


@pytest.mark.parametrize("text", ["a = ", 's = """\na = 1\n"""\n'])
def test_merge_refuses_what_it_can_not_replace(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        merge_settings(text, {"a": 2})


def test_written_settings_keep_the_file_mode(tmp_path: Path) -> None:
    file = tmp_path / "lineside.toml"
    file.write_text("port = 1\n")
    file.chmod(0o640)
    write_settings(file, {"port": 2})
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("port = 2\n", 0o640)
    with pytest.raises(SettingsError, match=r"gone/lineside.toml can't be changed"):
        write_settings(tmp_path / "gone" / "lineside.toml", {"port": 2})


def test_the_fewest_that_are_as_fast_are_proposed() -> None:
    measured = [Throughput(1, 1, 50), Throughput(2, 1, 98), Throughput(1, 2, 80)]
    assert best_of([*measured, Throughput(3, 1, 100)]) == Throughput(2, 1, 98)
    assert propose(Throughput(2, 1, 100)) == {
        "interpreters": 2,
        "threads_per_interpreter": 1,
        "frames_at_once": 2,
        "max_wait_ms": 160.0,
    }
