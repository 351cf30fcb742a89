"""Finds how a model wants its pixels: 0..255, 0..1 or -1..1, by running its first operators.

A model's first operators, up to the first one with weights, are fed the same pictures once for each
way. The way is plausible if values of a usual scale reach the weights and none of the picture is
lost on the way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Opening = Callable[[NDArray[np.float32]], Sequence[NDArray[np.float32]]]


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to feed pixels 0..255: tensor = pixel * scale + offset, channels in `color` order.

    options: the command-line options that ask for it. meaning: it in words.
    """

    scale: float | tuple[float, float, float]
    offset: float | tuple[float, float, float]
    color: str
    options: str
    meaning: str

    def feed(self, pixels: Values) -> NDArray[np.float32]:
        """Pixels [..., channels] in 0..255 as the model's input."""
        if pixels.shape[-1] == 3 and self.color == "bgr":
            pixels = pixels[..., ::-1]
        return np.asarray(pixels * np.asarray(self.scale) + np.asarray(self.offset), np.float32)


# keras.applications calls the last three its modes "tf", "torch" and "caffe".
READINGS = {
    "0..255": Reading(1.0, 0.0, "rgb", "--scale 1", "pixels as they are, 0..255"),
    "0..1": Reading(1 / 255, 0.0, "rgb", "--scale 1/255", "pixels scaled to 0..1"),
    "-1..1": Reading(
        1 / 127.5, -1.0, "rgb", "--scale 1/127.5 --offset -1", "pixels scaled to -1..1"
    ),
    "torch": Reading(
        (1 / (255 * 0.229), 1 / (255 * 0.224), 1 / (255 * 0.225)),
        (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225),
        "rgb",
        "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225",
        "ImageNet's mean and deviation, as torchvision's models",
    ),
    "caffe": Reading(
        1.0,
        (-103.939, -116.779, -123.68),
        "bgr",
        "--color bgr --scale 1 --offset -103.939 -116.779 -123.68",
        "ImageNet's mean alone and BGR, as Keras's VGG16 and ResNet50",
    ),
}
ALL = tuple(READINGS)
# The one of Keras's MobileNets.
SIGNED = "-1..1"
# Nobody feeds the others to a model that changes pixels itself.
_BEFORE_A_CHANGE = ("0..255", "0..1", "-1..1")

# Those whose pixels are not at most a few units from 0.
UNSCALED = ("0..255", "caffe")
# Deviation over a picture of -1..1 that a first layer's upper quarter of channels has at least if
# that suits it: trained networks have 0.2 to 1.2, and 0.001 to 0.01 if 1/255 is in the weights.
_LEAST_RESPONSE = 0.03

# Ranges that weights are trained on, lowest and highest value.
_USUAL_RANGES = (
    (0.0, 1.0),
    (-1.0, 1.0),
    (-0.5, 0.5),
    (-2.118, 2.64),
    (0.0, 255.0),
    (-123.68, 151.06),
    (-127.5, 127.5),
)
_LEVELS = np.linspace(0, 255, 17)
# Differences below it are rounding.
_SMALLEST = 1e-3


def plausible_readings(opening: Opening, size: tuple[int, int, int]) -> tuple[str, ...]:
    """Return the names in READINGS of the ways that `opening` could be fed by.

    opening: from a model's input, float32 [1, height, width, channels] of `size`, to the tensors
    that reach its first operators with weights. All names if it passes values through as they are;
    none if it does what is not understood.
    """
    by_reading = {
        name: [_one_row(opening(READINGS[name].feed(np.full((1, *size), v)))) for v in _LEVELS]
        for name in _BEFORE_A_CHANGE
    }
    answers = {name: np.stack(rows) for name, rows in by_reading.items()}
    if all(_passes_through(answers[name], READINGS[name]) for name in ("0..255", "-1..1")):
        return ALL
    picture = picture_of_all_levels(size)
    seen = {name: _one_row(opening(READINGS[name].feed(picture))) for name in _BEFORE_A_CHANGE}
    fits = {name: _fit(answers[name]) for name in _BEFORE_A_CHANGE}
    if all(fit is None for fit in fits.values()):
        # Nothing remains of an even grey, as after a standardisation of each image.
        same = _same(seen["0..255"], seen["0..1"]) and _same(seen["0..255"], seen["-1..1"])
        return ("0..255",) if same else ()
    left = [name for name in _BEFORE_A_CHANGE if fits[name] in ("usual", "near")]
    if "usual" in fits.values() and _is_affine(answers["0..255"]):
        left = [name for name in left if fits[name] == "usual"]
    return tuple(
        name
        for i, name in enumerate(left)
        if not any(_same(seen[name], seen[other]) for other in left[:i])
    )


def readings_heard(responses: Opening, size: tuple[int, int, int]) -> tuple[str, ...]:
    """Return the names in READINGS of the ways by which a picture moves a model's first layer.

    A converter may have multiplied the scaling of pixels into the first weights, where no operator
    shows it. Pixels that are scaled once more then hardly change what the layer answers. This is a
    hint and no proof: weights that a normalisation follows may be as small by themselves.

    responses: from a model's input, float32 [1, height, width, channels] of `size`, to what its
    first operators with weights answer. All names if those are no convolutions, whose answers are
    [1, height, width, channels].
    """
    answers = responses(READINGS[SIGNED].feed(picture_of_all_levels(size)))
    if any(rows.ndim != 4 for rows in answers):
        return ALL
    spread = max(float(np.quantile(rows.std(axis=(0, 1, 2)), 0.75)) for rows in answers)
    return UNSCALED if spread < _LEAST_RESPONSE else ALL


def _one_row(tensors: Sequence[NDArray[np.float32]]) -> Values:
    return np.concatenate([np.asarray(t, np.float64).ravel() for t in tensors])


def picture_of_all_levels(size: tuple[int, int, int]) -> Values:
    """Make a picture of all levels with some grain, [1, height, width, channels] in 0..255."""
    height, width, channels = size
    slope = np.linspace(0, 1, height)[:, None] + np.linspace(0, 1, width)[None]
    grain = np.random.default_rng(0).uniform(-20, 20, (height, width, channels))
    return np.clip(np.rint(127 * slope[..., None] + grain), 0, 255)[None]


def _passes_through(answers: Values, reading: Reading) -> bool:
    """True if greys come out as they went in. answers: [levels, values]."""
    given = _LEVELS * np.mean(reading.scale) + np.mean(reading.offset)
    moving = answers[:, np.ptp(answers, axis=0) > _SMALLEST]
    near = 0.01 * np.ptp(given)
    return moving.size > 0 and bool((np.abs(moving - given[:, None]) < near).all())


def _fit(answers: Values) -> str | None:
    """Return how values [levels, values] suit weights: `usual` range, `near` one, `no`; None if
    greys of all levels give the same values."""
    if not np.isfinite(answers).all():
        return "no"
    moving = answers[:, np.ptp(answers, axis=0) > _SMALLEST]
    if not moving.size:
        return None
    steps = np.abs(np.diff(moving, axis=0)).max(axis=1)
    half = len(steps) // 2
    if min(steps[:half].sum(), steps[half:].sum()) < 0.02 * steps.sum():
        # Half of the levels are cut off.
        return "no"
    low, high = float(moving.min()), float(moving.max())
    spread = high - low
    for lowest, highest in _USUAL_RANGES:
        near = 0.02 * (highest - lowest)
        if abs(low - lowest) <= near and abs(high - highest) <= near:
            return "usual"
    around_zero = low <= 0.1 * spread and high >= -0.1 * spread
    return "near" if around_zero and 0.3 <= spread <= 30 else "no"


def _is_affine(answers: Values) -> bool:
    bends = np.abs(np.diff(answers, n=2, axis=0)).max()
    return bool(bends <= 1e-3 * np.ptp(answers, axis=0).max())


def _same(one: Values, other: Values) -> bool:
    return bool(np.abs(one - other).max() <= 1e-2 * max(np.ptp(one), _SMALLEST))
