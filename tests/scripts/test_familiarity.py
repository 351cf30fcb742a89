"""The measurement of familiarity, on the shipped bundle and few frames."""

import subprocess
import sys
from pathlib import Path

import familiarity
import pytest
from server_process import ROOT, SHARED

from convert.bundle_writer import load


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
