"""Random textures the other renderers are made of; every number comes from the generator given."""

from statistics import NormalDist
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# float32 throughout; OpenCV's type stubs promise no more than some number.
Field = NDArray[Any]

# The 256 midpoint quantiles of the standard normal: a random byte looked up here is a normal
# deviate, ten times cheaper than drawing one.
_QUANTILES = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)], dtype=np.float32)
_QUANTILES.flags.writeable = False


def grain(rng: np.random.Generator, shape: tuple[int, int]) -> Field:
    """White noise.

    Returns float32 of the given shape, mean 0, standard deviation 1, within -2.9 to 2.9.
    """
    drawn = np.frombuffer(rng.bytes(int(np.prod(shape))), dtype=np.uint8)
    return cv2.LUT(drawn.reshape(shape[0], -1), _QUANTILES).reshape(shape)


def clouds(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> Field:
    """Smooth noise whose features are about `cell` pixels wide.

    `shape` is height and width. Returns float32 of that shape, mean about 0, standard deviation
    about 1. Raises ValueError when `cell` is not positive.
    """
    if cell <= 0:
        raise ValueError(f"cell must be positive, not {cell}")
    height, width = shape
    rows, columns = int(height / cell) + 2, int(width / cell) + 2
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    # Cubic interpolation between independent nodes loses variance; 1.35 restores it.
    return 1.35 * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def smoothstep(field: Field) -> Field:
    """Clip to 0..1 and ease both ends: t*t*(3 - 2*t), Hermite interpolation. Same shape."""
    eased: Field = np.clip(field, 0.0, 1.0)
    eased *= eased * (3.0 - 2.0 * eased)
    return eased
