"""Average precision of a detector's boxes, as COCO defines it. Pure functions of arrays.

The definition is that of pycocotools' COCOeval (github.com/cocodataset/cocoapi) for boxes of any
size: ten thresholds of overlap, precision read at 101 places of recall, the 100 most probable boxes
of each class in each frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.recognition.detection.manifest import Box

Numbers = NDArray[np.float64]

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
# Boxes of one class in one frame that count.
BOXES_MAX = 100


class Truth(NamedTuple):
    """An object that a frame shows. label: its line in labels.txt, from 0. box: in pixels of the
    frame, upright. crowd: the box is of many objects, and any number of found ones may be in it.
    ignored: finding it is neither right nor wrong, as with all crowds."""

    label: int
    box: Box
    crowd: bool = False
    ignored: bool = False


class Found(NamedTuple):
    """An object that a detector found: line in labels.txt, box as in `Truth`, probability 0..1."""

    label: int
    box: Box
    probability: float


class Matches(NamedTuple):
    """The boxes of one class in one frame, the most probable first.

    scores: [boxes]. right, ignored: [overlaps, boxes], for each threshold of `OVERLAPS` the boxes
    that show an object, and those that do not count. objects: that are not ignored.
    """

    scores: Numbers
    right: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    objects: int


@dataclass(frozen=True, slots=True)
class ClassPrecision:
    """One class. ap50, ap: average precision 0..1 at an overlap of 0.5, and the mean of those at
    0.5 to 0.95; None without an object. found, missed, false: objects found at an overlap of 0.5,
    those that were not, and boxes that show none."""

    label: int
    objects: int
    ap50: float | None
    ap: float | None
    found: int
    missed: int
    false: int


def match_class(truths: Sequence[Truth], found: Sequence[Found]) -> Matches:
    """Give each box of one class the free object that it overlaps most, the most probable box
    first."""
    found = sorted(found, key=lambda each: -each.probability)[:BOXES_MAX]
    ordered = sorted(truths, key=lambda each: each.crowd or each.ignored)
    ignored = np.array([each.crowd or each.ignored for each in ordered], bool)
    overlaps = _overlaps(found, ordered)
    right = np.zeros((len(OVERLAPS), len(found)), bool)
    uncounted = np.zeros_like(right)
    for t, threshold in enumerate(OVERLAPS):
        taken = np.zeros(len(ordered), bool)
        for d, row in enumerate(overlaps):
            best, overlap = -1, min(threshold, 1 - 1e-10)
            for g, truth in enumerate(ordered):
                if taken[g] and not truth.crowd:
                    continue
                # Ignored objects come last: they take no box from one that counts.
                if best >= 0 and ignored[g] and not ignored[best]:
                    break
                if row[g] >= overlap:
                    best, overlap = g, row[g]
            if best >= 0:
                taken[best] = True
                right[t, d], uncounted[t, d] = not ignored[best], ignored[best]
    scores = np.array([each.probability for each in found], np.float64)
    return Matches(scores, right, uncounted, int((~ignored).sum()))


def _overlaps(found: Sequence[Found], truths: Sequence[Truth]) -> Numbers:
    """Return intersection over union, [found, truths]; of a crowd, the share of the found box."""
    one = np.array([each.box for each in found], np.float64).reshape(-1, 1, 4)
    other = np.array([each.box for each in truths], np.float64).reshape(1, -1, 4)
    ends = np.minimum(one[..., :2] + one[..., 2:], other[..., :2] + other[..., 2:])
    sides = np.maximum(ends - np.maximum(one[..., :2], other[..., :2]), 0)
    common = sides[..., 0] * sides[..., 1]
    areas = [box[..., 2] * box[..., 3] for box in (one, other)]
    crowd = np.array([each.crowd for each in truths], bool)
    union = np.where(crowd, areas[0], areas[0] + areas[1] - common)
    return np.asarray(np.divide(common, union, out=np.zeros_like(common), where=union > 0))


def class_precision(label: int, frames: Sequence[Matches]) -> ClassPrecision:
    """Return the figures of a class from its boxes in all frames."""
    objects = sum(frame.objects for frame in frames)
    scores: Numbers = np.concatenate([np.empty(0), *(frame.scores for frame in frames)])
    right, ignored = (
        np.concatenate([np.empty((len(OVERLAPS), 0), bool), *parts], axis=1)
        for parts in ([f.right for f in frames], [f.ignored for f in frames])
    )
    hits = int(right[0].sum())
    false = int((~right[0] & ~ignored[0]).sum())
    if not objects:
        return ClassPrecision(label, 0, None, None, 0, 0, false)
    order = np.argsort(-scores, kind="stable")
    values = [_average(right[t, order], ignored[t, order], objects) for t in range(len(OVERLAPS))]
    return ClassPrecision(
        label, objects, values[0], float(np.mean(values)), hits, objects - hits, false
    )


def _average(right: NDArray[np.bool_], ignored: NDArray[np.bool_], objects: int) -> float:
    """Return the mean over `RECALLS` of the best precision at that recall or a higher one."""
    hits = np.cumsum(right, dtype=np.float64)
    false = np.cumsum(~right & ~ignored, dtype=np.float64)
    precision = hits / (hits + false + np.spacing(1))
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(hits / objects, RECALLS, side="left")
    return float(np.append(best, 0.0)[places].mean())


def evaluate_boxes(
    truths: Sequence[Sequence[Truth]], found: Sequence[Sequence[Found]], labels: int
) -> tuple[ClassPrecision, ...]:
    """Return the figures of the classes 0 to `labels` - 1. truths, found: of each frame; of boxes
    with the same probability, those of an earlier frame come first."""
    frames: list[list[Matches]] = [[] for _ in range(labels)]
    for shown, boxes in zip(truths, found, strict=True):
        for label in {each.label for each in shown} | {each.label for each in boxes}:
            mine = [each for each in shown if each.label == label]
            frames[label].append(match_class(mine, [b for b in boxes if b.label == label]))
    return tuple(class_precision(label, each) for label, each in enumerate(frames))


def mean_precision(classes: Sequence[ClassPrecision]) -> tuple[float | None, float | None]:
    """Return mAP@0.5 and mAP@0.5:0.95 over the classes that have objects; None without any."""
    some = [each for each in classes if each.ap is not None]
    if not some:
        return None, None
    return (
        float(np.mean([each.ap50 for each in some])),
        float(np.mean([each.ap for each in some])),
    )
