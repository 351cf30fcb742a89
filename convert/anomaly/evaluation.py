"""Figures of an anomaly model: how well its scores part good frames from bad ones, and what other
good frames would have given. Pure functions of arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from convert.anomaly.scoring import Features, fit, held_out
from convert.anomaly.statistics import Floats, threshold_of
from convert.evaluation.metrics import wilson

BOOTSTRAPS = 500
# Pixels along a side at which maps and masks are compared.
PIXEL_SIDE = 112
# Scores as whole numbers: fine enough for the area under a curve of thousands of pixels.
BINS = 1024
CURVE_FRAMES = (20, 50, 200)
CONTAMINATION = 0.05


@dataclass(frozen=True, slots=True)
class Auroc:
    """Area under the ROC curve, 0..1, and its 95% interval over frames drawn again (bootstrap)."""

    value: float
    interval: tuple[float, float]


def area(good: NDArray[Any], bad: NDArray[Any]) -> float:
    """Share of pairs of a good and a bad one in which the bad one's score is higher; ties count
    half. NaN if either has none."""
    if not len(good) or not len(bad):
        return float("nan")
    ordered = np.sort(good)
    below = np.searchsorted(ordered, bad, "left") + np.searchsorted(ordered, bad, "right")
    return float(below.mean() / (2 * len(good)))


def image_auroc(good: Floats, bad: Floats, seed: int = 0) -> Auroc:
    """AUROC of frames by their scores, [frames] each."""
    rng = np.random.default_rng(seed)
    draws = [
        area(rng.choice(good, len(good)), rng.choice(bad, len(bad))) for _ in range(BOOTSTRAPS)
    ]
    return Auroc(area(good, bad), _interval(draws))


def pixel_auroc(maps: Floats, masks: NDArray[np.bool_], seed: int = 0) -> Auroc:
    """AUROC of pixels. maps: scores 0..1 [frames, height, width]. masks: True on a defect, [frames,
    PIXEL_SIDE, PIXEL_SIDE]; without any in frames that are good."""
    size = (PIXEL_SIDE, PIXEL_SIDE)
    good = np.zeros((len(maps), BINS))
    bad = np.zeros((len(maps), BINS))
    for i, (one, mask) in enumerate(zip(maps, masks, strict=True)):
        place = np.clip(cv2.resize(one, size) * BINS, 0, BINS - 1).astype(np.intp)
        good[i] = np.bincount(place[~mask], minlength=BINS)
        bad[i] = np.bincount(place[mask], minlength=BINS)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(BOOTSTRAPS):
        drawn = rng.integers(len(maps), size=len(maps))
        draws.append(_binned_area(good[drawn].sum(axis=0), bad[drawn].sum(axis=0)))
    return Auroc(_binned_area(good.sum(axis=0), bad.sum(axis=0)), _interval(draws))


def _binned_area(good: NDArray[Any], bad: NDArray[Any]) -> float:
    below = np.cumsum(good) - good / 2
    pairs = good.sum() * bad.sum()
    return float((below * bad).sum() / pairs) if pairs else float("nan")


def _interval(draws: Sequence[float]) -> tuple[float, float]:
    finite = np.array([draw for draw in draws if np.isfinite(draw)])
    if not len(finite):
        return 0.0, 1.0
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)


def roc(good: Floats, bad: Floats) -> list[tuple[float, float, float]]:
    """(threshold, share of good rejected, share of bad caught), from all caught to none."""
    cuts = np.unique(np.concatenate([good, bad]))
    # As many as a picture shows.
    cuts = cuts[:: max(1, len(cuts) // 200)]
    return [(float(cut), float((good > cut).mean()), float((bad > cut).mean())) for cut in cuts]


def share_above(scores: Floats, threshold: float) -> dict[str, Any]:
    """The frames that score above a threshold, with the 95% interval of the share."""
    count, hits = len(scores), int((scores > threshold).sum())
    return {
        "frames": count,
        "above": hits,
        "share": hits / count if count else None,
        "interval": wilson(hits, count),
    }


@dataclass(frozen=True, slots=True)
class Alternative:
    """The figures that other frames to learn from would have given, in NumPy on the same features.

    frames: learned from, `bad` of them defective. auroc: on the validation frames, None without.
    false_rejects: of good frames that were not learned from, at the threshold that these would
    have set; None without such frames. caught: share of bad validation frames, None without.
    """

    frames: int
    bad: int
    auroc: float | None
    false_rejects: float | None
    caught: float | None


def learning_curve(
    learned: Features, good: Features, bad: Features, false_rejects: float, seed: int
) -> list[Alternative]:
    """Return the figures that 20, 50 and 200 of the good frames would have given, as far as there
    are more.

    learned, good, bad: the frames to learn from, and the validation's. Without validation frames
    the false rejects are of good frames left out.
    """
    order = np.random.default_rng(seed).permutation(len(learned))
    out = []
    for count in CURVE_FRAMES:
        if count < len(learned):
            rest = good if len(good) else learned[order[count:]]
            out.append(_alternative(learned[order[:count]], 0, rest, bad, false_rejects, seed))
    return out


def contaminated(
    learned: Features, good: Features, bad: Features, false_rejects: float, seed: int
) -> Alternative | None:
    """Return the figures if a share CONTAMINATION of the frames that are said to be good are bad.

    Half of the validation's bad frames serve for it, the other half are judged. None if there are
    fewer than 2.
    """
    order = np.random.default_rng(seed).permutation(len(bad))
    mixed_in = order[: min(len(order) // 2, max(1, round(CONTAMINATION * len(learned))))]
    if len(bad) < 2:
        return None
    judged = np.setdiff1d(order, mixed_in)
    mixed = learned[: len(learned) - len(mixed_in)] + bad[mixed_in]
    return _alternative(mixed, len(mixed_in), good, bad[judged], false_rejects, seed)


def _alternative(
    learned: Features,
    defects: int,
    good: Features,
    bad: Features,
    false_rejects: float,
    seed: int,
) -> Alternative:
    fitted = fit(learned, seed)
    threshold = threshold_of(held_out(learned, seed).scores, false_rejects)
    good_scores = fitted.scores(good) if len(good) else np.empty(0, np.float32)
    bad_scores = fitted.scores(bad) if len(bad) else np.empty(0, np.float32)
    return Alternative(
        len(learned),
        defects,
        area(good_scores, bad_scores) if len(good) and len(bad) else None,
        float((good_scores > threshold).mean()) if len(good) else None,
        float((bad_scores > threshold).mean()) if len(bad) else None,
    )
