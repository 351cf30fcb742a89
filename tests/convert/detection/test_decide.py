"""How a detector's outputs are read: by shapes, names, embedded metadata and what they hold."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import flatbuffers
import msgspec
import numpy as np
import pytest
from detector_bundles import (
    BOXES,
    CLASSES,
    COUNT,
    FREE,
    LABELS,
    SCORES,
    SIDE,
    floats,
    rows_of_6,
    yolo,
)
from detector_models import constant_detector
from images import encode
from numpy.typing import NDArray
from tiny_models import MakeModel

from convert.__main__ import main
from convert.bundle_writer import load
from server.recognition.answers import Options


def convert(
    folder: Path, model: bytes, *options: str, labels: tuple[str, ...] | None = LABELS
) -> int:
    (folder / "model.tflite").write_bytes(model)
    command = ["detector", str(folder / "model.tflite"), "--out", str(folder / "models")]
    if labels is not None:
        (folder / "labels.txt").write_text("\n".join(labels))
        command += ["--labels", str(folder / "labels.txt")]
    return main([*command, *options])


def written(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = msgspec.json.decode(
        (folder / "models" / "model" / "1" / "bundle.json").read_bytes()
    )
    return manifest


@pytest.mark.parametrize(
    ("outputs", "fields"),
    [
        ([yolo(3 * FREE, 8)], {"convention": "yolov5", "box_unit": "pixels", "score": "product"}),
        ([yolo(3 * FREE, 8, 1)], {"convention": "yolov5", "box_unit": "share"}),
        ([yolo(FREE, 7).transpose(0, 2, 1)], {"convention": "yolov8", "box_unit": "pixels"}),
        ([yolo(FREE, 7, 1).transpose(0, 2, 1)], {"convention": "yolov8", "box_unit": "share"}),
        ([yolo(FREE, 7, 1)], {"convention": "yolov8"}),
        ([rows_of_6()], {"convention": "nms", "box_format": "xyxy", "box_unit": "pixels"}),
        ([rows_of_6(unit=1)], {"convention": "nms", "box_format": "xyxy", "box_unit": "share"}),
        # TensorFlow 1's order and TensorFlow 2's, told apart by what they hold.
        ([BOXES, CLASSES, SCORES, COUNT], {"outputs": [0, 1, 2, 3], "box_format": "yxyx"}),
        ([SCORES, BOXES, COUNT, CLASSES], {"outputs": [1, 3, 0, 2], "box_unit": "share"}),
        ([np.full((1, 8, 8, 4), 0.25, np.float32)], {"convention": "fomo", "class_offset": -1}),
        ([np.zeros((1, 64, 64, 3), np.float32)], {"convention": "class_map"}),
        ([np.zeros((1, 64, 64), np.int64)], {"convention": "class_map"}),
    ],
)
def test_convention_follows_from_the_outputs(
    tmp_path: Path, outputs: Any, fields: dict[str, Any]
) -> None:
    model = constant_detector([np.ascontiguousarray(out) for out in outputs])
    assert convert(tmp_path, model, "--scale", "1/255") == 0
    detection = written(tmp_path)["detection"]
    assert {name: detection[name] for name in fields} == fields


def test_outputs_are_known_by_their_signature(tmp_path: Path) -> None:
    """Nothing that was found tells classes from scores; the names of EfficientDet do."""
    nothing = np.zeros((1, 2), np.float32)
    model = constant_detector(
        [nothing, BOXES, floats([0]), nothing],
        signature={"output_0": 2, "output_1": 3, "output_2": 0, "output_3": 1},
    )
    assert convert(tmp_path, model, "--scale", "1/255") == 0
    assert written(tmp_path)["detection"]["outputs"] == [1, 0, 3, 2]


REFUSED: list[tuple[list[NDArray[Any]], tuple[str, ...], list[str]]] = [
    # 84 x 7: three classes in YOLOv8's columns; the labels are for YOLOv5's.
    (
        [yolo(FREE, 7).transpose(0, 2, 1)],
        LABELS[:2],
        ["--convention yolov5", "--convention yolov8"],
    ),
    ([yolo(3 * FREE, 8)], (*LABELS, "screw"), ["--convention yolov5", "--convention yolov8"]),
    # Nothing was found, in any order.
    (
        [np.zeros((1, 2), np.float32), BOXES, floats([0]), np.zeros((1, 2), np.float32)],
        LABELS,
        ["--outputs 1 0 3 2", "--outputs 1 3 0 2"],
    ),
    # A grid of cells or a map of classes.
    (
        [np.full((1, 8, 8, 3), 0.3, np.float32)],
        ("background", "bolt", "nut"),
        ["--convention fomo", "--convention class_map"],
    ),
    ([np.zeros((1, 300, 6), np.float32)], LABELS, ["--box-unit pixels", "--box-unit share"]),
    ([yolo(3 * FREE, 9)], LABELS, ["5 classes (yolov8) or 4 (yolov5)", "speak for yolov5"]),
    ([np.zeros((1, 3), np.float32)], LABELS, ["looks like a classifier"]),
    ([np.zeros((1, 8, 8, 24), np.float32)] * 2, LABELS, ["before its boxes are decoded"]),
    (
        [np.zeros((1, 96, 4), np.float32), np.zeros((1, 96, 3), np.float32)],
        LABELS,
        ["export it with its post-processing"],
    ),
    ([yolo(3 * FREE, 8, best=7.0)], LABELS, ["neither shares nor percent", "--score-scale"]),
]


@pytest.mark.parametrize(("outputs", "labels", "words"), REFUSED)
def test_confusing_file_is_refused_with_both_readings(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    outputs: Any,
    labels: tuple[str, ...],
    words: list[str],
) -> None:
    if "neither" in words[0]:
        outputs = [outputs[0] / floats([SIDE] * 4 + [1] * 4)]
    model = constant_detector([np.ascontiguousarray(out) for out in outputs])
    assert convert(tmp_path, model, "--scale", "1/255", labels=labels) == 1
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert not (tmp_path / "models").exists()


def test_options_say_what_the_file_does_not_show(tmp_path: Path) -> None:
    nothing = np.zeros((1, 2), np.float32)
    model = constant_detector([nothing, BOXES, floats([0]), nothing])
    options = (
        "--outputs 1 3 0 2 --box-unit share --scale 1/255 --score-threshold 0.4 --expect nut=4"
        " --verdict-region 1/4 0 0.5 1"
    )
    assert convert(tmp_path, model, *options.split()) == 0
    manifest = written(tmp_path)
    assert manifest["detection"]["outputs"] == [1, 3, 0, 2]
    assert manifest["detection"]["score_threshold"] == 0.4
    assert manifest["verdict"]["expected"] == {"nut": 4}
    assert manifest["verdict"]["region"] == [0.25, 0, 0.5, 1]


@pytest.mark.parametrize("kind", ["metadata.json", "temp_meta.txt", "labels.txt"])
def test_labels_come_from_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """Ultralytics appends a zip with names; others one with a list of labels."""
    names = {"task": "detect", "names": {str(i): label for i, label in enumerate(LABELS)}}
    text = {
        "metadata.json": json.dumps(names),
        "temp_meta.txt": str({**names, "names": dict(enumerate(LABELS))}),
        "labels.txt": "\n".join(LABELS),
    }[kind]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(kind, text)
    model = constant_detector([yolo(3 * FREE, 8, 1)]) + packed.getvalue()
    assert convert(tmp_path, model, labels=None) == 0
    assert f"3 labels from {kind}" in capsys.readouterr().out
    text = (tmp_path / "models" / "model" / "1" / "labels.txt").read_text()
    assert tuple(text.split()) == LABELS


def test_other_task_in_the_metadata_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"task": "pose", "names": {"0": "person"}}))
    model = constant_detector([yolo(FREE, 56)]) + packed.getvalue()
    assert convert(tmp_path, model, labels=None) == 1
    assert "the task pose" in capsys.readouterr().err


def normalization(mean: list[float], std: list[float]) -> bytes:
    """TFLite metadata whose first input has these mean and standard deviation."""
    builder = flatbuffers.Builder(256)

    def vector(values: list[float]) -> int:
        return int(builder.CreateNumpyVector(floats(values)))

    def table(size: int, **fields: int) -> int:
        builder.StartObject(size)
        for name, value in fields.items():
            builder.PrependUOffsetTRelativeSlot(int(name[1:]), value, 0)
        return int(builder.EndObject())

    def tables(one: int) -> int:
        builder.StartVector(4, 1, 4)
        builder.PrependUOffsetTRelative(one)
        return int(builder.EndVector())

    options = table(2, f0=vector(mean), f1=vector(std))
    builder.StartObject(2)
    builder.PrependUint8Slot(0, 1, 0)
    builder.PrependUOffsetTRelativeSlot(1, options, 0)
    unit = int(builder.EndObject())
    tensor = table(7, f4=tables(unit))
    graph = table(4, f2=tables(tensor))
    builder.Finish(table(4, f3=tables(graph)), b"M001")
    return bytes(builder.Output())


def test_normalisation_comes_from_the_file(tmp_path: Path) -> None:
    metadata = normalization([127.5], [127.5])
    model = constant_detector([BOXES, CLASSES, SCORES, COUNT], metadata=metadata)
    assert convert(tmp_path, model) == 0
    recipe = written(tmp_path)["recipe"]
    assert (recipe["scale"], recipe["offset"]) == (pytest.approx(1 / 127.5), -1)


def test_damaged_metadata_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut at every eighth byte, it gives the same numbers or the question for them."""
    whole = normalization([127.5], [127.5])
    for cut in range(0, len(whole), 8):
        model = constant_detector([BOXES, CLASSES, SCORES, COUNT], metadata=whole[:cut])
        (tmp_path / str(cut)).mkdir()
        code = convert(tmp_path / str(cut), model)
        asked = "how they were scaled" in capsys.readouterr().err
        assert code == 0 or asked


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 64, 64, 4), "must be an image"),
        ((1, 64), "must be an image"),
    ],
)
def test_input_that_is_no_image_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: tuple[int, ...], words: str
) -> None:
    assert convert(tmp_path, constant_detector([yolo(FREE, 7)], shape)) == 1
    assert words in capsys.readouterr().err


def test_channels_may_come_first(tiny_model: MakeModel, tmp_path: Path) -> None:
    """As Ultralytics exports them: objects are found where the same model with channels last finds
    them."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[5:25, 50:70] = 255
    answers = []
    for kind in ("nchw_bright_map", "bright_map"):
        (tmp_path / kind).mkdir()
        options = ("--scale", "1/255", "--background", "dark")
        model = tiny_model(kind).read_bytes()
        assert convert(tmp_path / kind, model, *options, labels=("dark", "bright")) == 0
        bundle = load(tmp_path / kind / "models" / "model" / "1")
        answers.append(bundle.recognize(encode(pixels, "PNG"), Options()).details)
    assert written(tmp_path / "nchw_bright_map")["recipe"]["layout"] == "nchw"
    [one] = answers[0]
    assert answers[0] == answers[1]
    assert one.box == pytest.approx((50, 5, 20, 20), abs=2.5)


def test_onnx_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(tmp_path, b"\x08\x09\x12\x07pytorch\x3a\x00" + bytes(64)) == 1
    assert "ONNX" in capsys.readouterr().err
