"""The usual figures of a camera: learned from its first frames, compared with each later one.

A value is out of bounds if it is farther from the usual than SPREADS robust standard deviations
(1.4826 times the median absolute deviation, Huber 1981) and a margin.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from server.line.health.shift import Reference
from server.recognition.images.measurement import Measurement

SPREADS = 5.0
# A few of the first frames may be unusual: so many are left out at each end.
TRIM = 0.04
# Brightness is too low below this share of the usual, and too high above this share of the way
# from the usual to white.
DARK_SHARE, BRIGHT_SHARE = 0.6, 0.65
WHITE = 255.0
# Margins of the logarithms of contrast and sharpness.
CONTRAST_MARGIN, SHARPNESS_MARGIN = 0.7, 0.35
# Contrast is compared in relation to the gray level, but not to one that is lower than this.
CONTRAST_LEVEL_MIN = 16.0
# Of sharpness 0, so that its logarithm is finite.
SHARPNESS_MIN = 1e-7
# A shift counts from this share of the longer side on, or more if the first frames shift.
SHIFT_MIN = 0.012
# Pixels of the thumbnail; if the first frames shift by more, nothing in the picture stays.
SHIFT_SPREAD_MAX = 1.5
SHIFT_STEADY_SHARE = 0.95
# Least response of a shift that is believed; pictures without relation have up to 0.11.
RESPONSE_MIN = 0.15


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """The usual values of a camera, and the bounds of its frames.

    size, decoded, thumbnail_size: as of Measurement; size is None if the first frames differ in it.
    cells: the usual logarithm of each cell's sharpness; chosen: those that are compared.
    reference, weights: of Reference, float32 row by row, empty if nothing stays; shift_max: share
    of the longer side; response_min: the correlation at which a shift is believed.
    """

    frames: int
    size: tuple[int, int] | None
    decoded: tuple[int, int]
    thumbnail_size: tuple[int, int]
    brightness_min: float
    brightness_max: float
    contrast_min: float
    cells: tuple[float, ...]
    chosen: tuple[int, ...]
    sharpness_min: float
    reference: bytes = b""
    weights: bytes = b""
    usual_shift: tuple[float, float] = (0.0, 0.0)
    shift_max: float = 0.0
    response_min: float = 0.0

    def make_reference(self) -> Reference | None:
        if not self.reference:
            return None
        shape = self.thumbnail_size[::-1]
        return Reference(
            np.frombuffer(self.reference, np.float32).reshape(shape),
            np.frombuffer(self.weights, np.float32).reshape(shape),
        )

    def make_sharpness(self) -> "Sharpness":
        return Sharpness(np.array(self.cells), np.array(self.chosen))


class Sharpness:
    """Compares the sharpness of frames with the usual. usual: the logarithm of each cell's; chosen:
    the cells that are compared."""

    def __init__(self, usual: NDArray[np.float64], chosen: NDArray[np.intp]) -> None:
        self._usual, self._chosen = usual[chosen], chosen

    def of(self, measured: Measurement) -> float:
        """Return a frame's sharpness in relation to the usual: 1 is usual."""
        logs = np.log(measured.cell_values()[self._chosen] + SHARPNESS_MIN) - self._usual
        # np.median takes ten times as long.
        logs.sort()
        return math.exp((logs[(len(logs) - 1) // 2] + logs[len(logs) // 2]) / 2)


def learn(frames: Sequence[Measurement]) -> Baseline:
    """Return the baseline of a camera's first frames. Those whose decoded size is not that of most
    are left out."""
    sizes = [frame.decoded for frame in frames]
    decoded = max(set(sizes), key=sizes.count)
    frames = [frame for frame in frames if frame.decoded == decoded]
    whole = {frame.size for frame in frames}
    brightness = np.array([frame.brightness for frame in frames])
    low, high = _bounds(brightness)
    contrast = np.array([relative_contrast(frame) for frame in frames])
    logs = np.stack([_log_cells(frame) for frame in frames])
    usual = np.median(logs, 0)
    spread = np.median(np.abs(logs - usual), 0)
    # Half of the cells: those with detail, that shows whether it is sharp, and that is steady.
    chosen = np.argsort(2 * spread - usual)[: max(1, len(usual) // 2)]
    sharpness = Sharpness(usual, chosen)
    scores = np.log([sharpness.of(frame) for frame in frames])
    baseline = Baseline(
        frames=len(frames),
        size=whole.pop() if len(whole) == 1 else None,
        decoded=decoded,
        thumbnail_size=frames[0].thumbnail_size,
        brightness_min=low * DARK_SHARE,
        brightness_max=WHITE - (WHITE - high) * BRIGHT_SHARE,
        contrast_min=float(np.exp(_bounds(np.log(contrast))[0] - CONTRAST_MARGIN)),
        cells=tuple(usual.tolist()),
        chosen=tuple(chosen.tolist()),
        sharpness_min=float(np.exp(_bounds(scores)[0] - SHARPNESS_MARGIN)),
    )
    return _with_reference(baseline, frames)


def relative_contrast(measured: Measurement) -> float:
    """Return the contrast in relation to the gray level, so that it does not depend on the
    exposure."""
    return max(measured.contrast, 0.01) / max(measured.brightness, CONTRAST_LEVEL_MIN)


def _with_reference(baseline: Baseline, frames: Sequence[Measurement]) -> Baseline:
    """Return `baseline` with a reference, if the shifts of the first frames show that it works."""
    pictures = [frame.picture() for frame in frames]
    reference = Reference.of(pictures)
    if reference is None:
        return baseline
    shifts = [reference.shift(picture) for picture in pictures]
    places = np.array([(shift.x, shift.y) for shift in shifts])
    usual = np.median(places, 0)
    distances = np.hypot(*(places - usual).T)
    if np.mean(distances <= SHIFT_SPREAD_MAX) < SHIFT_STEADY_SHARE:
        return baseline
    steady = distances[distances <= SHIFT_SPREAD_MAX]
    response = np.array([shift.response for shift in shifts])
    longer = max(baseline.thumbnail_size)
    return msgspec.structs.replace(
        baseline,
        reference=reference.picture.tobytes(),
        weights=reference.weights.tobytes(),
        usual_shift=(float(usual[0]), float(usual[1])),
        shift_max=max(SHIFT_MIN, 2 * float(np.quantile(steady, 1 - TRIM)) / longer),
        response_min=max(RESPONSE_MIN, 0.25 * float(np.quantile(response, TRIM))),
    )


def _bounds(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the bounds of what is usual, without a margin."""
    median = float(np.median(values))
    reach = SPREADS * 1.4826 * float(np.median(np.abs(values - median)))
    low, high = (float(np.quantile(values, share)) for share in (TRIM, 1 - TRIM))
    return min(low, median - reach), max(high, median + reach)


def _log_cells(measured: Measurement) -> NDArray[np.float64]:
    return np.log(measured.cell_values().astype(np.float64) + SHARPNESS_MIN)
