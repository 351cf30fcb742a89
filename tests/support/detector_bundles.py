"""Bundles of detectors as `convert detector` makes them: of the models in ../shared/models, and of
tiny ones whose outputs are constants. Each has frames, and what it finds in them."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from detector_models import constant_detector
from images import encode
from numpy.typing import NDArray
from server_process import SHARED

from convert.__main__ import main

SIDE = 64
# Boxes of YOLO's grids of 8, 16 and 32 pixels in 64 x 64, with one anchor.
FREE = 64 + 16 + 4
LABELS = ("bolt", "nut", "washer")
VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
# Label, probability, box, and the least overlap with it; no box if none is known beforehand.
Wanted = tuple[str, float, tuple[float, float, float, float] | None, float]


class Detector(NamedTuple):
    """convention: of its outputs. frame: a file in ../shared/frames, or "" for a grey picture.
    wanted: what it finds there. only: it finds nothing else."""

    labels: tuple[str, ...]
    convention: str
    frame: str
    wanted: tuple[Wanted, ...]
    only: bool = True


HOPPER, FACE_BOX = "grace_hopper.bmp", (168, 145, 197, 197)
SHARED_DETECTORS = {
    "yolov5_tiny_person_int8": Detector(
        ("person",), "yolov5", HOPPER, (("person", 0.92, (-7, -6, 528, 612), 0.95),)
    ),
    "yolov5_tiny_person_float": Detector(
        ("person",), "yolov5", HOPPER, (("person", 0.93, (16, 10, 497, 591), 0.95),)
    ),
    "yolov5_tiny_digital_meter_int8": Detector(tuple("0123456789"), "yolov5", HOPPER, ()),
    # Of the box only the cells on the left at half the height are known.
    "fomo_person_int8": Detector(
        ("person",), "fomo", HOPPER, (("person", 0.54, (0, 150, 85, 100), 0.45),)
    ),
    "ssd_traffic_lstm": Detector(
        ("first", "second"),
        "post_process",
        "traffic_0001.bmp",
        # The shares 0.556, 0.846, 0.742, 1.000 of 256 x 256 pixels.
        (("second", 0.414, (216.6, 142.3, 39.4, 47.6), 0.95), ("first", 0.395, None, 0)),
        only=False,
    ),
    "deeplabv3_mnv2_dm05_pascal_quant": Detector(
        VOC, "class_map", "dog_segmentation.bmp", (("dog", 0.48, None, 0), ("sheep", 0.04, None, 0))
    ),
    "face_detection_short_range": Detector(
        ("face",), "blazeface", HOPPER, (("face", 0.947, FACE_BOX, 0.8),)
    ),
    "face_detection_back": Detector(
        ("face",), "blazeface", HOPPER, (("face", 0.885, FACE_BOX, 0.8),)
    ),
}


def floats(values: Any) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)


def yolo(boxes: int, values: int, unit: float = SIDE, best: float = 0.9) -> NDArray[np.float32]:
    """Boxes in rows: one is an object of the last class, in the middle. Those of YOLOv8, which are
    FREE, have no objectness before the scores."""
    rows = np.full((boxes, values), 0.01, np.float32)
    rows[:, :2] = np.linspace(0.05, 0.95, boxes)[:, None] * unit
    rows[7] = 0.01
    rows[7, :4] = floats([0.5, 0.5, 0.25, 0.25]) * unit
    rows[7, -1] = best
    if boxes != FREE:
        rows[7, 4] = best
    return rows[None]


def rows_of_6(score: float = 0.9, unit: float = SIDE) -> NDArray[np.float32]:
    rows = np.zeros((1, 300, 6), np.float32)
    rows[0, 0] = (*floats([0.375, 0.375, 0.625, 0.625]) * unit, score, 2)
    rows[0, 1] = (*floats([0.1, 0.1, 0.2, 0.2]) * unit, 0.1, 1)
    return rows


def cells(count: int, best: float = 0.9) -> NDArray[np.float32]:
    """Cells of 8 pixels, of which four in the middle are of the last class."""
    scores = np.zeros((1, 8, 8, count), np.float32)
    scores[..., 0] = 1
    scores[0, 3:5, 3:5] = (1 - best, *[0.0] * (count - 2), best)
    return scores


BOXES = floats([[[0.375, 0.375, 0.625, 0.625], [0, 0, 0.1, 0.1]]])
CLASSES, SCORES, COUNT = floats([[2, 0]]), floats([[0.9, 0.1]]), floats([2])
MIDDLE = (24.0, 24.0, 16.0, 16.0)
# All of them find one washer in the middle of the grey picture, of SIDE x SIDE pixels.
TINY_OUTPUTS: dict[str, list[NDArray[Any]]] = {
    "yolov5_pixels": [yolo(3 * FREE, 8)],
    "yolov5_shares": [yolo(3 * FREE, 8, 1)],
    "yolov8_pixels": [yolo(FREE, 7).transpose(0, 2, 1)],
    "yolov8_shares": [yolo(FREE, 7, 1).transpose(0, 2, 1)],
    "yolov8_rows": [yolo(FREE, 7, 1)],
    "nms_pixels": [rows_of_6()],
    "nms_shares": [rows_of_6(unit=1)],
    "ssd_of_tensorflow_1": [BOXES, CLASSES, SCORES, COUNT],
    "ssd_of_tensorflow_2": [SCORES, BOXES, COUNT, CLASSES],
    "yolov8_channels_first": [yolo(FREE, 7).transpose(0, 2, 1)],
    "fomo": [cells(4)],
}
CONVENTIONS = {"ssd": "post_process"}


def _tiny(name: str) -> Detector:
    first = name.partition("_")[0]
    probability = 0.81 if first == "yolov5" else 0.9
    wanted: Wanted = ("washer", probability, MIDDLE, 0.99)
    return Detector(LABELS, CONVENTIONS.get(first, first), "", (wanted,))


TINY_DETECTORS = {name: _tiny(name) for name in TINY_OUTPUTS}
DETECTORS = SHARED_DETECTORS | TINY_DETECTORS


def picture_of(name: str) -> bytes:
    """The frame of a detector. Skips if ../shared lacks it."""
    detector = DETECTORS[name]
    if not detector.frame:
        return encode(np.full((SIDE, SIDE, 3), 90, np.uint8), "PNG")
    file = SHARED / "frames" / detector.frame
    if not file.exists():
        pytest.skip(f"{file} is absent: it is not part of the project")
    return file.read_bytes()


@pytest.fixture(scope="session")
def detector_bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with a bundle of each of DETECTORS, without those whose file ../shared
    lacks. Those of ../shared are proved on their frame."""
    folder = tmp_path_factory.mktemp("detectors")
    for name, detector in DETECTORS.items():
        file, labels = folder / f"{name}.tflite", folder / f"{name}.txt"
        labels.write_text("\n".join(detector.labels))
        command = ["--labels", str(labels), "--out", str(folder / "models"), "--name", name]
        if name in TINY_OUTPUTS:
            outputs = [np.ascontiguousarray(out) for out in TINY_OUTPUTS[name]]
            first = name.endswith("channels_first")
            shape = (1, 3, SIDE, SIDE) if first else (1, SIDE, SIDE, 3)
            file.write_bytes(constant_detector(outputs, shape))
            command += ["--scale", "1/255", "--accept", "washer"]
        else:
            file = SHARED / "models" / f"{name}.tflite"
            frame = SHARED / "frames" / detector.frame
            if not (file.exists() and frame.exists()):
                continue
            frames = folder / name
            frames.mkdir()
            (frames / frame.name).symlink_to(frame)
            command += ["--validate", str(frames)]
        assert main(["detector", str(file), *command]) == 0
    return folder / "models"


def bundle_of(models: Path, name: str) -> Path:
    """The folder of a detector's bundle. Skips if ../shared lacks its file."""
    if not (models / name).exists():
        pytest.skip(f"../shared/models/{name}.tflite is absent: it is not part of the project")
    return models / name / "1"
