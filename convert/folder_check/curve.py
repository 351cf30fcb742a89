"""A learning curve: how right a simple classifier is with a part of the photographs, which shows
whether more of them would help, and of which class."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convert.evaluation.metrics import Z95, wilson
from convert.folder_check.judge import FOLDS, Features, Indices, folds_by_class, learned

SHARES = (0.25, 0.5, 0.75, 1.0)
_REPEATS = 3
# More frames than this would take minutes.
_MOST_FRAMES = 3000
# A gain that may be as large is worth photographs.
_WORTH = 0.05


@dataclass(frozen=True, slots=True)
class Point:
    """Learned from a share of the frames of other folds. right: share 0..1 of frames named right;
    interval: of 95%, in which frames that are nearly the same count as one. frames: that were
    learned from, on average."""

    share: float
    frames: int
    right: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Gain:
    """Says what the second half of the photographs added to the share that is right, 0..1, with its
    95% interval. frames: that were judged. right: share that is right with all. label: the class,
    None for all of them."""

    label: int | None
    frames: int
    right: float
    interval: tuple[float, float]
    gain: float
    gain_interval: tuple[float, float]

    @property
    def helps(self) -> bool:
        """Return True if the gain is more than chance explains."""
        return self.gain_interval[0] > 0

    @property
    def may_help(self) -> bool:
        """Return True if the frames are too few to say that the gain is small."""
        return self.gain_interval[1] > _WORTH


@dataclass(frozen=True, slots=True)
class Curve:
    """Points by share, the gain over all frames, and that of each class."""

    points: tuple[Point, ...]
    gain: Gain
    classes: tuple[Gain, ...]


def learning_curve(
    features: Features, labels: Indices, classes: int, groups: Indices, seed: int = 0
) -> Curve:
    """Return the curve by cross-validation. groups: frames of one number are nearly the same, and
    are never learned from and judged at once: [frames]."""
    if len(labels) > _MOST_FRAMES:
        chosen = np.random.default_rng(seed).permutation(len(labels))[:_MOST_FRAMES]
        features, labels, groups = features[chosen], labels[chosen], groups[chosen]
    right = np.zeros((len(SHARES), len(labels)))
    counts, judged = np.zeros(len(SHARES)), 0
    for repeat in range(_REPEATS):
        rng = np.random.default_rng([seed, repeat])
        fold = folds_by_class(labels, groups, seed + repeat)
        for number in range(FOLDS):
            mine = fold == number
            if not mine.any() or mine.all():
                continue
            judged += 1
            order = _by_class(rng.permutation(np.flatnonzero(~mine)), labels)
            for place, share in enumerate(SHARES):
                taken = order[: max(1, round(share * len(order)))]
                counts[place] += len(taken)
                answers = learned(features[taken], labels[taken], classes)(features[mine])
                right[place, mine] += (answers.argmax(axis=1) == labels[mine]) / _REPEATS
    points = tuple(
        Point(share, round(count), float(row.mean()), _interval(row, groups))
        for share, count, row in zip(SHARES, counts / max(1, judged), right, strict=True)
    )
    every = np.ones(len(labels), bool)
    gains = [_gain(c, right, groups, labels == c) for c in range(classes) if (labels == c).any()]
    return Curve(points, _gain(None, right, groups, every), tuple(gains))


def _by_class(order: Indices, labels: Indices) -> Indices:
    """Return `order` so that its beginnings have about the share of each class that all have."""
    places = np.empty(len(order))
    for label in np.unique(labels[order]):
        mine = labels[order] == label
        places[mine] = (np.arange(mine.sum()) + 0.5) / mine.sum()
    return order[np.argsort(places, kind="stable")]


def _gain(
    label: int | None, right: NDArray[np.float64], groups: Indices, mine: NDArray[np.bool_]
) -> Gain:
    """Return what right[-1] has over the row of half the frames, for the frames `mine`.

    The interval is that of Agresti and Min, «Simple improved confidence intervals for comparing
    matched proportions», Statistics in Medicine 24 (2005): as if two groups more had been judged,
    so that a few frames, or frames that all agree, claim no certainty.
    """
    added, all_right = (right[-1] - right[SHARES.index(0.5)])[mine], right[-1][mine]
    # Frames that are nearly the same err together: the interval is over their groups.
    _, own = np.unique(groups[mine], return_inverse=True)
    usual = len(added) / (int(own.max()) + 1)
    total = len(added) + 2 * usual
    middle = float(added.sum()) / total
    # Of the two groups, half a one gains, half a one loses, and one does neither.
    squares = float((np.bincount(own, added - middle) ** 2).sum()) + usual**2 * (1 + 2 * middle**2)
    error = Z95 * math.sqrt(squares) / total
    return Gain(
        label,
        len(added),
        float(all_right.mean()),
        _interval(all_right, groups[mine]),
        float(added.mean()),
        (max(-1.0, middle - error), min(1.0, middle + error)),
    )


def _interval(right: NDArray[np.float64], groups: Indices) -> tuple[float, float]:
    """Return the 95% interval of the mean of `right`, by frame; a group counts as one."""
    count = len(np.unique(groups))
    return wilson(round(float(right.mean()) * count), count)
