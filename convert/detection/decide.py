"""Finds how a detector's outputs are read: first by shapes and names, then by what they hold.

Where two readings remain, the file is refused with both of them named, each with the option that
asks for it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.detection.model import Detector
from convert.errors import ConvertError
from server.recognition.detection.manifest import DetectionOutputs
from server.recognition.detection.outputs import make_anchors
from server.recognition.preprocessing import TensorSpec
from server.values import validation
from server.values.labels import Label
from server.values.validation import InvalidValueError
from server.values.wording import counted

Values = NDArray[np.float32]
# Outputs of one picture, as real numbers, in the model's order.
Answers = tuple[Values, ...]

# Strides of YOLO's grids: with and without a fourth one, of tiny models.
_YOLO_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (16, 32), (8, 16))
# MediaPipe's short-range and full-range face detectors, and its older one for back cameras.
_BLAZEFACE_GRIDS = (((8, 2), (16, 6)), ((16, 2), (32, 6)), ((4, 1),), ((8, 2), (16, 2), (32, 2)))
# A model with suppression inside answers no more boxes than this.
_NMS_ROWS_MAX = 1000
_BACKGROUND = frozenset({"background", "__background__", "_background_", "bg", "???"})
# Fields of DetectionOutputs that depend on the convention alone.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "post_process": {"box_format": "yxyx", "score_threshold": 0.25},
    "nms": {"box_format": "xyxy"},
    "yolov5": {},
    "yolov8": {},
    "fomo": {"score_threshold": 0.5},
    "blazeface": {"score_threshold": 0.5, "iou_threshold": 0.3},
    "class_map": {"score_threshold": 0.01},
}


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read the outputs: fields of DetectionOutputs, the options that ask for it, and it
    in words. why: what speaks for it."""

    fields: Mapping[str, Any]
    options: str
    meaning: str
    why: str = ""

    @property
    def convention(self) -> str:
        name: str = self.fields["convention"]
        return name


@dataclass(frozen=True, slots=True)
class Decision:
    """The reading of the outputs, and its reasons in words for people."""

    outputs: DetectionOutputs
    why: str


def decide_shapes(
    detector: Detector, labels: Sequence[Label], given: Mapping[str, Any]
) -> tuple[Reading, ...]:
    """Return the readings that the shapes and names of the outputs allow.

    given: fields of DetectionOutputs that the user named. Raises ConvertError if there are none.
    """
    places = given.get("outputs")
    if places and max(places) >= len(detector.outputs):
        raise ConvertError(
            f"--outputs {max(places)}: the model has {counted(len(detector.outputs), 'output')},"
            " counted from 0"
        )
    found = [*_of_several(detector, labels, places), *_of_one(detector, labels, places)]
    if wanted := given.get("convention"):
        found = [each for each in found if each.convention == wanted]
    if found:
        return tuple(found)
    shapes = ", ".join(f"{list(spec.shape)}" for spec in detector.outputs)
    asked = f"--convention {wanted}: " if wanted else ""
    raise ConvertError(
        f"{asked}the outputs {shapes} are not known as a detector's with"
        f" {counted(len(labels), 'label')}{_hint(detector, labels)}"
    )


def _hint(detector: Detector, labels: Sequence[Label]) -> str:
    """Return what may be wrong, as the end of a sentence."""
    shapes = [spec.shape for spec in detector.outputs]
    if len(shapes) == 1 and math.prod(shapes[0]) == shapes[0][-1]:
        return ": it looks like a classifier, which `convert tflite` takes"
    if len(shapes) > 1 and all(len(shape) == 4 for shape in shapes):
        return ": they are the heads of a network before its boxes are decoded; export it whole"
    if len(shapes) > 1 and any(shape[-1:] == (4,) for shape in shapes):
        return (
            ": they are boxes relative to anchors that the file does not name; export it with its"
            " post-processing"
        )
    for shape in shapes:
        if len(shape) != 3:
            continue
        side, boxes = min(shape[1:]), max(shape[1:])
        kind = "yolov8" if boxes in _yolo_boxes(detector.size, 1) else "yolov5"
        if side > 4:
            return (
                f": {side} values a box are those of {side - 4} classes (yolov8) or {side - 5}"
                f" (yolov5); {boxes} boxes speak for {kind}"
            )
    return ""


def _yolo_boxes(size: tuple[int, int], anchors: int) -> set[int]:
    """Return the numbers of boxes that YOLO's grids give for an input of `size`."""
    width, height = size
    return {
        anchors * sum(math.ceil(width / s) * math.ceil(height / s) for s in strides)
        for strides in _YOLO_STRIDES
    }


def _of_several(
    detector: Detector, labels: Sequence[Label], places: Sequence[int] | None
) -> list[Reading]:
    """Return the readings of several outputs: post-processed boxes, and BlazeFace's."""
    specs = detector.outputs
    if places and len(places) == 4:
        order = tuple(places)
        fields = {"convention": "post_process", "outputs": order}
        return [Reading(fields, "", "boxes, classes, scores and count", "as given")]
    if detector.post_process and not places:
        fields = {"convention": "post_process", "outputs": detector.post_process}
        why = "the operator TFLite_Detection_PostProcess makes them"
        return [Reading(fields, "", "boxes, classes, scores and count", why)]
    if places and len(places) != 2:
        return []
    chosen = range(len(specs)) if places is None else places
    boxes = [i for i in chosen if len(specs[i].shape) == 3 and specs[i].shape[2] == 4]
    if len(boxes) == 1 and len(specs) >= 4:
        return _post_process_orders(specs, boxes[0])
    for first in chosen:
        shape = specs[first].shape
        scores = [i for i in chosen if i != first and specs[i].shape == (*shape[:2], 1)]
        if len(labels) != 1 or len(shape) != 3 or shape[2] < 4 or len(scores) != 1:
            continue
        for grids in _BLAZEFACE_GRIDS:
            if len(make_anchors(grids, detector.size)) == shape[1]:
                fields = {
                    "convention": "blazeface",
                    "outputs": (first, scores[0]),
                    "anchors": grids,
                }
                why = f"its {shape[1]} boxes are as many as MediaPipe's anchors"
                return [Reading(fields, "", "offsets from anchors and scores", why)]
    return []


def _post_process_orders(specs: Sequence[TensorSpec], boxes: int) -> list[Reading]:
    """Return the orders in which a box's tensors may come, two if classes and scores may be
    changed."""
    number = specs[boxes].shape[1]
    rows = [i for i, spec in enumerate(specs) if i != boxes and spec.shape == (1, number)]
    counts = [
        i
        for i, spec in enumerate(specs)
        if i != boxes and i not in rows and math.prod(spec.shape) == 1
    ]
    if len(rows) == 3 and not counts and number == 1:
        counts = [i for i in rows if "count" in _names(specs[i]) or "num" in _names(specs[i])]
        rows = [i for i in rows if i not in counts]
    if len(rows) != 2 or len(counts) != 1:
        return []
    readings = []
    for classes, scores in (rows, rows[::-1]):
        order = (boxes, classes, scores, counts[0])
        options = f"--convention post_process --outputs {' '.join(map(str, order))}"
        fields = {"convention": "post_process", "outputs": order}
        meaning = f"output {classes} holds classes and output {scores} scores"
        readings.append(Reading(fields, options, meaning))
    return readings


def _names(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.signature}".lower()


def _of_one(
    detector: Detector, labels: Sequence[Label], places: Sequence[int] | None
) -> list[Reading]:
    """Return the readings of one output."""
    specs = detector.outputs
    if places is None and len(specs) > 1:
        return []
    if places is not None and len(places) != 1:
        return []
    place = places[0] if places else 0
    spec = specs[place]
    whole = spec.dtype.startswith(("int", "uint")) and not spec.quantized
    if len(spec.shape) == 4 or (len(spec.shape) == 3 and whole):
        return _of_cells(detector, spec, labels, place)
    return _of_rows(detector, spec, labels, place) if len(spec.shape) == 3 else []


def _of_rows(
    detector: Detector, spec: TensorSpec, labels: Sequence[Label], place: int
) -> list[Reading]:
    """Return the readings of [1, a, b]: YOLOv5, YOLOv8, or boxes without overlaps."""
    _, a, b = spec.shape
    count, readings = len(labels), []
    anchored, free = _yolo_boxes(detector.size, 3), _yolo_boxes(detector.size, 1)
    if b == 6 and a <= _NMS_ROWS_MAX:
        readings.append(_row_reading("nms", place, "each row a box, its score and its class"))
    for convention, extra in (("yolov5", 5), ("yolov8", 4)):
        if count + extra not in (a, b):
            continue
        in_rows = b == count + extra and (a != b or convention == "yolov5")
        boxes = a if in_rows else b
        meaning = (
            f"a box, its objectness and {counted(count, 'class', 'classes')}"
            if extra == 5
            else f"a box and {counted(count, 'class', 'classes')}"
        )
        why = f"{count + extra} values for each of {boxes} boxes"
        readings.append(_row_reading(convention, place, meaning, why))
        # The number of boxes may speak for another number of classes.
        if extra == 5 and boxes in free and not in_rows:
            other = f"a box and {counted(count + 1, 'class', 'classes')}, one more than labels"
            readings.append(_row_reading("yolov8", place, other))
        if extra == 4 and boxes in anchored:
            classes = counted(count - 1, "class", "classes")
            other = f"a box, its objectness and {classes}, one less than labels"
            readings.append(_row_reading("yolov5", place, other))
    # An output of as many rows as a YOLO's is none of 6 values without overlaps.
    if a in anchored | free and len({each.convention for each in readings}) > 1:
        readings = [each for each in readings if each.convention != "nms"]
    return readings


def _row_reading(convention: str, place: int, meaning: str, why: str = "") -> Reading:
    fields = {"convention": convention, "outputs": (place,)}
    return Reading(fields, f"--convention {convention}", meaning, why)


def _of_cells(
    detector: Detector, spec: TensorSpec, labels: Sequence[Label], place: int
) -> list[Reading]:
    """Return the readings of [1, h, w, K] and of whole numbers [1, h, w]: FOMO, or a class map."""
    shape, count = spec.shape, len(labels)
    first = labels[0].name.strip().lower() if labels else ""
    background = 0 if first in _BACKGROUND else None
    if len(shape) == 3 or shape[3] == 1:
        fields = {"convention": "class_map", "outputs": (place,), "background": background}
        return [Reading(fields, "", "the class of each pixel", "it has one number a pixel")]
    stride, readings = detector.size[0] / shape[2], []
    if shape[3] == count + 1:
        fields = {"convention": "fomo", "outputs": (place,), "class_offset": -1}
        readings.append(
            Reading(
                fields,
                "--convention fomo",
                f"cells of a grid, background and {count} more",
                f"{shape[3]} scores for each cell of {stride:.0f} pixels",
            )
        )
    if shape[3] == count:
        if background is not None and stride >= 4:
            fields = {"convention": "fomo", "outputs": (place,), "background": 0}
            meaning = "cells of a grid, each an object or background"
            readings.append(Reading(fields, "--convention fomo", meaning))
        if stride <= 8:
            fields = {"convention": "class_map", "outputs": (place,), "background": background}
            readings.append(
                Reading(
                    fields,
                    "--convention class_map",
                    "scores of the class of each pixel",
                    f"{count} scores for each pixel of the map",
                )
            )
    return readings


def decide(
    readings: Sequence[Reading],
    detector: Detector,
    labels: Sequence[Label],
    answers: Sequence[Answers],
    given: Mapping[str, Any],
) -> Decision:
    """Return how the outputs are read, by what they hold for some pictures.

    readings: those of `decide_shapes`. answers: the outputs for each picture. Raises ConvertError
    that names both readings if two remain.
    """
    names = [each for each in readings if _by_names(detector, each)] or list(readings)
    remaining = [each for each in readings if _holds(each, labels, answers)]
    if not remaining:
        raise ConvertError(
            "what the outputs hold fits none of the readings that their shapes allow:"
            f" {_listed(readings)}. Say what they are with --convention, --outputs, --box-format,"
            " --box-unit, --activation and --score-scale"
        )
    if len(remaining) > 1 and len(names) == 1 and names[0] in remaining:
        remaining = names
    if len(names) == 1 and len(remaining) == 1 and names != remaining:
        remaining = [names[0], remaining[0]]
    if len(remaining) > 1:
        raise ConvertError(
            f"the outputs can be read in {len(remaining)} ways: {_listed(remaining)}. Say which it"
            f" is{_frames_may_decide(remaining)}"
        )
    [reading] = remaining
    fields = {**_DEFAULTS[reading.convention], **reading.fields}
    fields |= {**_values(reading, detector, labels, answers, given), **given}
    try:
        made = validation.convert(fields, DetectionOutputs, lenient=False)
    except InvalidValueError as error:
        raise ConvertError(f"the outputs can't be read so: {error}") from None
    why = reading.why or reading.meaning
    return Decision(made, "as given" if "convention" in given else f"since {why}")


def _frames_may_decide(readings: Sequence[Reading]) -> str:
    if any(each.convention in ("post_process", "nms") for each in readings):
        return ", or give other frames that show objects with --validate FOLDER"
    return ", with labels as many as its classes"


def _listed(readings: Sequence[Reading]) -> str:
    return "; or ".join(
        f"{each.options or each.convention} ({each.convention}: {each.meaning})"
        for each in readings
    )


def _by_names(detector: Detector, reading: Reading) -> bool:
    """Return whether the names of the outputs say that classes and scores are where the reading
    has them."""
    if reading.convention != "post_process":
        return False
    _, classes, scores, _ = (detector.outputs[i] for i in reading.fields["outputs"])
    if "score" in _names(scores) or "class" in _names(classes):
        return True
    # The operator's own names, and TensorFlow's example of EfficientDet.
    by_operator = classes.name.endswith("PostProcess:1") and scores.name.endswith("PostProcess:2")
    return bool(by_operator or (classes.signature == "output_2" and scores.signature == "output_1"))


def _holds(reading: Reading, labels: Sequence[Label], answers: Sequence[Answers]) -> bool:
    """Return whether the answers hold what the reading expects."""
    outputs = reading.fields["outputs"]
    if reading.convention == "post_process":
        for answer in answers:
            _, classes, scores, count = (answer[i].reshape(-1) for i in outputs)
            used = slice(0, max(0, int(count[0])))
            if not _whole(classes[used]) or scores[used].min(initial=0) < -0.01:
                return False
            if scores[used].max(initial=0) > 1.01 or (np.diff(scores[used]) > 0.01).any():
                return False
        return True
    if reading.convention == "nms":
        return all(_is_nms(answer[outputs[0]][0], len(labels)) for answer in answers)
    if reading.convention in ("yolov5", "yolov8"):
        return not all(
            answer[outputs[0]].shape[2] == 6 and _is_nms(answer[outputs[0]][0], len(labels), True)
            for answer in answers
        )
    return True


def _whole(values: Values) -> bool:
    whole = np.abs(values - np.rint(values)) < 1e-3
    return bool(whole.all() and values.min(initial=0) >= -1)


def _is_nms(rows: Values, labels: int, surely: bool = False) -> bool:
    """Return whether rows [n, 6] are boxes without overlaps, the most probable first. surely: some
    of them must be boxes."""
    if rows.shape[1] != 6 or not _whole(rows[:, 5]) or rows[:, 5].max(initial=0) > labels:
        return False
    used = rows[rows[:, 4] > 0]
    ordered = bool((np.diff(rows[:, 4]) <= 1e-3).all())
    corners = bool((used[:, 2] >= used[:, 0]).all() and (used[:, 3] >= used[:, 1]).all())
    return bool(ordered and corners and (len(used) or not surely))


def _values(
    reading: Reading,
    detector: Detector,
    labels: Sequence[Label],
    answers: Sequence[Answers],
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the fields that follow from the numbers in the outputs."""
    outputs = [np.stack([answer[i][0] for answer in answers]) for i in reading.fields["outputs"]]
    first = outputs[0]
    if reading.convention == "post_process":
        return {"box_unit": _unit(first, given), **_of_labels(labels, outputs[1])}
    if reading.convention == "blazeface":
        return {"activation": "sigmoid" if outputs[1].min() < 0 else "none"}
    if reading.convention == "fomo":
        sums = first.sum(axis=-1)
        return {"activation": "none" if np.abs(sums - 1).max() < 0.05 else "softmax"}
    if reading.convention == "nms":
        return {"box_unit": _unit(first[..., :4], given), **_scores(first[..., 4], False)}
    if reading.convention not in ("yolov5", "yolov8"):
        return {}
    extra = 5 if reading.convention == "yolov5" else 4
    # [pictures, boxes, values]
    values = first if first.shape[2] == len(labels) + extra else first.transpose(0, 2, 1)
    unit = _unit(values[..., :2], given)
    fields: dict[str, Any] = {"box_unit": unit, **_scores(values[..., 4:], unit == "pixels")}
    if extra == 5 and (len(labels) == 1 or "score_scale" in fields):
        # YOLOv5 does not train the score of an only class, and Seeed's program looks at
        # objectness alone.
        fields["score"] = "objectness"
    return fields


def _unit(places: Values, given: Mapping[str, Any]) -> str:
    """Return the unit of coordinates: shares of the image reach little above 1."""
    if "box_unit" in given:
        return str(given["box_unit"])
    largest = float(places.max(initial=0))
    if largest == 0:
        raise ConvertError(
            "the model found nothing in any picture, so that its boxes may be in pixels"
            " (--box-unit pixels) or in shares of the image (--box-unit share): say which, or give"
            " frames that show objects with --validate FOLDER"
        )
    return "pixels" if largest > 2 else "share"


def _scores(scores: Values, percent: bool) -> dict[str, Any]:
    """Return how numbers become scores 0..1. percent: they may be in percent."""
    if scores.min(initial=0) < -0.05 and not (percent and scores.max(initial=0) > 50):
        return {"activation": "sigmoid"}
    if scores.max(initial=0) <= 1.05:
        return {}
    if percent and scores.max() <= 105:
        return {"score_scale": 0.01}
    raise ConvertError(
        f"the scores go from {scores.min():.3g} to {scores.max():.3g}, which are neither shares nor"
        " percent: say how they become shares with --score-scale or --activation sigmoid"
    )


def _of_labels(labels: Sequence[Label], classes: Values) -> dict[str, Any]:
    """Return the offset of a list of labels that begins with what is no class of the operator."""
    first = labels[0].name.strip().lower()
    if first in _BACKGROUND and classes.max(initial=0) < len(labels) - 1:
        return {"class_offset": 1, "background": 0}
    return {}
