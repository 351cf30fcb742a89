"""A model file without bundle.json, served as the guide's words have it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from server_process import ROOT

GUIDE = (ROOT / "docs" / "guide.md").read_text("utf-8")
FILES = ("model.tflite", "labels.txt")


def guide_block() -> tuple[str, list[str], list[str]]:
    """The folder that the guide shows, the names of its files, and the command as words."""
    found = re.search(r"\$ ls (\S+)\n((?:[\w.]+\n)+)\$ (python -m server check .*)\n", GUIDE)
    assert found is not None
    return found[1], found[2].split(), shlex.split(found[3])


def run_guide_command(
    tmp_path: Path, shipped: Path, *files: str
) -> subprocess.CompletedProcess[str]:
    """The guide's command, run beside its folder, which holds `files` of the shipped bundle."""
    folder, _, words = guide_block()
    (tmp_path / folder).mkdir(parents=True)
    for name in files:
        shutil.copy(shipped / name, tmp_path / folder / name)
    env = {k: v for k, v in os.environ.items() if not k.startswith("LINESIDE_")}
    return subprocess.run(
        [sys.executable, *words[1:]],
        cwd=tmp_path,
        env=env | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_bare_model_command_works_as_written(tmp_path: Path, shipped: Path) -> None:
    _, names, _ = guide_block()
    assert sorted(names) == sorted(FILES)
    ended = run_guide_command(tmp_path, shipped, *names)
    assert ended.returncode == 0, ended.stderr
    assert "flowers/1 (default): float32, 6 labels" in ended.stdout


def test_bare_model_without_labels_names_them(tmp_path: Path, shipped: Path) -> None:
    ended = run_guide_command(tmp_path, shipped, "model.tflite")
    assert ended.returncode == 1
    assert "plain/flowers/1 has no labels.txt, which names the model's 6 outputs" in ended.stderr


def test_bare_model_dtypes_stand_in_the_guide() -> None:
    paragraph = GUIDE.split("A bare `models/NAME/VERSION/model.tflite`")[1].split("```")[0]
    for dtype in ("float32", "float16", "uint8", "int8"):
        assert f"`{dtype}`" in paragraph


def test_bare_model_with_a_label_twice(tmp_path: Path, shipped: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "labels.txt").write_text("a\nb\nc\nd\ne\na\n")
    shutil.copy(shipped / "model.tflite", tmp_path / "made")
    ended = run_guide_command(tmp_path, tmp_path / "made", *FILES)
    assert ended.returncode == 1
    assert "has the label a twice, in lines 1 and 6" in ended.stderr
