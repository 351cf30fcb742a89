"""The bundle that ships: whole, proven, and right about the frames that ship with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from server_process import LiveServer

from server.recognition.manifest import read_bundle

CLASSES = {"good", "scratched", "dented", "chipped", "missing_hole", "wrong_part"}


def label_of(path: Path) -> str:
    """The class a sample is named after: scratched_3.jpg -> scratched."""
    return next(label for label in CLASSES if path.name.startswith(label))


def test_the_bundle_is_whole_small_and_proven(shipped: Path) -> None:
    bundle = read_bundle(shipped)
    assert {label.name for label in bundle.labels} == CLASSES
    assert bundle.manifest.quantization == "dynamic"
    assert bundle.model_path.stat().st_size < 3_000_000
    report = bundle.manifest.report
    assert report is not None
    assert report.top1 >= 0.98
    assert report.images >= 600
    assert set(report.classes) == CLASSES
    verdict = bundle.manifest.verdict
    assert verdict is not None
    assert verdict.accept == ("good",)


def test_every_class_has_a_sample(shipped: Path) -> None:
    samples: Sequence[Path] = sorted((shipped / "samples").glob("*.jpg"))
    assert {label_of(path) for path in samples} == CLASSES


@pytest.mark.parametrize("label", sorted(CLASSES))
def test_the_server_names_the_right_part(server: LiveServer, shipped: Path, label: str) -> None:
    for path in (shipped / "samples").glob(f"{label}*.jpg"):
        answer = server.recognize(path.read_bytes()).json()
        assert answer["predictions"][0]["label"] == label
        assert answer["verdict"] == ("pass" if label == "good" else "fail")


def beside_black(picture: NDArray[Any], side: str, share: float) -> bytes:
    """A JPEG whose `side` is black by `share` (0..1), and beside it the part, moved out of view."""
    height, width = picture.shape[:2]
    across, down = round(width * share), round(height * share)
    moves = {"left": (across, 0), "right": (-across, 0), "top": (0, down), "bottom": (0, -down)}
    move = np.array([[1, 0, moves[side][0]], [0, 1, moves[side][1]]], np.float32)
    moved = cv2.warpAffine(picture, move, (width, height))
    return cv2.imencode(".jpg", moved, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def test_half_a_part_beside_black_never_passes(server: LiveServer, shipped: Path) -> None:
    picture = cv2.imread(str(shipped / "samples" / "good.jpg"))
    assert picture is not None
    verdicts = {
        (side, share): server.recognize(beside_black(picture, side, share)).json()["verdict"]
        for side in ("left", "right", "top", "bottom")
        for share in (0.4, 0.5, 0.55, 0.6)
    }
    assert "pass" not in verdicts.values(), verdicts
