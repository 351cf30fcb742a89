"""`convert detector` on models as people bring them: each finds what its source says it finds."""

from pathlib import Path

import pytest
from detector_bundles import DETECTORS, FACE_BOX, SHARED_DETECTORS, bundle_of, picture_of

from convert.bundle_writer import load
from server.recognition.answers import Options
from server.recognition.detection.manifest import DetectionManifest
from server.recognition.detection.outputs import overlap
from server.recognition.tasks.detect import Detection


@pytest.mark.parametrize("name", SHARED_DETECTORS)
def test_shared_model_finds_what_it_should(detector_bundles: Path, name: str) -> None:
    recognizer = load(bundle_of(detector_bundles, name))
    assert isinstance(recognizer.manifest, DetectionManifest)
    detector = DETECTORS[name]
    assert recognizer.manifest.detection.convention == detector.convention
    recognizer.check_golden()
    found: tuple[Detection, ...] = recognizer.recognize(picture_of(name), Options()).details
    if detector.only:
        assert len(found) == len(detector.wanted)
    for label, probability, box, least in detector.wanted:
        assert any(
            each.label == label
            and each.probability == pytest.approx(probability, abs=0.04)
            and (box is None or overlap(each.box, box) >= least)
            for each in found
        ), found


@pytest.mark.parametrize("name", ["face_detection_short_range", "face_detection_back"])
def test_face_is_found_within_a_tenth_of_its_box(detector_bundles: Path, name: str) -> None:
    """Each side of the box is within a tenth of the face's side."""
    recognizer = load(bundle_of(detector_bundles, name))
    [face] = recognizer.recognize(picture_of(name), Options()).details
    left, top, width, height = face.box
    corners = left, top, left + width, top + height
    x, y, side, _ = FACE_BOX
    assert corners == pytest.approx((x, y, x + side, y + side), abs=side / 10)
