"""The shift of a camera against its reference picture, by phase correlation (Kuglin and Hines,
1975) over that part of the picture that stays."""

from collections.abc import Sequence
from typing import Any

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

Gray = NDArray[np.uint8]
Real = NDArray[np.float32]

# Pixels of the thumbnail over which its borders fade out, as the transform repeats the picture.
TAPER = 6
# A pixel stays if its median deviation is at most this, in gray levels, plus twice that of the
# steadiest tenth of the pixels.
STILL_LEVELS = 0.75
# Least share of pixels that stay, for a reference.
STILL_PIXELS_MIN = 0.04
# Detail is compared between these sizes in pixels, a blur's standard deviation and the side of a
# box: finer detail is mostly noise, coarser is mostly light.
FINE, COARSE = 0.8, 9


class Shift(msgspec.Struct, frozen=True):
    """A picture's shift along x and y, in pixels of the thumbnail, and the response: the height of
    the correlation's peak, 1 for equal pictures."""

    x: float
    y: float
    response: float


class Reference:
    """A reference picture, float32 [height, width], and the weights 0..1 of its pixels."""

    def __init__(self, picture: Real, weights: Real) -> None:
        self.picture, self.weights = picture, weights
        height, width = picture.shape
        self._window = weights * np.outer(_taper(height), _taper(width)).astype(np.float32)
        down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
        low_pass = np.exp(-2 * (np.pi * FINE) ** 2 * (down**2 + across**2))
        # The peak of equal pictures is 1.
        peak = float(np.fft.irfft2(low_pass, s=picture.shape).max())
        self._low_pass = (low_pass / peak).astype(np.float32)
        self._spectrum = np.conj(self._transform(picture))

    @classmethod
    def of(cls, pictures: Sequence[Gray]) -> "Reference | None":
        """Return the reference of a camera's pictures, all of one size: their median, over the
        pixels that stay; None if too few do."""
        stack = np.stack(pictures).astype(np.float32)
        median = np.median(stack, 0)
        # The light may flicker, and parts may pass: the gain is that of most pixels.
        gains = np.median((stack + 1) / (median + 1), (1, 2))
        deviation = np.median(np.abs(stack / gains[:, None, None] - median), 0)
        stays = deviation <= STILL_LEVELS + 2 * np.quantile(deviation, 0.1)
        if stays.mean() < STILL_PIXELS_MIN:
            return None
        return cls(median, cv2.GaussianBlur(stays.astype(np.float32), (0, 0), 1.0))

    def shift(self, picture: Gray) -> Shift:
        """Return the shift of `picture`, uint8 of the reference's shape."""
        cross = self._transform(picture.astype(np.float32)) * self._spectrum
        cross *= self._low_pass / (np.abs(cross) + np.float32(1e-6))
        surface = np.fft.irfft2(cross, s=self.picture.shape)
        y, x = np.unravel_index(int(surface.argmax()), surface.shape)
        return Shift(
            _position(surface[y], int(x)), _position(surface[:, x], int(y)), float(surface[y, x])
        )

    def _transform(self, picture: Real) -> NDArray[np.complex64]:
        detail = picture - cv2.blur(picture, (COARSE, COARSE))
        return np.asarray(np.fft.rfft2(detail * self._window), np.complex64)


def _taper(length: int) -> NDArray[np.float64]:
    """Return weights that rise from 0 to 1 at both ends, as a half cosine."""
    distance = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
    return 0.5 - 0.5 * np.cos(np.pi * np.minimum(1.0, distance / TAPER))


def _position(line: NDArray[np.floating[Any]], peak: int) -> float:
    """Return the place of the peak of a circular line, signed, by a parabola through it and its
    neighbours."""
    size = len(line)
    before, at, after = (float(line[(peak + step) % size]) for step in (-1, 0, 1))
    bend = before - 2 * at + after
    part = 0.5 * (before - after) / bend if bend < 0 else 0.0
    return float((peak + size // 2) % size - size // 2) + part
