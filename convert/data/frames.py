"""Folders of image files: listed, matched with labels, and decoded as the server decodes them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.errors import ConvertError
from server.errors import LinesideError
from server.recognition import frame
from server.recognition.images.views import views
from server.recognition.manifest import Recipe
from server.recognition.preprocessing import TensorSpec, apply_table, scaling_table, to_input_pixels


def decoded(path: Path, recipe: Recipe) -> frame.Pixels:
    """Return the file's pixels as the server would decode them. Raises ConvertError naming the
    file."""
    try:
        return frame.decode(path.read_bytes(), recipe, frame.Limits())
    except OSError as error:
        raise ConvertError(f"{path} can't be read: {error.strerror}") from None
    except LinesideError as error:
        raise ConvertError(f"{path}: {error.message}") from None


def input_range(recipe: Recipe) -> tuple[float, float]:
    """Return the lowest and the highest value that `recipe` makes of any pixel."""
    table = scaling_table(recipe, float_spec(recipe))
    return float(table.min()), float(table.max())


def float_spec(recipe: Recipe) -> TensorSpec:
    """Return the input of a float model that `recipe` feeds one frame: float32 [1,
    *recipe.shape]."""
    return TensorSpec("input", (1, *recipe.shape), "float32")


def tensors(
    frames: Sequence[Path] | NDArray[np.uint8], recipe: Recipe, spec: TensorSpec | None = None
) -> Iterator[NDArray[Any]]:
    """Yield each view of frames as a model's input, [1, *recipe.shape].

    frames: image files, or pixels that `to_input_pixels` made, uint8 [frames, height, width,
    channels]. spec: the model's input; that of a float model if None. Raises ConvertError that
    names a file that is not a readable image.
    """
    table = scaling_table(recipe, spec or float_spec(recipe))
    for item in frames:
        if isinstance(item, Path):
            whole = decoded(item, recipe)
            pixels = [to_input_pixels(whole, view) for view in views(recipe)]
        else:
            pixels = [np.asarray(item)]
        yield from (apply_table(each, table, recipe.layout) for each in pixels)
