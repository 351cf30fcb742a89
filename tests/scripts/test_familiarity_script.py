"""The measurement of familiarity, on the shipped bundle and few frames."""

import subprocess
import sys
from pathlib import Path

import familiarity
import numpy as np
import pytest
from server_process import ROOT, SHARED

from convert.bundle_writer import load
from server.recognition.engines.litert import Interpreter


def test_parts_bundle_passes_no_foreign_frame(frames: Path, tmp_path: Path) -> None:
    """Nor does a noticeable share of them look familiar. The script itself measures more frames."""
    tiles = SHARED / "datasets" / "magnetic-tiles" / "val"
    if not tiles.is_dir():
        pytest.skip("../shared/datasets is not on this machine")
    camera = ROOT / "scripts" / "camera.py"
    command = [sys.executable, str(camera), "write", str(tmp_path), "--per-class", "3"]
    subprocess.run([*command, "--seed", "3"], check=True, capture_output=True)
    counts = familiarity.measure(
        load(ROOT / "models" / "parts" / "1"),
        *(familiarity.pictures(folder) for folder in (tmp_path, tiles, frames)),
    )
    held, foreign = counts[familiarity.HELD_BACK], familiarity.total(counts)
    assert (held.frames, held.unfamiliar) == (18, 0)
    assert foreign.frames > 100
    assert foreign.unfamiliar >= 0.99 * foreign.frames
    assert foreign.passed == 0


def test_model_without_the_output_answers_the_same() -> None:
    path = ROOT / "models" / "parts" / "1" / "model.tflite"
    whole = Interpreter(path, 1)
    bare = Interpreter(path, 1, familiarity.without_output(path.read_bytes()))
    frame = np.random.default_rng(0).normal(0, 1, whole.inputs[0].shape).astype(np.float32)
    [answer], [same, _] = bare.run([frame]), whole.run([frame])
    np.testing.assert_array_equal(answer, same)
