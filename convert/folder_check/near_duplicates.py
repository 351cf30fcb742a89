"""Finds photographs of one thing that are nearly the same picture, such as two exposures of a part.

A pair must agree twice: by a perceptual hash of the whole picture (pHash: the signs of the lowest
frequencies), and by its fine relief, without which two smooth surfaces would be the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from server.recognition.frame import Pixels

_HASHED, _FREQUENCIES = 32, 8
_RELIEF, _RELIEF_BLUR = 64, 4.0
# Of the 63 bits of a hash, those that may differ.
_MOST_BITS = 10
# Correlations of the relief that are tried. The first is enough where a part is in few pictures;
# pictures of parts that all lie alike need more.
_CORRELATIONS = (0.7, 0.8, 0.9, 0.95, 0.98)
# Share of the frames that one group may be. A larger one means that all pictures look alike.
_LARGEST_GROUP = 1 / 3
# Fewer frames do not show what is usual in them.
MIN_FRAMES = 10
_CHUNK = 512


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """bits: of the hash, float32 [63] of 0 and 1. relief: float16 [4096]."""

    bits: NDArray[np.float32]
    relief: NDArray[np.float16]


def fingerprint(pixels: Pixels) -> Fingerprint:
    """Return the fingerprint of a picture, uint8 [height, width, channels]."""
    grey = pixels.mean(axis=2, dtype=np.float32)
    low = cv2.dct(_small(grey, _HASHED))[:_FREQUENCIES, :_FREQUENCIES].ravel()[1:]
    small = _small(grey, _RELIEF)
    relief = small - np.asarray(cv2.GaussianBlur(small, (0, 0), _RELIEF_BLUR), np.float32)
    length = float(np.linalg.norm(relief))
    # An even picture has none.
    relief *= 1 / length if length > 1e-3 * relief.size else 0.0
    return Fingerprint(
        np.asarray(low > np.median(low), np.float32), np.asarray(relief.ravel(), np.float16)
    )


def _small(grey: NDArray[np.float32], side: int) -> NDArray[Any]:
    return np.asarray(cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA), np.float32)


def near_duplicates(prints: Sequence[Fingerprint]) -> list[tuple[int, int]] | None:
    """Return pairs of frames, lower index first, that are nearly the same picture.

    None if that can't be told: of fewer than MIN_FRAMES, or if all pictures look too alike.
    """
    if len(prints) < MIN_FRAMES:
        return None
    bits = np.stack([each.bits for each in prints])
    relief = np.stack([each.relief for each in prints]).astype(np.float32)
    # What all pictures share, as of parts in one place before one camera, says nothing.
    relief -= relief.mean(axis=0)
    relief /= np.maximum(np.linalg.norm(relief, axis=1, keepdims=True), 1e-6)
    found: list[tuple[int, int, float]] = []
    for start in range(0, len(prints), _CHUNK):
        rows = slice(start, start + _CHUNK)
        differ = bits[rows] @ (1 - bits.T) + (1 - bits[rows]) @ bits.T
        alike = relief[rows] @ relief.T
        close = (differ <= _MOST_BITS) & (alike >= _CORRELATIONS[0])
        found += [
            (start + int(i), int(j), float(alike[i, j]))
            for i, j in np.argwhere(close)
            if start + i < j
        ]
    for least in _CORRELATIONS:
        pairs = [(i, j) for i, j, value in found if value >= least]
        if np.bincount(groups(len(prints), pairs)).max() <= len(prints) * _LARGEST_GROUP:
            return pairs
    return None


def groups(count: int, pairs: Sequence[tuple[int, int]]) -> NDArray[np.intp]:
    """Return a number for each of `count` frames, the same for all that pairs join: [count]."""
    parent = list(range(count))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for one, other in pairs:
        parent[root(other)] = root(one)
    return np.array([root(place) for place in range(count)], np.intp)
