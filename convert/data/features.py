"""A data set's frames as tensors: decoded and resized once, by the functions that serve."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.data.dataset import Dataset
from convert.errors import ConvertError
from server.recognition import frame
from server.recognition.frame import Pixels
from server.recognition.manifest import Recipe
from server.recognition.preprocessing import (
    Tensor,
    TensorSpec,
    apply_table,
    scaling_table,
    to_input_pixels,
)


def input_spec(recipe: Recipe) -> TensorSpec:
    """The float32 input [1, height, width, channels] of a model in training."""
    return TensorSpec("image", (1, recipe.height, recipe.width, recipe.channels), "float32")


def read_pixels(path: Path, recipe: Recipe, limits: frame.Limits) -> Pixels:
    """An image file -> uint8 [recipe.height, recipe.width, channels], as the server sees it.

    Raises OSError, and the errors of `frame.decode`.
    """
    return to_input_pixels(frame.decode(path.read_bytes(), recipe, limits), recipe)


def load_pixels(
    dataset: Dataset,
    recipe: Recipe,
    limits: frame.Limits,
    file: Path,
    on_image: Callable[[], object] = lambda: None,
) -> NDArray[np.uint8]:
    """All frames, uint8 [frames, height, width, channels], mapped from the .npy `file`.

    Where the file exists it is what an earlier call wrote; otherwise it is written, all or
    nothing. Raises ConvertError for a full disk, OSError, and the errors of `frame.decode`.
    """
    if not file.exists():
        shape = (len(dataset.frames), recipe.height, recipe.width, recipe.channels)
        part = file.with_suffix(".part")
        out = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
        _claim(part)
        for row, item in enumerate(dataset.frames):
            out[row] = read_pixels(item.path, recipe, limits)
            on_image()
        out.flush()
        part.replace(file)
    return np.load(file, mmap_mode="r")  # type: ignore[no-any-return]


def _claim(file: Path) -> None:
    """Takes the disk space of a file that has holes: to write into a mapped hole of a full disk
    kills the process. Raises ConvertError, and removes the file."""
    size = file.stat().st_size
    try:
        # Not every system has it.
        if hasattr(os, "posix_fallocate"):
            with file.open("r+b") as part:
                os.posix_fallocate(part.fileno(), 0, size)
    except OSError as error:
        file.unlink()
        raise ConvertError(
            f"{file.parent} can't hold the {size / 1e6:.0f} MB of decoded frames: {error.strerror}"
        ) from None


def to_batch(pixels: Sequence[Pixels] | NDArray[np.uint8], recipe: Recipe) -> Tensor:
    """uint8 frames [n][height, width, channels] -> float32 [n, height, width, channels], scaled
    by the recipe."""
    table = scaling_table(recipe, input_spec(recipe))
    return np.asarray(np.concatenate([apply_table(np.asarray(p), table) for p in pixels]))


def labels_of(dataset: Dataset) -> NDArray[np.int64]:
    """The class index of each frame, int64 [frames]."""
    return np.array([item.label for item in dataset.frames], np.int64)


def class_weights(counts: Sequence[int]) -> NDArray[np.float32]:
    """Weight of a frame of each class: proportional to 1 / sqrt(count), 1 on average over frames.

    The root, because with 1 / count a class of a dozen frames shouts down one of hundreds.
    """
    counted = np.asarray(counts, np.float64)
    weights = 1 / np.sqrt(counted)
    return np.asarray(weights * counted.sum() / (weights * counted).sum(), np.float32)
