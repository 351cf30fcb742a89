"""Figures of a classifier on labelled frames. Pure functions of arrays.

`probabilities` is float32 [frames, classes]; `truth` and `predicted` are integers [frames].
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float32]
Indices = NDArray[np.intp]

# The 97.5% quantile of the normal distribution, for two-sided 95% intervals.
Z95 = 1.959964
# Of the expected calibration error, as its authors have them.
ERROR_BINS = 15


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """95% interval of a share, lower and upper end in 0..1; (0, 1) for no trials.

    The score interval of Wilson, «Probable inference, the law of succession, and statistical
    inference», JASA 22 (1927): it stays within 0..1 and holds at 0 and `trials` hits too.
    """
    if trials == 0:
        return 0.0, 1.0
    share, square = hits / trials, Z95 * Z95
    middle = (share + square / (2 * trials)) / (1 + square / trials)
    half = math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    half *= Z95 / (1 + square / trials)
    # At the ends the formula gives 0 and 1 exactly, floating point only nearly.
    low = 0.0 if hits == 0 else middle - half
    return low, 1.0 if hits == trials else middle + half


def rate(count: int, frames: int) -> dict[str, Any]:
    """Return a count of frames with its share and the share's 95% interval; the share is None for
    no frames."""
    share = count / frames if frames else None
    return {"count": count, "frames": frames, "share": share, "interval": wilson(count, frames)}


def ranks(probabilities: Probabilities, truth: Indices) -> Indices:
    """Return the rank of each frame's true class, from 0, ties by class: [frames].

    A frame whose answer is not a number comes after all.
    """
    own = probabilities[np.arange(len(truth)), truth][:, None]
    before = np.arange(probabilities.shape[1])[None] < truth[:, None]
    ahead = (probabilities > own) | ((probabilities == own) & before)
    # Nothing compares with nan, and the frame would count as right.
    ahead |= np.isnan(probabilities).any(axis=1, keepdims=True)
    return np.asarray(ahead.sum(axis=1), np.intp)


def confusion(truth: Indices, predicted: Indices, classes: int) -> NDArray[np.int64]:
    """Return frames by true class (row) and predicted class (column): [classes, classes]."""
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (truth, predicted), 1)
    return matrix


def precision_recall(matrix: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return precision and recall of each class from `confusion`'s matrix, float64 [classes] each;
    0 if no frame was predicted as the class, or none is of it."""
    found = np.diag(matrix).astype(np.float64)
    predicted, true = matrix.sum(axis=0), matrix.sum(axis=1)
    return found / np.maximum(predicted, 1), found / np.maximum(true, 1)


@dataclass(frozen=True, slots=True)
class Bin:
    """Frames whose top-1 probability lies in low..high: their mean probability and the share of
    them that is right, both 0 if there are no frames."""

    low: float
    high: float
    frames: int
    confidence: float
    accuracy: float


def reliability(probabilities: Probabilities, truth: Indices, bins: int = 10) -> tuple[Bin, ...]:
    """Return the reliability diagram: frames by top-1 probability in `bins` equal bins of 0..1."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == truth
    place = np.clip((confidence * bins).astype(np.intp), 0, bins - 1)
    out = []
    for number in range(bins):
        chosen = place == number
        count = int(chosen.sum())
        mean = float(confidence[chosen].mean()) if count else 0.0
        share = float(right[chosen].mean()) if count else 0.0
        out.append(Bin(number / bins, (number + 1) / bins, count, mean, share))
    return tuple(out)


def calibration_error(bins: tuple[Bin, ...]) -> float:
    """Expected calibration error, 0..1: the mean over frames of |accuracy - confidence| of their
    bin (Guo, Pleiss, Sun, Weinberger, «On Calibration of Modern Neural Networks», 2017)."""
    frames = sum(b.frames for b in bins)
    return sum(b.frames * abs(b.accuracy - b.confidence) for b in bins) / max(frames, 1)


def distance(first: Probabilities, second: Probabilities) -> NDArray[np.float64]:
    """Return total variation distance of each frame's two distributions, 0..1: [frames]."""
    return np.asarray(np.abs(first.astype(np.float64) - second).sum(axis=1) / 2, np.float64)


def shares(values: NDArray[Any], bins: int, top: float) -> tuple[float, ...]:
    """Shares of the values in `bins` equal bins of 0..top; what lies outside goes to the ends."""
    place = np.clip((values / top * bins).astype(np.intp), 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    return tuple(float(n) for n in counts / max(len(values), 1))
