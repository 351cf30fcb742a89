"""Frames that travel with a bundle, and what the line looked like when it was validated."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.evaluation import metrics
from convert.evaluation.metrics import Indices
from convert.evaluation.results import Evaluation
from server.recognition.manifest import GOLDEN, Baseline, Golden

MAX_GOLDEN = 8
# A golden frame at the edge of a decision would fail on a processor whose kernels round otherwise.
MIN_PROBABILITY = 0.6
MIN_FAMILIARITY = 0.52
SAMPLES = "samples"


@dataclass(frozen=True, slots=True)
class TravellingFrames:
    """The golden frames for bundle.json, and the files to copy by their path in the bundle."""

    golden: tuple[Golden, ...]
    files: dict[str, Path]


def golden_and_sample_frames(proof: Evaluation, samples: int) -> TravellingFrames:
    """Golden frames, at most one a class and MAX_GOLDEN in all, and `samples` others.

    Golden are those that both models get right and the less sure of them is surest about, at
    MIN_PROBABILITY or more, and at MIN_FAMILIARITY or more if the model can say. Samples are
    typical: each class in turn, from the middle of those that are right, by certainty.
    """
    sure = _certainty(proof)
    if proof.familiarity is not None:
        sure = np.where(proof.familiarity.values >= MIN_FAMILIARITY, sure, -1.0)
    by_class = [_of_class(proof, sure, label) for label in range(len(proof.labels))]
    best = [int(order[0]) for order in by_class if len(order)]
    best = [i for i in best if sure[i] >= MIN_PROBABILITY]
    chosen = sorted(sorted(best, key=lambda i: (-sure[i], i))[:MAX_GOLDEN])
    files: dict[str, Path] = {}
    golden = []
    for i in chosen:
        item = proof.frames[i]
        file = _name(files, GOLDEN, proof.labels[item.label].name, item.path)
        files[file] = item.path
        probability = float(proof.result.probabilities[i, item.label])
        golden.append(
            Golden(
                file=file,
                label=proof.labels[item.label].name,
                probability=min(1.0, max(0.0, probability)),
            )
        )
    left = [[int(i) for i in order if i not in chosen] for order in by_class]
    for i in _typical(left, samples):
        item = proof.frames[i]
        files[_name(files, SAMPLES, proof.labels[item.label].name, item.path)] = item.path
    return TravellingFrames(tuple(golden), files)


def _certainty(proof: Evaluation) -> NDArray[np.float64]:
    """Return probability of the true class by the less sure model, [frames]; -1 if one is wrong."""
    rows = np.arange(len(proof.frames))
    out = np.ones(len(proof.frames))
    for side in (proof.result, proof.reference):
        if side is not None:
            right = side.probabilities.argmax(axis=1) == proof.truth
            own = side.probabilities[rows, proof.truth]
            out = np.minimum(out, np.where(right, own, -1.0))
    return out


def _of_class(proof: Evaluation, sure: NDArray[np.float64], label: int) -> Indices:
    mine = np.flatnonzero((proof.truth == label) & (sure >= 0))
    return np.asarray(mine[np.argsort(-sure[mine], kind="stable")], np.intp)


def _typical(by_class: list[list[int]], count: int) -> list[int]:
    out: list[int] = []
    while len(out) < count and any(by_class):
        for order in by_class:
            if order and len(out) < count:
                out.append(order.pop(len(order) // 2))
    return out


def _name(taken: dict[str, Path], folder: str, label: str, path: Path) -> str:
    stem = f"{folder}/{re.sub(r'[^A-Za-z0-9_.-]+', '_', label)}"
    names = (f"{stem}{f'-{n}' if n > 1 else ''}{path.suffix.lower()}" for n in range(1, 10_000))
    # Some file systems do not tell capitals apart.
    used = {name.lower() for name in taken}
    return next(name for name in names if name.lower() not in used)


def baseline(proof: Evaluation) -> Baseline:
    """Return the baseline for drift: the result's labels, confidence and brightness.

    Labels that were never predicted are left out.
    """
    predicted = proof.result.probabilities.argmax(axis=1)
    classes: dict[str, float] = {}
    for i in np.unique(predicted):
        name = proof.labels[i].name
        classes[name] = classes.get(name, 0.0) + float((predicted == i).mean())
    return Baseline(
        classes=classes,
        confidence=metrics.shares(proof.result.probabilities.max(axis=1), 10, 1.0),
        brightness=metrics.shares(proof.brightness, 16, 256.0),
    )
