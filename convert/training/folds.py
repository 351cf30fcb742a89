"""Divides labelled frames into folds, each of which is held back once."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.data.dataset import Dataset
from convert.errors import ConvertError
from convert.training.inputs import labels_of

MIN_FOLDS, MAX_FOLDS = 2, 20


def assign_folds(
    dataset: Dataset, count: int, seed: int, groups: Mapping[Path, int] | None = None
) -> NDArray[np.intp]:
    """Return the fold 0..count-1 of each frame, [frames], with each class in all folds alike.

    groups: frames of one number come into one fold, such as `folder_check.checking.grouped` finds
    nearly the same. A class that has only one such group is divided all the same, because the fold
    that holds all of it would learn nothing of it. The same seed and frames give the same folds.

    Raises ConvertError for a class of one frame, and if there are fewer frames than folds, or fewer
    groups of them.
    """
    labels, classes = labels_of(dataset), len(dataset.classes)
    if not MIN_FOLDS <= count <= min(MAX_FOLDS, len(labels)):
        raise ConvertError(
            f"{len(labels)} frames can't be divided into {count} folds: {MIN_FOLDS} to"
            f" {min(MAX_FOLDS, len(labels))} are possible"
        )
    totals = np.bincount(labels, minlength=classes)
    if lonely := [name for name, n in zip(dataset.classes, totals, strict=True) if n == 1]:
        raise ConvertError(
            f"{', '.join(lonely)} has one frame: the fold that holds it back learns nothing of it"
        )
    parts = _parts(dataset, labels, groups)
    if len(parts) < count:
        raise ConvertError(
            f"{len(labels)} frames can't be divided into {count} folds: only {len(parts)} of them"
            " differ, and nearly the same ones stay in one fold; take more photographs, or fewer"
            " folds"
        )
    shuffled = np.random.default_rng(seed).permutation(len(parts)).tolist()
    # The largest first: small ones even out what they leave.
    held = np.zeros((count, classes))
    out = np.empty(len(labels), np.intp)
    for rows in sorted((parts[number] for number in shuffled), key=len, reverse=True):
        own = np.bincount(labels[rows], minlength=classes)
        full = (held * own / np.maximum(totals, 1)).sum(axis=1)
        fold = min(range(count), key=lambda f: (full[f], held[f].sum()))
        held[fold] += own
        out[rows] = fold
    return out


def _parts(
    dataset: Dataset, labels: NDArray[np.int64], groups: Mapping[Path, int] | None
) -> list[list[int]]:
    """Return rows that stay together."""
    if groups is None:
        return [[row] for row in range(len(labels))]
    numbers = np.array([groups[item.path] for item in dataset.frames])
    alone = [label for label in set(labels) if len(set(numbers[labels == label])) == 1]
    parts: dict[object, list[int]] = {}
    for row, (number, label) in enumerate(zip(numbers.tolist(), labels.tolist(), strict=True)):
        parts.setdefault((row,) if label in alone else number, []).append(row)
    return list(parts.values())


def without(dataset: Dataset, folds: NDArray[np.intp], fold: int) -> tuple[Dataset, Dataset]:
    """Return the frames that are not of `fold`, and those that are."""
    pairs = list(zip(dataset.frames, folds.tolist(), strict=True))
    kept = tuple(item for item, own in pairs if own != fold)
    held = tuple(item for item, own in pairs if own == fold)
    return Dataset(dataset.classes, kept), Dataset(dataset.classes, held)
