"""Judges the epoch that the validation chooses by frames that did not choose it."""

import numpy as np
from numpy.typing import NDArray

_DIVISIONS = 20

Rows = NDArray[np.float32]


def judged(logits: NDArray[np.float32], truth: NDArray[np.int64]) -> tuple[Rows, Rows]:
    """Return 1 for each frame named right, else 0, and its cross entropy in nats.

    logits: [..., frames, classes]; truth: [frames]; both results [..., frames].
    """
    values = logits.astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    own = np.take_along_axis(values, np.broadcast_to(truth, values.shape[:-1])[..., None], -1)
    losses = np.log(np.exp(values).sum(axis=-1)) - own[..., 0]
    right = values.argmax(axis=-1) == truth
    return right.astype(np.float32), losses.astype(np.float32)


def best_epoch(right: Rows, losses: Rows, epochs: NDArray[np.intp]) -> int:
    """Return the one of `epochs` that named most frames right, and among equal ones the one of
    lowest loss. right, losses: of each epoch and frame, [epochs, frames]."""
    shares, means = right.mean(axis=1), losses.mean(axis=1)
    return int(max(epochs, key=lambda epoch: (shares[epoch], -means[epoch])))


def hits_of_others_choice(right: Rows, losses: Rows, first: int, seed: int = 0) -> float:
    """Return how many frames are named right if each half of them is judged by the epoch that the
    other half chooses: the mean of several divisions.

    right: 1 for a frame named right, else 0; losses: in nats; both [epochs, frames]. first: the
    epoch from which on one can be chosen.
    """
    epochs = np.arange(first, len(right), dtype=np.intp)
    frames = right.shape[1]
    hits = 0.0
    for division in range(_DIVISIONS):
        one, other = np.array_split(np.random.default_rng([seed, division]).permutation(frames), 2)
        for judges, judged in ((one, other), (other, one)):
            epoch = best_epoch(right[:, judges], losses[:, judges], epochs)
            hits += float(right[epoch, judged].sum()) / _DIVISIONS
    return hits
