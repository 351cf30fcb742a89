"""Statistics of a decoded frame, by which the health of a camera's picture is judged."""

from typing import Any

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from server.recognition.images.pixels import Pixels

# Longest sides, in pixels, of the gray pictures whose sharpness is measured, and that are kept.
SHARPNESS_SIDE_MAX = 256
THUMBNAIL_SIDE_MAX = 96
# Columns and rows of the cells whose sharpness is measured.
CELLS = (8, 6)
# Added to a cell's gray level, so that the noise of a black one is not taken for sharpness.
DARK_LEVEL = 16.0


class Measurement(msgspec.Struct, frozen=True):
    """One frame's statistics.

    size: width and height of the frame as sent, upright; decoded: of its decoded pixels.
    brightness: mean gray level 0..255. contrast: standard deviation of the thumbnail. cells: the
    sharpness of CELLS as float32, row by row: the mean squared Laplacian (Pech-Pacheco et al.,
    2000) over the squared gray level, so that it does not depend on the exposure. thumbnail: the
    gray picture, uint8, row by row, of width and height `thumbnail_size`.
    """

    size: tuple[int, int]
    decoded: tuple[int, int]
    brightness: float
    contrast: float
    cells: bytes
    thumbnail: bytes
    thumbnail_size: tuple[int, int]

    def cell_values(self) -> NDArray[np.float32]:
        return np.frombuffer(self.cells, np.float32)

    def picture(self) -> NDArray[np.uint8]:
        """Return the thumbnail, uint8 [height, width]."""
        width, height = self.thumbnail_size
        return np.frombuffer(self.thumbnail, np.uint8).reshape(height, width)


def measure(pixels: Pixels, size: tuple[int, int]) -> Measurement:
    """Measure decoded RGB pixels, uint8 [height, width, 3], of a frame sent with `size`."""
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    gray = _halve_to(gray, SHARPNESS_SIDE_MAX)
    edges = cv2.Laplacian(gray, cv2.CV_16S)
    energy = _to_cells(cv2.multiply(edges, edges, dtype=cv2.CV_32F))
    thumbnail = _halve_to(gray, THUMBNAIL_SIDE_MAX)
    levels = _to_cells(thumbnail).astype(np.float32) + np.float32(DARK_LEVEL)
    mean, deviation = cv2.meanStdDev(thumbnail)
    height, width = thumbnail.shape
    return Measurement(
        size,
        (pixels.shape[1], pixels.shape[0]),
        float(mean[0, 0]),
        float(deviation[0, 0]),
        (energy / (levels * levels)).tobytes(),
        thumbnail.tobytes(),
        (width, height),
    )


def _halve_to(gray: NDArray[Any], most: int) -> NDArray[np.uint8]:
    """Halve a picture until no side is longer than `most`: OpenCV averages 2 x 2 pixels with
    vector instructions, and any other ratio without."""
    while max(gray.shape) > most:
        height, width = gray.shape[0] // 2, gray.shape[1] // 2
        if not (height and width):
            break
        even = gray[: 2 * height, : 2 * width]
        gray = np.asarray(cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    return gray


def _to_cells(values: NDArray[Any]) -> NDArray[Any]:
    """Average over CELLS: [rows, columns], in the values' dtype."""
    return cv2.resize(values, CELLS, interpolation=cv2.INTER_AREA)
