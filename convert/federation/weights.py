"""A network's arrays as one vector, which travels and is averaged; checked when it comes back."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convert.errors import ConvertError

Vector = NDArray[np.float32]
Arrays = list[NDArray[np.float32]]
# If most features are the same for all frames.
_LEAST_DEVIATION = 1e-3


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


@dataclass(frozen=True, slots=True)
class Scale:
    """Mean of each feature over the frames of all sites, and its deviation with the median of all
    deviations added, float32 [features].

    Features of about one size are learned from in a tenth of the rounds.
    """

    mean: Vector
    deviation: Vector

    def apply(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return features [frames, features] of mean 0 and a deviation of at most 1."""
        return (features - self.mean) / self.deviation

    def folded(self, kernel: NDArray[np.float32], bias: NDArray[np.float32]) -> Arrays:
        """Return kernel [features, classes] and bias [classes] that answer for the features
        themselves what the given ones answer for scaled features."""
        own = kernel / self.deviation[:, None]
        return [own, bias - self.mean @ own]

    def to_bytes(self) -> bytes:
        """Return the scale as a message carries it."""
        return np.stack([self.mean, self.deviation]).astype(np.float32).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Scale":
        """Read what `to_bytes` wrote."""
        mean, deviation = np.frombuffer(data, np.float32).reshape(2, -1)
        return cls(mean, deviation)


def moments(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean of each feature and of its square, float64 [2, features]."""
    values = features.astype(np.float64)
    return np.stack([values.mean(axis=0), np.square(values).mean(axis=0)])


def scale_of(sites: Sequence[tuple[int, NDArray[np.float64]]]) -> Scale:
    """Return the scale over all sites, from (frames, moments) of each.

    Raises ConvertError for moments of other features than the first site's, or not finite.
    """
    shapes = {values.shape for _, values in sites}
    frames = sum(count for count, _ in sites)
    if len(shapes) != 1 or frames < 1 or not all(np.isfinite(v).all() for _, v in sites):
        raise ConvertError("the sites sent means of features that don't belong to one network")
    counts = np.array([count for count, _ in sites], np.float64)
    mean, square = np.tensordot(counts, np.stack([values for _, values in sites]), 1) / frames
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    # A head that makes much of features that hardly vary makes much of what rounding adds to them.
    deviation += max(float(np.median(deviation)), _LEAST_DEVIATION)
    return Scale(mean.astype(np.float32), deviation.astype(np.float32))


def rate_of_round(peak: float, number: int, rounds: int) -> float:
    """Return the learning rate in round `number` of 1..rounds: a cosine from `peak` to a tenth."""
    done = (number - 1) / max(1, rounds - 1)
    return float(peak * (0.55 + 0.45 * np.cos(np.pi * done)))
