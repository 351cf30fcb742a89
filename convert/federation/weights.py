"""A network's arrays as one vector, which travels and is averaged; checked when it comes back."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from convert.errors import ConvertError

Vector = NDArray[np.float32]
Arrays = list[NDArray[np.float32]]


def pack(arrays: Iterable[NDArray[np.float32]]) -> Vector:
    """Return the values of all arrays in their order, float32 [values].

    As one array, since Flower asks for each of several by a request of its own.
    """
    return np.concatenate([np.ravel(array) for array in arrays]).astype(np.float32, copy=False)


def unpack(vector: Vector, shapes: Sequence[tuple[int, ...]]) -> Arrays:
    """Return the arrays that `pack` was given. Raises ConvertError if they are of other sizes."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    if vector.shape != (sum(sizes),):
        raise ConvertError(
            f"{list(vector.shape)} values came instead of {sum(sizes)}: both sides need the same"
            " version of Lineside"
        )
    parts = np.split(vector, np.cumsum(sizes)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def mask(arrays: Sequence[NDArray[np.float32]], places: Iterable[int]) -> NDArray[np.bool_]:
    """Return which values of `pack(arrays)` are of the arrays at `places`, [values]."""
    chosen = set(places)
    return np.concatenate([np.full(a.size, place in chosen) for place, a in enumerate(arrays)])


def check_update(site: str, sent: Vector, came: NDArray[np.generic]) -> None:
    """Raise ConvertError if what a site sent back can't be averaged: another shape or type, or
    values that are not finite."""
    if sent.shape != came.shape or sent.dtype != came.dtype:
        raise ConvertError(
            f"the site {site} sent {came.dtype} {list(came.shape)} instead of"
            f" {sent.dtype} {list(sent.shape)}"
        )
    if not np.isfinite(came).all():
        raise ConvertError(f"the site {site} sent weights that are not finite")


def rate_of_round(peak: float, number: int, rounds: int) -> float:
    """Return the learning rate in round `number` of 1..rounds: a cosine from `peak` to a tenth."""
    done = (number - 1) / max(1, rounds - 1)
    return float(peak * (0.55 + 0.45 * np.cos(np.pi * done)))
