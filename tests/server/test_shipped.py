"""The bundle that ships: whole, proven, and right about the frames that ship with it."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from live import LiveServer

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
