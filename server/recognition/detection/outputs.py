"""A detector's output tensors -> boxes in pixels of the model's input: one function for each
convention of `DetectionOutputs`.

Pure functions of NumPy arrays. They look at scores first, in the dtype of the model, and work only
on the few boxes that reach the threshold. A score that is not a number counts as reaching it, so
that the caller sees it.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from server.recognition.detection.manifest import DetectionOutputs
from server.recognition.preprocessing import Tensor, TensorSpec, dequantize

Floats = NDArray[np.float32]
# Larger logits saturate, as MediaPipe clips them; the exponential of more overflows float32.
LOGIT_MAX = 80.0
# Candidates that suppression begins with: its time grows with the square of their number.
NMS_FIRST = 300
# Boxes of one frame that are looked at; of more that reach the threshold, the most probable ones.
CANDIDATES_MAX = 2000


class Candidates(NamedTuple):
    """Boxes that reached the score threshold.

    boxes: float32 [n, 4], left, top, right, bottom in pixels of the model's input. scores: float32
    [n], in 0..1. classes: int64 [n], the model's own numbers.
    """

    boxes: Floats
    scores: Floats
    classes: NDArray[np.int64]

    def take(self, rows: NDArray[Any]) -> "Candidates":
        """Returns those of `rows`, numbers or a mask."""
        return Candidates(self.boxes[rows], self.scores[rows], self.classes[rows])


class Layout(NamedTuple):
    """The values that the functions need beside the tensors.

    size: width and height of the model's input in pixels. specs: of the tensors, in the
    convention's order. labels: how many there are in labels.txt.
    """

    recipe: DetectionOutputs
    size: tuple[int, int]
    specs: tuple[TensorSpec, ...]
    labels: int


def _activate(values: Floats, recipe: DetectionOutputs) -> Floats:
    """Returns scores 0..1 of the outputs."""
    if recipe.activation == "sigmoid":
        values = np.asarray(1 / (1 + np.exp(-np.clip(values, -LOGIT_MAX, LOGIT_MAX))), np.float32)
    return np.asarray(values * np.float32(recipe.score_scale), np.float32)


def _raw_threshold(recipe: DetectionOutputs, spec: TensorSpec) -> float | int:
    """Returns the score threshold as a value of the tensor: what is lower is no object."""
    value = recipe.score_threshold / recipe.score_scale
    if recipe.activation == "sigmoid":
        share = min(max(value, 1e-30), 1 - 1e-7)
        value = math.log(share / (1 - share))
    if spec.quantized:
        # A little less, so that rounding drops nothing: scores are compared again as real numbers.
        return math.floor(value / spec.scale + spec.zero_point)
    return value


def _reaching(candidates: Candidates, recipe: DetectionOutputs) -> Candidates:
    keep = ~(candidates.scores < np.float32(recipe.score_threshold))
    return candidates if keep.all() else candidates.take(keep)


def _reaching_rows(scores: NDArray[Any], threshold: float) -> NDArray[np.intp]:
    """Returns the places of the scores that reach the threshold, CANDIDATES_MAX at most."""
    places = np.flatnonzero(~(scores < threshold))
    if len(places) <= CANDIDATES_MAX:
        return places
    # A value that is no number sorts as the largest.
    best = np.argpartition(scores[places], len(places) - CANDIDATES_MAX)[-CANDIDATES_MAX:]
    return places[np.sort(best)]


def corners(boxes: Floats, recipe: DetectionOutputs, size: tuple[int, int]) -> Floats:
    """Turns boxes [n, 4], in the recipe's format and unit, to left, top, right, bottom in pixels
    of an input of `size` (width, height)."""
    if recipe.box_format == "xywh":
        half = boxes[:, 2:] / 2
        boxes = np.asarray(np.hstack([boxes[:, :2] - half, boxes[:, :2] + half]), np.float32)
    elif recipe.box_format == "yxyx":
        boxes = boxes[:, [1, 0, 3, 2]]
    if recipe.box_unit == "share":
        boxes = np.asarray(boxes * np.array([*size, *size], np.float32), np.float32)
    return np.asarray(boxes, np.float32)


def boxes_by_row(shape: tuple[int, ...], recipe: DetectionOutputs, labels: int) -> bool:
    """Returns whether a YOLO output [1, a, b] has a box in each row, as YOLOv5 has, or in each
    column, as YOLOv8 has. Raises ValueError if neither side has the values of a box."""
    values = labels + (5 if recipe.convention == "yolov5" else 4)
    if len(shape) != 3 or values not in shape[1:]:
        raise ValueError(f"{list(shape)} has no side of {values}, the values of a box")
    if shape[1] == shape[2]:
        return recipe.convention == "yolov5"
    return shape[2] == values


def read_yolov5(outputs: Sequence[Tensor], layout: Layout) -> Candidates:
    """Reads [1, N, 5 + C] (or [1, 5 + C, N]): box, objectness, and a score for each class."""
    recipe, [spec] = layout.recipe, layout.specs
    rows = outputs[0][0]
    if not boxes_by_row(outputs[0].shape, recipe, layout.labels):
        rows = rows.T
    keep = _reaching_rows(rows[:, 4], _raw_threshold(recipe, spec))
    values = dequantize(rows[keep], spec)
    scores = _activate(values[:, 4:], recipe)
    classes = scores[:, 1:].argmax(axis=1)
    best = scores[:, 0]
    if recipe.score == "product":
        best = best * scores[np.arange(len(keep)), classes + 1]
    return _reaching(Candidates(corners(values[:, :4], recipe, layout.size), best, classes), recipe)


def read_yolov8(outputs: Sequence[Tensor], layout: Layout) -> Candidates:
    """Reads [1, 4 + C, N] (or [1, N, 4 + C]): box, and a score for each class."""
    recipe, [spec] = layout.recipe, layout.specs
    columns = outputs[0][0]
    if boxes_by_row(outputs[0].shape, recipe, layout.labels):
        columns = columns.T
    best = columns[4:].max(axis=0)
    keep = _reaching_rows(best, _raw_threshold(recipe, spec))
    values = dequantize(columns[:, keep], spec)
    scores = _activate(values[4:], recipe)
    classes = scores.argmax(axis=0)
    best = scores[classes, np.arange(len(keep))]
    boxes = corners(np.ascontiguousarray(values[:4].T), recipe, layout.size)
    return _reaching(Candidates(boxes, best, classes), recipe)


def read_nms(outputs: Sequence[Tensor], layout: Layout) -> Candidates:
    """Reads [1, N, 6]: box, score, class; no boxes of one class overlap."""
    recipe, [spec] = layout.recipe, layout.specs
    rows = outputs[0][0]
    values = dequantize(rows[~(rows[:, 4] < _raw_threshold(recipe, spec))], spec)
    scores = _activate(values[:, 4], recipe)
    boxes = corners(values[:, :4], recipe, layout.size)
    return _reaching(Candidates(boxes, scores, _whole(values[:, 5])), recipe)


def read_post_process(outputs: Sequence[Tensor], layout: Layout) -> Candidates:
    """Reads boxes [1, N, 4], classes [1, N], scores [1, N] and the count [1] of those that are
    used."""
    recipe = layout.recipe
    boxes, classes, scores, count = (
        dequantize(tensor, spec) for tensor, spec in zip(outputs, layout.specs, strict=True)
    )
    number = count.reshape(-1)[0]
    used = int(min(max(number, 0), boxes.shape[1])) if np.isfinite(number) else boxes.shape[1]
    return _reaching(
        Candidates(
            corners(boxes[0, :used], recipe, layout.size),
            _activate(scores[0, :used], recipe),
            _whole(classes[0, :used]),
        ),
        recipe,
    )


def _whole(classes: Floats) -> NDArray[np.int64]:
    """Returns class numbers as whole ones; -1, which no label has, for what is no number."""
    finite = np.where(np.abs(classes) < 2**24, classes, -1)
    return np.rint(finite).astype(np.int64)


def read_fomo(outputs: Sequence[Tensor], layout: Layout) -> Candidates:
    """Reads [1, h, w, K], a score for each class in each cell. Neighbouring cells of a class,
    corners included, are one object: its box is theirs, its score their highest."""
    recipe, [spec] = layout.recipe, layout.specs
    cells = dequantize(outputs[0][0], spec)
    if recipe.activation == "softmax":
        with np.errstate(invalid="ignore"):
            cells = np.exp(cells - cells.max(axis=-1, keepdims=True))
            cells = cells / cells.sum(axis=-1, keepdims=True)
    cells = _activate(cells, recipe)
    numbers = np.arange(cells.shape[-1]) + recipe.class_offset
    objects = (numbers >= 0) & (numbers < layout.labels) & (numbers != recipe.background)
    cells = np.where(objects, cells, np.float32(-1))
    best, classes = cells.max(axis=-1), cells.argmax(axis=-1)
    reached = ~(best < np.float32(recipe.score_threshold))
    cell = np.array([layout.size[0] / best.shape[1], layout.size[1] / best.shape[0]] * 2)
    boxes: list[Floats] = []
    scores: list[Floats] = []
    found: list[NDArray[np.int64]] = []
    for number in np.unique(classes[reached]):
        mask = (reached & (classes == number)).astype(np.uint8)
        count, places, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        left_top, extent = stats[1:, :2], stats[1:, 2:4]
        highest = np.full(count, -np.inf, np.float32)
        np.maximum.at(highest, places.ravel(), best.ravel())
        boxes.append((np.concatenate([left_top, left_top + extent], axis=1) * cell).astype("f4"))
        scores.append(highest[1:])
        found.append(np.full(count - 1, number, np.int64))
    if not boxes:
        return Candidates(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int))
    return Candidates(np.concatenate(boxes), np.concatenate(scores), np.concatenate(found))


def make_anchors(grids: Sequence[tuple[int, int]], size: tuple[int, int]) -> Floats:
    """Returns the centres of MediaPipe's SSD anchors of fixed size, float32 [n, 2], x and y in
    pixels of an input of `size` (width, height).

    grids: (stride in pixels, anchors a cell); cells go row by row (SsdAnchorsCalculator).
    """
    centres = []
    for stride, count in grids:
        across, down = (math.ceil(side / stride) for side in size)
        y, x = np.mgrid[:down, :across].astype(np.float32)
        cells = np.stack([(x + 0.5) / across * size[0], (y + 0.5) / down * size[1]], axis=-1)
        centres.append(np.repeat(cells.reshape(-1, 2), count, axis=0))
    return np.concatenate(centres) if centres else np.zeros((0, 2), np.float32)


def read_blazeface(outputs: Sequence[Tensor], layout: Layout, anchors: Floats) -> Candidates:
    """Reads offsets [1, N, 4 or more], centre and size in pixels from each of the N `anchors`,
    with key points behind them that are not read, and scores [1, N, 1]."""
    recipe, (box_spec, score_spec) = layout.recipe, layout.specs
    raw = outputs[1].reshape(-1)
    keep = _reaching_rows(raw, _raw_threshold(recipe, score_spec))
    scores = _activate(dequantize(raw[keep], score_spec), recipe)
    boxes = dequantize(outputs[0][0, keep, :4], box_spec).copy()
    boxes[:, :2] += anchors[keep]
    classes = np.zeros(len(keep), np.int64)
    return _reaching(Candidates(corners(boxes, recipe, layout.size), scores, classes), recipe)


def read_class_map(output: Tensor, spec: TensorSpec) -> NDArray[np.int64] | None:
    """Reads the class of each pixel [1, h, w] (or [1, h, w, 1]), or its scores [1, h, w, C], as
    int64 [h, w]; None if a score is not a number."""
    pixels = output[0]
    if pixels.ndim == 3 and pixels.shape[2] > 1:
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            return None
        return np.asarray(pixels.argmax(axis=2), np.int64)
    values = pixels.reshape(pixels.shape[:2])
    if values.dtype.kind == "f" or spec.quantized:
        values = dequantize(values, spec)
        if not np.isfinite(values).all():
            return None
        return _whole(values)
    return np.asarray(values, np.int64)


def most_probable(candidates: Candidates, most: int) -> Candidates:
    """Returns the `most` most probable candidates, best first."""
    return candidates.take(np.argsort(-candidates.scores, kind="stable")[:most])


def suppress_overlaps(candidates: Candidates, iou_threshold: float, most: int) -> Candidates:
    """Returns the `most` most probable candidates, best first, without those that overlap a more
    probable one of their class by more than `iou_threshold`."""
    candidates = most_probable(candidates, len(candidates.scores))
    boxes, scores, classes = candidates
    # OpenCV moves each class's boxes apart by the largest coordinate, so none may be negative.
    sizes = boxes[:, 2:] - boxes[:, :2]
    boxes_from_0 = np.concatenate([boxes[:, :2] - boxes[:, :2].min(axis=0, initial=0), sizes], 1)
    first, keep = NMS_FIRST, np.zeros(0, np.intp)
    while len(scores):
        # The best of some are the best of all: only if they leave too few, more are looked at.
        keep = np.asarray(
            cv2.dnn.NMSBoxesBatched(
                boxes_from_0[:first].tolist(),
                scores[:first].tolist(),
                classes[:first].tolist(),
                0.0,
                iou_threshold,
            ),
            np.intp,
        ).reshape(-1)
        if len(keep) >= most or first >= len(scores):
            break
        first *= 4
    return candidates.take(np.sort(keep)[:most])


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Returns the intersection over union of two boxes (x, y, width, height), in 0..1."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    common = max(0.0, width) * max(0.0, height)
    union = one[2] * one[3] + other[2] * other[3] - common
    return common / union if union > 0 else 0.0


def objects_in_map(
    classes: NDArray[np.int64],
    part: tuple[float, float, float, float],
    layout: Layout,
) -> Candidates:
    """Returns one box for each class of a map [h, w] that covers the score threshold's share of
    it; the score is the share.

    part: left, top, right, bottom of the model's input, in pixels, that shows the frame and no
    bars.
    """
    recipe, (height, width) = layout.recipe, classes.shape
    across, down = width / layout.size[0], height / layout.size[1]
    left, right = round(part[0] * across), round(part[2] * across)
    top, bottom = round(part[1] * down), round(part[3] * down)
    seen = classes[top : max(bottom, top + 1), left : max(right, left + 1)] + recipe.class_offset
    seen = np.where((seen >= 0) & (seen < layout.labels), seen, layout.labels)
    shares = np.bincount(seen.ravel(), minlength=layout.labels + 1)[:-1] / seen.size
    if recipe.background is not None and recipe.background < layout.labels:
        shares[recipe.background] = 0
    numbers = np.flatnonzero((shares >= recipe.score_threshold) & (shares > 0))
    boxes = np.zeros((len(numbers), 4), np.float32)
    for i, number in enumerate(numbers):
        mask = seen == number
        x, y = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        boxes[i] = left + x[0], top + y[0], left + x[-1] + 1, top + y[-1] + 1
    boxes /= np.array([across, down] * 2, np.float32)
    return Candidates(boxes, shares[numbers].astype(np.float32), numbers - recipe.class_offset)
