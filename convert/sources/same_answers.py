"""Compares a .tflite with the function that it was made of, on the same picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from convert.errors import ConvertError
from convert.native_output import suppress_native_output
from convert.recipe.readings import READINGS, picture_of_all_levels

# Of the range of the answers: half-precision arithmetic is off by less.
_TOLERANCE = 0.05


def check_same_answers(tf: Any, function: Any, data: bytes, readings: Sequence[str]) -> None:
    """Raises ConvertError if the float32 .tflite `data` answers otherwise than `function`.

    function: concrete, of one float32 image. readings: the ways to feed it that are tried, at most
    two of them; pixels of -1..1 if there is none.
    """
    with suppress_native_output():
        interpreter = Interpreter(model_content=data, num_threads=1)
        interpreter.allocate_tensors()
        [taken], [given] = interpreter.get_input_details(), interpreter.get_output_details()
        height, width, channels = (int(side) for side in taken["shape"][1:])
        picture = picture_of_all_levels((height, width, channels))
        colours = [n for n in readings if channels == 3 or isinstance(READINGS[n].offset, float)]
        for name in colours[:2] or ["-1..1"]:
            image = READINGS[name].feed(picture)
            interpreter.set_tensor(taken["index"], image)
            interpreter.invoke()
            ours = interpreter.get_tensor(given["index"]).astype(np.float64).ravel()
            answer = next(iter(tf.nest.flatten(function(tf.constant(image)))))
            theirs = np.asarray(answer, np.float64).ravel()
            if not np.isfinite(theirs).all():
                continue
            off = np.abs(ours - theirs).max()
            if not off <= _TOLERANCE * max(1.0, np.abs(theirs).max()):
                raise ConvertError(
                    "the .tflite that TensorFlow's converter made answers otherwise than the model,"
                    f" by {off:.2g} on the same picture: does the model draw random numbers?"
                )
