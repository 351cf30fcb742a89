"""Decides how pixels are fed to a model: as the user says, as the model shows, or not at all."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from convert.data.dataset import Dataset
from convert.data.frames import input_range
from convert.errors import ConvertError
from convert.evaluation.evaluate import Model, predict
from convert.recipe.readings import ALL, READINGS, SIGNED, UNSCALED
from convert.sources.quantized import Tflite
from convert.sources.shapes import Output, Shape
from server.recognition.manifest import Recipe
from server.values import validation
from server.values.labels import Label
from server.values.validation import InvalidValueError

# A reading that the user or the model names is doubted if another's top-1 share is higher by this.
_FAR_BETTER = 0.2
# Chance that frames choose one of two readings between which nothing decides.
_CHANCE = 0.01
_MIN_FRAMES, _MAX_FRAMES = 10, 200
# Of pixels that are not scaled, however their contrast is changed.
_LEAST_SPAN = 25.0


@dataclass(frozen=True, slots=True)
class Choice:
    """The recipe, why it is that one, and a warning for the terminal, '' if there is none."""

    recipe: Recipe
    why: str
    warning: str = ""


def choose_recipe(
    found: Tflite,
    labels: Sequence[Label],
    output: Output,
    given: Mapping[str, Any],
    *,
    teachable_machine: bool = False,
    frames: Dataset | None = None,
) -> Choice:
    """Return the recipe that `found` is fed by.

    given: the fields of Recipe that the user named; a scale among them decides. teachable_machine:
    the labels are numbered as that site numbers them. frames: labelled ones, which decide between
    readings that are plausible by themselves.

    Raises ConvertError that names the options if several readings are plausible, and if the frames
    contradict the only one that is.
    """
    shape = found.shape
    base = recipe_with(default_recipe(shape), dtype=found.dtype)
    hits = _hits(found, labels, output, base, given, frames) if frames else {}
    rates = {name: float(right.mean()) for name, right in hits.items()}
    if given.get("scale") is not None:
        recipe = recipe_with(base, **given)
        return Choice(recipe, "as given", _doubt(recipe, shape.readings or (), rates))
    plausible = _of_this_colour(shape.readings or ALL, shape.channels)
    if shape.readings == UNSCALED:
        # Only a hint: weights before a normalisation may have any scale.
        others = (name for name in ALL if name not in UNSCALED)
        plausible = _of_this_colour((*UNSCALED, *others), shape.channels)
    if shape.readings and len(plausible) == 1:
        [name] = plausible
        best = max(rates, key=lambda key: rates[key], default=name)
        if rates and rates[best] - rates[name] >= _FAR_BETTER:
            raise ConvertError(
                f"the model's first layers suit {READINGS[name].meaning}, but fed so it is right on"
                f" {rates[name]:.0%} of the labelled frames, and with {READINGS[best].options} on"
                f" {rates[best]:.0%}: say which it is with {READINGS[name].options} or"
                f" {READINGS[best].options}"
            )
        return Choice(_recipe(base, name, given), _shown(found, name))
    ordered = sorted(plausible, key=lambda key: -rates.get(key, 0.0))
    if hits and all(_better(hits[ordered[0]], hits[other]) for other in ordered[1:]):
        why = f"since it is right on {rates[ordered[0]]:.0%} of the labelled frames so"
        return Choice(_recipe(base, ordered[0], given), f"{why}, and on fewer otherwise")
    known = "Teachable Machine's models" if teachable_machine else "Keras's MobileNets"
    if (teachable_machine or shape.mobilenet) and shape.readings == ALL:
        return Choice(_recipe(base, SIGNED, given), f"by default, as {known} are trained")
    raise ConvertError(_question(shape.readings, plausible, rates))


def _of_this_colour(names: Sequence[str], channels: int) -> tuple[str, ...]:
    """Return the readings that an image of so many channels can have."""
    return tuple(n for n in names if channels == 3 or isinstance(READINGS[n].offset, float))


def _recipe(base: Recipe, name: str, given: Mapping[str, Any]) -> Recipe:
    reading = READINGS[name]
    color = "gray" if base.color == "gray" else reading.color
    values = {"scale": reading.scale, "offset": reading.offset, "color": color}
    return recipe_with(base, **{**values, **given})


def _shown(found: Tflite, name: str) -> str:
    if name == "0..255":
        return "by default, since the model scales them itself"
    inside = "input is quantised" if found.dtype != "float32" else "first layers suit them"
    return f"by default, since the model's {inside} so"


def _hits(
    found: Tflite,
    labels: Sequence[Label],
    output: Output,
    base: Recipe,
    given: Mapping[str, Any],
    frames: Dataset,
) -> dict[str, NDArray[np.bool_]]:
    """Return which frames are named right by each reading, and by the given one as `given`."""
    step = max(1, len(frames.frames) // _MAX_FRAMES)
    chosen = frames.frames[::step]
    if len(chosen) < _MIN_FRAMES or len(labels) != found.shape.classes:
        return {}
    names = _of_this_colour(ALL, found.shape.channels)
    others = {k: v for k, v in given.items() if k not in ("scale", "offset", "color")}
    recipes = {name: _recipe(base, name, others) for name in names}
    if given.get("scale") is not None:
        recipes["given"] = recipe_with(base, **given)
    models = [
        Model(name, found.data, recipe, output, tuple(labels)) for name, recipe in recipes.items()
    ]
    answers = predict(models, [item.path for item in chosen]).probabilities
    truth = [item.label for item in chosen]
    return {
        name: np.asarray(rows.argmax(axis=1) == truth, bool)
        for name, rows in zip(recipes, answers, strict=True)
    }


def _better(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> bool:
    """True if `one` is right on more of the same frames than chance explains: the exact test of
    McNemar (1947) over the frames on which they differ."""
    wins, losses = int((one & ~other).sum()), int((other & ~one).sum())
    differ = wins + losses
    as_many = sum(math.comb(differ, k) for k in range(wins, differ + 1))
    return wins > losses and 2 * as_many / 2**differ <= _CHANCE


def _doubt(recipe: Recipe, readings: Sequence[str], rates: Mapping[str, float]) -> str:
    """Return a warning if there is evidence against the user's recipe; '' if not."""
    best = max((n for n in rates if n != "given"), key=lambda n: rates[n], default="")
    if best and rates[best] - rates["given"] >= _FAR_BETTER:
        return (
            f"warning: fed so the model is right on {rates['given']:.0%} of the labelled frames,"
            f" and with {READINGS[best].options} on {rates[best]:.0%}"
        )
    low, high = input_range(recipe)
    if not rates and tuple(readings) == UNSCALED and high - low < _LEAST_SPAN:
        return (
            "warning: fed so, a picture hardly changes what the model's first layer answers; with"
            " --scale 1 pixels would stay as they are"
        )
    if len(readings) != 1:
        return ""
    [name] = readings
    suits = msgspec.structs.replace(
        recipe, scale=READINGS[name].scale, offset=READINGS[name].offset
    )
    if _near(recipe, suits):
        return ""
    return (
        f"warning: the model's first layers suit {READINGS[name].meaning}: with"
        f" {READINGS[name].options} they would be scaled once"
    )


def _near(one: Recipe, other: Recipe) -> bool:
    (low, high), (lowest, highest) = input_range(one), input_range(other)
    return max(abs(low - lowest), abs(high - highest)) <= 0.05 * (highest - lowest)


def _question(
    readings: Sequence[str] | None, plausible: Sequence[str], rates: Mapping[str, float]
) -> str:
    ways = "; ".join(
        f"{READINGS[name].options} ({READINGS[name].meaning}"
        + (f", right on {rates[name]:.0%} of the labelled frames)" if name in rates else ")")
        for name in plausible
    )
    if not readings:
        what = "what the model does to its pixels before its first weights is not understood"
    elif tuple(readings) == UNSCALED:
        what = (
            "pixels of 0..1 or -1..1 hardly change what the model's first layer answers, so the"
            " scaling seems to be in its weights, unless a normalisation follows them"
        )
    else:
        what = "the model does not show how its pixels are scaled: several ways are plausible"
    decides = "" if rates else ", or give labelled frames with --validate FOLDER, which may decide"
    return f"{what}. Say how they were scaled when it was trained: {ways}{decides}"


def default_recipe(shape: Shape) -> Recipe:
    """Return the recipe for a model of which only the tensors are known.

    Pixels stay 0..255 if the model's first operator scales them. Otherwise they become -1..1,
    as for MobileNetV2.
    """
    reading = READINGS["0..255" if shape.scales_inside else SIGNED]
    return Recipe(
        width=shape.width,
        height=shape.height,
        color="gray" if shape.channels == 1 else "rgb",
        scale=reading.scale,
        offset=reading.offset,
        layout=shape.layout,
    )


def recipe_with(recipe: Recipe, **given: Any) -> Recipe:
    """`recipe` with the values that are not None. Raises ConvertError for one out of range."""
    values = {k: v for k, v in given.items() if v is not None}
    try:
        made = validation.convert(
            {**msgspec.structs.asdict(recipe), **values}, Recipe, lenient=False
        )
    except InvalidValueError as error:
        raise ConvertError(f"the recipe is not usable: {error}") from None
    numbers = np.array([*np.atleast_1d(made.scale), *np.atleast_1d(made.offset)])
    if not np.isfinite(numbers).all() or not np.all(made.scale):
        raise ConvertError("--scale and --offset take finite numbers, and a scale is not 0")
    return made
