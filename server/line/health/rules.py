"""The problems of one frame: by limits that hold for any camera, by those that are set, and by what
is usual for its camera."""

import cv2
import msgspec
import numpy as np

from server.config.image_health import CameraLimits
from server.line.health.baseline import Baseline, Sharpness, relative_contrast
from server.line.health.shift import Reference
from server.recognition.answers import ImageHealth
from server.recognition.images.measurement import Measurement
from server.recognition.images.problems import PROBLEMS, ImageProblem

# Limits of frames of any camera, until its own are known: gray levels, and their deviation.
BRIGHTNESS_MIN, BRIGHTNESS_MAX = 6.0, 250.0
CONTRAST_MIN = 1.2
# The same frame again: no pixel of the thumbnail differs by more levels than this, and no larger
# share of them at all. A sensor's noise changes a tenth of them or more.
FROZEN_LEVELS, FROZEN_SHARE = 1, 0.005


class Comparison(msgspec.Struct, frozen=True):
    """The values that the frames of a camera are compared with. A camera that still learns has no
    baseline."""

    limits: CameraLimits
    baseline: Baseline | None = None
    sharpness: Sharpness | None = None
    reference: Reference | None = None

    @classmethod
    def of(cls, limits: CameraLimits, baseline: Baseline) -> "Comparison":
        """Return the comparison with `baseline`."""
        return cls(limits, baseline, baseline.make_sharpness(), baseline.make_reference())


class HealthBounds(msgspec.Struct, frozen=True):
    """The bounds of a camera's frames that are in force, in the units of the keys of
    [[image_health_limits]]; null for what is not known while it learns, and for a contrast that is
    compared in relation to the frame's gray level."""

    brightness_min: float
    brightness_max: float
    contrast_min: float | None
    sharpness_min: float | None
    shift_max: float | None


def bounds_of(camera: Comparison) -> HealthBounds:
    """Return the bounds that `judge` compares a frame with."""
    limits, usual = camera.limits, camera.baseline
    low = limits.brightness_min or (usual.brightness_min if usual else BRIGHTNESS_MIN)
    high = limits.brightness_max or (usual.brightness_max if usual else BRIGHTNESS_MAX)
    return HealthBounds(
        round(low, 1),
        round(high, 1),
        limits.contrast_min or (None if usual else CONTRAST_MIN),
        round(limits.sharpness_min or usual.sharpness_min, 3) if usual else None,
        round(limits.shift_max or usual.shift_max, 4) if usual and usual.reference else None,
    )


def judge(measured: Measurement, camera: Comparison, before: Measurement | None) -> ImageHealth:
    """Judge a frame of a camera. before: the camera's frame before it, None for none."""
    limits, baseline = camera.limits, camera.baseline
    problems: set[ImageProblem] = set()
    if before is not None and is_same(measured, before):
        problems.add("frozen")
    size_fits = _size_fits(measured, limits, baseline)
    if not size_fits:
        problems.add("wrong_size")
    usual = baseline if size_fits else None
    problems |= _exposure(measured, limits, baseline)
    sharpness = shift = None
    if usual is not None and usual.decoded != measured.decoded:
        # Of another format, or for another model: it can't be compared with what is usual.
        problems.add("wrong_size")
    elif usual is not None and camera.sharpness:
        sharpness = camera.sharpness.of(measured)
        # Without light or a view there is nothing that could be blurred or shifted.
        if problems <= {"frozen"}:
            if sharpness < (limits.sharpness_min or usual.sharpness_min):
                problems.add("blurred")
            shift = _shift(measured, usual, camera.reference)
            if shift is not None and np.hypot(*shift) > (limits.shift_max or usual.shift_max):
                problems.add("shifted")
    problems -= set(limits.ignore)
    longer = max(measured.size)
    return ImageHealth(
        ok=not problems,
        problems=tuple(problem for problem in PROBLEMS if problem in problems),
        learning=baseline is None,
        brightness=round(measured.brightness, 2),
        contrast=round(measured.contrast, 2),
        sharpness=None if sharpness is None else round(sharpness, 3),
        shift=None if shift is None else (round(shift[0] * longer, 1), round(shift[1] * longer, 1)),
    )


def is_same(measured: Measurement, before: Measurement) -> bool:
    """Return whether a frame shows the same pixels as the one before it, but for what a lossy video
    changes from picture to picture of a still."""
    if measured.thumbnail_size != before.thumbnail_size:
        return False
    if measured.thumbnail == before.thumbnail:
        return True
    difference = cv2.absdiff(measured.picture(), before.picture())
    changed = cv2.countNonZero(difference)
    return changed <= FROZEN_SHARE * difference.size and difference.max() <= FROZEN_LEVELS


def _size_fits(measured: Measurement, limits: CameraLimits, baseline: Baseline | None) -> bool:
    usual = baseline.size if baseline and baseline.size else (0, 0)
    expected = limits.width or usual[0], limits.height or usual[1]
    return all(want in (0, side) for want, side in zip(expected, measured.size, strict=True))


def _exposure(
    measured: Measurement, limits: CameraLimits, baseline: Baseline | None
) -> set[ImageProblem]:
    """Return whether a frame is too dark or too bright, or else shows less than a free lens."""
    brightness = measured.brightness
    if brightness < (
        limits.brightness_min or (baseline.brightness_min if baseline else BRIGHTNESS_MIN)
    ):
        return {"too_dark"}
    if brightness > (
        limits.brightness_max or (baseline.brightness_max if baseline else BRIGHTNESS_MAX)
    ):
        return {"too_bright"}
    if limits.contrast_min:
        covered = measured.contrast < limits.contrast_min
    elif baseline is not None:
        covered = relative_contrast(measured) < baseline.contrast_min
    else:
        covered = measured.contrast < CONTRAST_MIN
    return {"covered"} if covered else set()


def _shift(
    measured: Measurement, usual: Baseline, reference: Reference | None
) -> tuple[float, float] | None:
    """Return the shift along x and y as shares of the longer side; None if the pictures have too
    little in common to say."""
    if reference is None:
        return None
    shift = reference.shift(measured.picture())
    if shift.response < usual.response_min:
        return None
    longer = max(measured.thumbnail_size)
    return (shift.x - usual.usual_shift[0]) / longer, (shift.y - usual.usual_shift[1]) / longer
