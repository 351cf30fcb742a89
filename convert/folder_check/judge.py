"""Judges labels by a simple classifier on fixed features, each by one that has not seen it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]
Indices = NDArray[np.intp]

FOLDS = 5
# Inverse strength of the regularisation, for features of a mean square of 1.
_WEAKNESS = 30.0
_STEPS = 300
# With fewer frames of a class nothing can be said of them.
MIN_OF_CLASS = 3


@dataclass(frozen=True, slots=True)
class Suspect:
    """A frame whose label may be wrong. frame: its index. other: the class that suits it better.

    own_probability, other_probability: 0..1. margin: logarithm of the ratio of the first to the
    second, each divided by its class's usual one; negative, the lowest the most suspected.
    """

    frame: int
    other: int
    own_probability: float
    other_probability: float
    margin: float


def folds_by_class(labels: Indices, groups: Indices, seed: int) -> Indices:
    """Return the fold 0..FOLDS-1 of each frame: [frames]. Frames of one group share a fold, and
    the folds have about equally many frames of each class."""
    rng = np.random.default_rng(seed)
    fold = np.empty(len(labels), np.intp)
    done: set[int] = set()
    sizes = np.zeros((int(labels.max()) + 1, FOLDS), int)
    for place in rng.permutation(len(labels)):
        group = int(groups[place])
        if group in done:
            continue
        done.add(group)
        members = np.flatnonzero(groups == group)
        counts = sizes[labels[place]]
        least = np.flatnonzero(counts == counts.min())
        chosen = int(rng.choice(least))
        fold[members] = chosen
        np.add.at(sizes[:, chosen], labels[members], 1)
    return fold


def probabilities(features: Features, labels: Indices, classes: int, fold: Indices) -> Any:
    """Return each frame's probabilities by a logistic regression on the frames of other folds,
    float64 [frames, classes]; 0 for a class that those do not have."""
    out = np.zeros((len(labels), classes))
    for number in range(FOLDS):
        mine = fold == number
        if mine.any() and not mine.all():
            out[mine] = learned(features[~mine], labels[~mine], classes)(features[mine])
    return out


def learned(features: Features, labels: Indices, classes: int) -> Any:
    """Return a function from features [n, directions] to probabilities [n, classes]."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    present = np.unique(labels)
    model = None
    if len(present) > 1:
        model = LogisticRegression(C=_WEAKNESS, max_iter=_STEPS, solver="newton-cg")
        # Of such small matrices several threads wait for each other most of the time.
        with threadpool_limits(1):
            model.fit(features, labels)

    def answer(rows: Features) -> NDArray[np.float64]:
        out = np.zeros((len(rows), classes))
        out[:, present] = 1.0 if model is None else model.predict_proba(rows)
        return out

    return answer


def suspected(features: Features, labels: Indices, classes: int, seed: int = 0) -> list[Suspect]:
    """Return the frames whose label suits them less than another, the most suspected first.

    A class's probability counts by how large it usually is for frames of that label, so that a hard
    class is not suspected as a whole: the thresholds of Northcutt, Jiang and Chuang, «Confident
    learning: estimating uncertainty in dataset labels», JAIR 70 (2021), section 3.
    """
    every = np.arange(len(labels), dtype=np.intp)
    fold = folds_by_class(labels, every, seed)
    answers = probabilities(features, labels, classes, fold)
    counts = np.bincount(labels, minlength=classes)
    usual = np.array(
        [answers[labels == c, c].mean() if counts[c] else np.inf for c in range(classes)]
    )
    ratios = answers / np.maximum(usual, 1e-9)
    own = ratios[every, labels]
    ratios[every, labels] = -1
    other = ratios.argmax(axis=1)
    margins = np.log(own + 1e-12) - np.log(np.maximum(ratios[every, other], 0) + 1e-12)
    order = np.argsort(margins, kind="stable")
    return [
        Suspect(
            int(i),
            int(other[i]),
            float(answers[i, labels[i]]),
            float(answers[i, other[i]]),
            float(margins[i]),
        )
        for i in order
        if margins[i] < 0 and counts[labels[i]] >= MIN_OF_CLASS
    ]
