"""python -m server bench: a short run on the shipped bundle, and what it proposes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from live import ROOT

from server import config_reading
from server.benchmark import best_of, propose
from server.benchmark_steps import Throughput


def test_it_measures_writes_and_proposes_usable_settings(shipped: Path, tmp_path: Path) -> None:
    shutil.copytree(shipped, tmp_path / "parts" / "1")
    done = subprocess.run(
        [sys.executable, "-m", "server", "bench", "--models", str(tmp_path), "--seconds", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "parts").glob("bench-*.json")
    assert f"wrote {file}" in done.stdout
    figures = json.loads(file.read_text())
    assert set(figures["stages"]) == {"sample", "720p", "1080p"}
    assert all(
        stage["median"] > 0 for stages in figures["stages"].values() for stage in stages.values()
    )
    assert all(each["fps"] > 0 for each in figures["throughput"])
    assert figures["served"]["fps"] > 0
    lines = done.stdout.splitlines()[-len(figures["proposed"]) :]
    settings = tmp_path / "lineside.toml"
    settings.write_text("\n".join(lines) + "\n")
    loaded = config_reading.load({}, file=settings)
    assert loaded.interpreters == figures["proposed"]["interpreters"]
    assert loaded.max_wait_ms == figures["proposed"]["max_wait_ms"]


def test_a_bare_model_is_measured_by_the_recipe_of_the_settings(
    shipped: Path, tmp_path: Path
) -> None:
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


def test_the_fewest_that_are_as_fast_are_proposed() -> None:
    measured = [Throughput(1, 1, 50), Throughput(2, 1, 98), Throughput(1, 2, 80)]
    assert best_of([*measured, Throughput(3, 1, 100)]) == Throughput(2, 1, 98)
    assert propose(Throughput(2, 1, 100)) == {
        "interpreters": 2,
        "threads_per_interpreter": 1,
        "frames_at_once": 2,
        "max_wait_ms": 160.0,
    }
