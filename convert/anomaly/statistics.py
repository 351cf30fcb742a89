"""Statistics of good frames, from their features alone: fitted, cross-fitted and scored in NumPy.

A frame is `features` [places, depth]: the network's channels at each place of a grid. Good frames
differ from each other, by light, by wear, by the kind of part, and they do so as a whole. So each
place is first predicted from a code of the whole frame (principal components of the coarser map),
and only what the code leaves is judged: by a Gaussian per place, as PaDiM does (Defard et al.,
2020, arXiv:2011.08785). `network.py` puts the same computation into the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Places of the grid along a side, and of the coarser one that the code is made from.
SIDE, CODE_SIDE = 14, 7
# Components of the code: at most so many, which is 4 MB of the model, and so many a frame.
MAX_CODE, CODE_PER_FRAME = 240, 0.4
FOLDS = 5
# Share of the covariance of all places in that of each. Alone, that of few frames is singular.
SHARED = 0.6
# Of the mean variance, added to each: a channel that never varies would make any change endless.
SHRINKAGE = 1e-2
# Of a channel's deviation where it hardly varies, relative to the mean of all.
LEAST_DEVIATION = 1e-2
NOT_NEEDED = np.empty(0, np.float32)
BLUR = np.array([1.0, 4.0, 6.0, 4.0, 1.0], np.float32) / 16


@dataclass(frozen=True, slots=True)
class Statistics:
    """Good frames in numbers. centred = features - mean; code = pooled(centred) @ encoder;
    residual = centred - code @ decoder; distance of a place = root mean square of residual @
    whitening.

    mean: [places, depth]. encoder: [coarse places * depth, code]. decoder: [code, places * depth].
    whitening: [places, depth, depth].
    """

    mean: Floats
    encoder: Floats
    decoder: Floats
    whitening: Floats

    def residuals(self, features: Floats) -> Floats:
        """Return what each frame's code does not explain: [frames, places, depth] of the same."""
        centred = features - self.mean
        usual = pooled(centred) @ self.encoder @ self.decoder
        return np.asarray(centred - usual.reshape(features.shape), np.float32)

    def maps(self, features: Floats) -> Floats:
        """Distances from good, smoothed: [frames, places, depth] -> [frames, SIDE, SIDE]."""
        return distances(self.residuals(features), self.whitening)


def pooled(features: Floats) -> Floats:
    """[frames, places, depth] -> means over 2 x 2 places, [frames, coarse places * depth]."""
    ratio = SIDE // CODE_SIDE
    grid = features.reshape(len(features), CODE_SIDE, ratio, CODE_SIDE, ratio, -1)
    return np.asarray(grid.mean(axis=(2, 4)).reshape(len(features), -1), np.float32)


def distances(residuals: Floats, whitening: Floats) -> Floats:
    """Root mean square of the whitened residuals, smoothed: [frames, SIDE, SIDE]."""
    white = np.matmul(residuals.transpose(1, 0, 2), whitening)
    raw = np.sqrt((white * white).mean(axis=2)).T.reshape(-1, SIDE, SIDE)
    smooth = [cv2.sepFilter2D(one, -1, BLUR, BLUR) for one in raw]
    return np.asarray(np.stack(smooth), np.float32)


def fit(features: Floats, seed: int = 0) -> Statistics:
    """The statistics of good frames, float32 [frames, places, depth], at least 2 of them.

    The covariances are of residuals of frames that their code was not fitted on: those of its own
    frames are smaller than any new frame's.
    """
    coder = _coder(features)
    held = np.empty_like(features)
    for rest, fold in folds(len(features), seed):
        held[fold] = Statistics(*_coder(features[rest]), NOT_NEEDED).residuals(features[fold])
    return Statistics(*coder, _whitening(held))


def folds(count: int, seed: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Parts of `count` frames by turns, at most FOLDS: (the rest, the part), as indices."""
    order = np.random.default_rng(seed).permutation(count)
    for part in np.array_split(order, min(FOLDS, count)):
        yield np.setdiff1d(order, part), part


Coder = tuple[Floats, Floats, Floats]


def _coder(features: Floats) -> Coder:
    """mean, encoder and decoder of `Statistics`. The code has the variance 1 on `features`."""
    count = len(features)
    mean = features.mean(axis=0)
    centred = features - mean
    coarse = pooled(centred)
    deviation = coarse.std(axis=0)
    deviation = np.maximum(deviation, LEAST_DEVIATION * max(float(deviation.mean()), 1e-6))
    standard = coarse / deviation
    # Of as many frames fewer than values, their products with each other are the smaller matrix.
    values, vectors = np.linalg.eigh((standard @ standard.T).astype(np.float64))
    size = max(1, min(MAX_CODE, int(CODE_PER_FRAME * count)))
    values, vectors = values[::-1][:size], vectors[:, ::-1][:, :size]
    # A constant component has nothing to say, and no length to divide by.
    lengths = np.where(values > 1e-9 * values[0], values, np.inf)
    encoder = (standard.T @ (vectors / lengths) * np.sqrt(count)) / deviation[:, None]
    decoder = (coarse @ encoder).T @ centred.reshape(count, -1) / count
    return mean, np.asarray(encoder, np.float32), np.asarray(decoder, np.float32)


def _whitening(residuals: Floats) -> Floats:
    """[places, depth, depth] that make each place's residuals [frames, places, depth] white."""
    count, _, depth = residuals.shape
    centred = residuals.transpose(1, 0, 2)
    own = np.matmul(centred.transpose(0, 2, 1), centred) / count
    shared = own.mean(axis=0)
    variance = np.trace(own, axis1=1, axis2=2) / depth
    common = max(float(np.trace(shared)) / depth, 1e-12)
    scaled = shared * (variance / common)[:, None, None]
    blended = (1 - SHARED) * own + SHARED * scaled
    least = SHRINKAGE * np.maximum(variance, LEAST_DEVIATION * common)
    blended += least[:, None, None] * np.eye(depth, dtype=np.float32)
    values, vectors = np.linalg.eigh(blended.astype(np.float64))
    return np.asarray(vectors / np.sqrt(np.maximum(values, 1e-12))[:, None, :], np.float32)


def projection(channels: int, depth: int, deviation: Floats, seed: int = 0) -> Floats:
    """[channels, depth]: channels divided by their deviation, and turned into `depth` others.

    Chosen at random: principal components would drop the channels that vary little, in which a
    defect shows most.
    """
    square = np.random.default_rng(seed).normal(size=(channels, min(depth, channels)))
    basis = np.linalg.qr(square)[0]
    scale = np.maximum(deviation, LEAST_DEVIATION * max(float(deviation.mean()), 1e-6))
    return np.asarray(basis / scale[:, None], np.float32)


def threshold_of(scores: NDArray[Any], false_rejects: float) -> float:
    """The score that a share `false_rejects` of good frames exceeds, from held-back ones.

    The order statistic that holds for a frame yet to come: the ceil((n + 1)(1 - share))-th of n
    (conformal prediction: Vovk, Gammerman, Shafer, 2005). Too few frames have none so high; there
    the tail is that of a normal distribution of the logarithms, never below the largest score.
    """
    ordered = np.sort(scores.astype(np.float64))
    rank = int(np.ceil((len(ordered) + 1) * (1 - false_rejects)))
    if rank <= len(ordered):
        return float(ordered[rank - 1])
    logs = np.log(ordered)
    tail = np.exp(logs.mean() + NormalDist().inv_cdf(1 - false_rejects) * logs.std())
    return float(max(tail, ordered[-1]))
