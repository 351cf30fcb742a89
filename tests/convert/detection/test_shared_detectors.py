"""`convert detector` on models as people bring them: each finds what its source says it finds."""

from pathlib import Path
from typing import Any

import pytest
from server_process import SHARED

from convert.__main__ import main
from convert.bundle_writer import load
from server.recognition.answers import Options
from server.recognition.detection.manifest import DetectionManifest
from server.recognition.detection.outputs import overlap
from server.recognition.tasks.detect import Detection

MODELS, FRAMES = SHARED / "models", SHARED / "frames"
VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
FACE = ("face", 0.947, (168, 145, 197, 197), 0.8)
# File, labels, frame, convention, and objects as (label, probability, box, least overlap).
SHOULD_FIND: list[tuple[str, tuple[str, ...], str, str, list[Any]]] = [
    (
        "yolov5_tiny_person_int8.tflite",
        ("person",),
        "grace_hopper.bmp",
        "yolov5",
        [("person", 0.92, (-7, -6, 528, 612), 0.95)],
    ),
    (
        "yolov5_tiny_person_float.tflite",
        ("person",),
        "grace_hopper.bmp",
        "yolov5",
        [("person", 0.93, (16, 10, 497, 591), 0.95)],
    ),
    (
        "yolov5_tiny_digital_meter_int8.tflite",
        tuple("0123456789"),
        "grace_hopper.bmp",
        "yolov5",
        [],
    ),
    # No box is known beforehand, but that of the cells on the left at half the height.
    (
        "fomo_person_int8.tflite",
        ("person",),
        "grace_hopper.bmp",
        "fomo",
        [("person", 0.54, (0, 150, 85, 100), 0.45)],
    ),
    (
        "ssd_traffic_lstm.tflite",
        ("first", "second"),
        "traffic_0001.bmp",
        "post_process",
        # The shares 0.556, 0.846, 0.742, 1.000 of 256 x 256 pixels.
        [("second", 0.414, (216.6, 142.3, 39.4, 47.6), 0.95), ("first", 0.395, None, 0)],
    ),
    (
        "deeplabv3_mnv2_dm05_pascal_quant.tflite",
        VOC,
        "dog_segmentation.bmp",
        "class_map",
        [("dog", 0.48, None, 0), ("sheep", 0.04, None, 0)],
    ),
    ("face_detection_short_range.tflite", ("face",), "grace_hopper.bmp", "blazeface", [FACE]),
    (
        "face_detection_back.tflite",
        ("face",),
        "grace_hopper.bmp",
        "blazeface",
        [("face", 0.885, (168, 145, 197, 197), 0.8)],
    ),
]


@pytest.mark.parametrize(
    ("file", "labels", "picture", "convention", "objects"),
    SHOULD_FIND,
    ids=[each[0].removesuffix(".tflite") for each in SHOULD_FIND],
)
def test_shared_model_finds_what_it_should(
    tmp_path: Path,
    file: str,
    labels: tuple[str, ...],
    picture: str,
    convention: str,
    objects: list[Any],
) -> None:
    model, frame = MODELS / file, FRAMES / picture
    if not (model.exists() and frame.exists()):
        pytest.skip(f"{model} or {frame} is absent: they are not part of the project")
    names = tmp_path / "labels.txt"
    names.write_text("\n".join(labels))
    frames = tmp_path / "frames"
    frames.mkdir()
    (frames / picture).write_bytes(frame.read_bytes())
    command = ["detector", str(model), "--labels", str(names), "--validate", str(frames)]
    assert main([*command, "--out", str(tmp_path / "models"), "--name", "m"]) == 0
    recognizer = load(tmp_path / "models" / "m" / "1")
    assert isinstance(recognizer.manifest, DetectionManifest)
    assert recognizer.manifest.detection.convention == convention
    recognizer.check_golden()
    found: tuple[Detection, ...] = recognizer.recognize(frame.read_bytes(), Options()).details
    if convention != "post_process":
        assert len(found) == len(objects)
    for label, probability, box, least in objects:
        assert any(
            each.label == label
            and each.probability == pytest.approx(probability, abs=0.04)
            and (box is None or overlap(each.box, box) >= least)
            for each in found
        ), found
