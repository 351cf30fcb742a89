"""A map of where a classifier looked: how much less probable its label is if a place is covered.

The frame is covered place by place in the model's own input (Zeiler and Fergus 2014, «Visualizing
and Understanding Convolutional Networks», 4.2), so that each place costs one run of the model and
no decoding.
"""

import base64
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from server.errors import InvalidFieldError, ModelOutputError
from server.recognition.answers import Options
from server.recognition.frame import Pixels
from server.recognition.preprocessing import Placement
from server.recognition.reader_guard import Sender
from server.recognition.recognizer import Recognizer
from server.recognition.tasks.classify import ClassReader, ClassValues
from server.recognition.tasks.task import NotFiniteError

# Places along the longer side of the input, and the part of a place's side that its neighbours
# are covered by, too: what lies on an edge is covered once as a whole.
PLACES, MARGIN = 8, 0.5
# Probabilities are kept so far from 0 and 1, where their odds have no end.
EDGE = 1e-6

# Makes a context in which the model may be run once.
Turn = Callable[[], AbstractContextManager[None]]
Box = tuple[int, ...]


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """The picture that a model was shown, and the places that it looked at. input: what goes into
    the model, upright, as a PNG in base64. label, probability: the best one; null for other tasks
    than classify. box: left, top, width and height, in pixels of the frame as sent, of the part
    that `places` covers. places: rows from the top, each from the left, by how much less probable
    the label is without it: its logarithm of odds is lower by so many; below 0 if the place speaks
    against the label. without: the label's probability without each place. Both are empty for other
    tasks."""

    model: str
    model_version: int
    input: str
    label: str | None
    probability: float | None
    box: Box
    places: tuple[tuple[float, ...], ...]
    without: tuple[tuple[float, ...], ...]


def explain(
    recognizer: Recognizer, data: bytes, options: Options, request_id: str, turn: Turn
) -> Explanation:
    """Explain the answer to an image file's bytes. turn: is entered before the image is decoded,
    and before each run of the model. Raises InvalidFieldError for a model that looks at several
    parts of a frame, ModelOutputError, and what `frame.decode` and `turn` raise."""
    if len(recognizer.views) > 1:
        raise InvalidFieldError(
            f"{recognizer.manifest.name} looks at {len(recognizer.views)} parts of a frame, each on"
            " its own: there is no one map of them"
        )
    with turn():
        sender = Sender(options.camera, request_id, options.deadline)
        pixels, place = recognizer.shown(data, sender)
    left, top, right, bottom = place.part
    shown = Explanation(
        model=recognizer.manifest.name,
        model_version=recognizer.manifest.version,
        input=_png(pixels, recognizer.recipe.color),
        label=None,
        probability=None,
        box=(round(left), round(top), round(right - left), round(bottom - top)),
        places=(),
        without=(),
    )
    if not isinstance(recognizer.reader, ClassReader):
        return shown
    with turn():
        probabilities = _probabilities(recognizer, pixels)
    best = int(probabilities.argmax())
    whole = probabilities[best].clip(0, 1)
    without = _cover(recognizer, pixels, place, turn, best)
    places = _odds(whole) - _odds(without)
    return msgspec.structs.replace(
        shown,
        label=recognizer.labels[best].name,
        probability=float(whole),
        places=_rows(places, 3),
        without=_rows(without, 6),
    )


def _probabilities(recognizer: Recognizer, pixels: Pixels) -> NDArray[np.float32]:
    try:
        values: ClassValues = recognizer.reader.decode(recognizer.run_pixels(pixels))
    except NotFiniteError:
        raise ModelOutputError("the model's output for this frame is not finite") from None
    return values.probabilities


def _cover(
    recognizer: Recognizer, pixels: Pixels, place: Placement, turn: Turn, label: int
) -> NDArray[np.float64]:
    """Return the probability of a label with each place covered: [rows, columns]."""
    left, top, right, bottom = place.visible
    side = max(right - left, bottom - top) / PLACES
    columns = max(1, round((right - left) / side))
    rows = max(1, round((bottom - top) / side))
    wide, high = (right - left) / columns, (bottom - top) / rows
    visible = pixels[round(top) : round(bottom), round(left) : round(right)]
    paint = visible.reshape(-1, pixels.shape[2]).mean(axis=0).round().astype(np.uint8)
    without = np.zeros((rows, columns))
    for row in range(rows):
        for column in range(columns):
            x, y = left + (column - MARGIN) * wide, top + (row - MARGIN) * high
            covered = pixels.copy()
            covered[
                max(0, round(y)) : round(y + (1 + 2 * MARGIN) * high),
                max(0, round(x)) : round(x + (1 + 2 * MARGIN) * wide),
            ] = paint
            with turn():
                without[row, column] = _probabilities(recognizer, covered)[label]
    return without.clip(0, 1)


def _odds(probability: Any) -> Any:
    """Return the logarithm of odds."""
    kept = np.clip(np.float64(probability), EDGE, 1 - EDGE)
    return np.log(kept / (1 - kept))


def _rows(values: NDArray[np.float64], digits: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(value), digits) for value in row) for row in values)


def _png(pixels: Pixels, color: str) -> str:
    """Return the model's input pixels, in the recipe's colour order, as a PNG in base64."""
    upright = pixels[..., ::-1] if color == "rgb" else pixels
    _, data = cv2.imencode(".png", np.ascontiguousarray(upright))
    return base64.b64encode(data.tobytes()).decode()
