"""Learn what is usual of good frames, at two sizes: a Gaussian per place of a coarse grid, given
the whole frame (`statistics.py`), and one Gaussian that all places of a fine grid share.

The first knows each place well, and needs many frames for it. The second knows only how the surface
looks, learns that from few frames, and sees defects of a few pixels. A frame's score is the
geometric mean of the largest distance by each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from convert.anomaly import statistics
from convert.anomaly.statistics import (
    BLUR,
    LEAST_DEVIATION,
    SHRINKAGE,
    SIDE,
    Floats,
    Statistics,
    folds,
)

# Places of the fine grid along a side, and its channels.
FINE_SIDE, FINE_CHANNELS = 28, 32


@dataclass(frozen=True, slots=True)
class Features:
    """Frames as the network sees them. coarse: [frames, places, depth]. fine: [frames, fine places,
    fine channels]."""

    coarse: Floats
    fine: Floats

    def __len__(self) -> int:
        return len(self.coarse)

    def __getitem__(self, chosen: Any) -> Features:
        """Return the frames of an index of arrays."""
        return Features(self.coarse[chosen], self.fine[chosen])

    def __add__(self, other: Features) -> Features:
        """Return these frames and then the other ones."""
        return Features(
            np.concatenate([self.coarse, other.coarse]), np.concatenate([self.fine, other.fine])
        )

    def turned(self, turn: Floats) -> Features:
        """Return the same with coarse @ turn, [depth, new depth]."""
        return Features(np.asarray(self.coarse @ turn, np.float32), self.fine)


@dataclass(frozen=True, slots=True)
class Texture:
    """distance of a fine place = root mean square of (fine - mean) @ whitening.

    mean: [fine places, fine channels]. whitening: [fine channels, fine channels].
    """

    mean: Floats
    whitening: Floats

    def highest(self, fine: Floats) -> Floats:
        """The largest smoothed distance of each frame, [frames]. fine: as in Features."""
        out = np.empty(len(fine), np.float32)
        for i, one in enumerate(fine):
            white = (one - self.mean) @ self.whitening
            raw = np.sqrt((white * white).mean(axis=1)).reshape(FINE_SIDE, FINE_SIDE)
            out[i] = cv2.sepFilter2D(raw, -1, BLUR, BLUR).max()
        return out


@dataclass(frozen=True, slots=True)
class Usual:
    """Good frames in numbers, at both sizes."""

    coarse: Statistics
    texture: Texture

    def judge(self, features: Features) -> Judged:
        """Judge frames that were not learned from."""
        return Judged(self.coarse.maps(features.coarse), self.texture.highest(features.fine))

    def scores(self, features: Features) -> Floats:
        """The score of each frame, [frames]."""
        return self.judge(features).scores


@dataclass(frozen=True, slots=True)
class Judged:
    """maps: distances by the coarse grid, [frames, SIDE, SIDE]. texture: the largest distance by
    the fine one, [frames]."""

    maps: Floats
    texture: Floats

    @property
    def scores(self) -> Floats:
        """The score of each frame, [frames]."""
        return np.asarray(np.sqrt(self.maps.max(axis=(1, 2)) * self.texture), np.float32)


def fit(features: Features, seed: int = 0) -> Usual:
    """Learn what is usual of good frames, at least 2 of them."""
    return Usual(statistics.fit(features.coarse, seed), _texture(features.fine))


def held_out(features: Features, seed: int = 0) -> Judged:
    """Each frame judged by the others."""
    count = len(features)
    out = Judged(np.empty((count, SIDE, SIDE), np.float32), np.empty(count, np.float32))
    for rest, fold in folds(count, seed):
        judged = fit(features[rest], seed).judge(features[fold])
        out.maps[fold], out.texture[fold] = judged.maps, judged.texture
    return out


def _texture(fine: Floats) -> Texture:
    mean = np.asarray(fine.mean(axis=0), np.float32)
    channels = mean.shape[1]
    covariance = np.zeros((channels, channels))
    # Frame by frame: no second copy of them all.
    for one in fine:
        centred = one - mean
        covariance += centred.T @ centred
    covariance /= fine.shape[0] * fine.shape[1]
    deviation = np.sqrt(np.diag(covariance))
    deviation = np.maximum(deviation, LEAST_DEVIATION * max(float(deviation.mean()), 1e-6))
    standard = covariance / np.outer(deviation, deviation)
    standard += SHRINKAGE * np.trace(standard) / channels * np.eye(channels)
    values, vectors = np.linalg.eigh(standard)
    whitening = vectors / np.sqrt(np.maximum(values, 1e-12)) / deviation[:, None]
    return Texture(mean, np.asarray(whitening, np.float32))
