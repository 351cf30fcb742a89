"""The input of a training: frames decoded once, as batches, weighted by class and varied."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from convert.data.dataset import Dataset
from convert.data.frames import float_spec
from convert.errors import ConvertError
from server.recognition import frame
from server.recognition.frame import Pixels
from server.recognition.manifest import Recipe
from server.recognition.preprocessing import (
    Tensor,
    apply_table,
    scaling_table,
    to_input_pixels,
)


def read_pixels(path: Path, recipe: Recipe, limits: frame.Limits) -> Pixels:
    """Read an image file as uint8 [recipe.height, recipe.width, channels], as the server sees it.

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
    """Return all frames, uint8 [frames, height, width, channels], mapped from the .npy `file`.

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
    """Take the disk space of a file that has holes: to write into a mapped hole of a full disk
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
    table = scaling_table(recipe, float_spec(recipe))
    return np.asarray(np.concatenate([apply_table(np.asarray(p), table) for p in pixels]))


def labels_of(dataset: Dataset) -> NDArray[np.int64]:
    """Return the class index of each frame, int64 [frames]."""
    return np.array([item.label for item in dataset.frames], np.int64)


def class_weights(counts: Sequence[int]) -> NDArray[np.float32]:
    """Weight of a frame of each class: proportional to 1 / sqrt(count), 1 on average over frames.
    A class without frames weighs nothing.

    The root, because with 1 / count a class of a dozen frames shouts down one of hundreds.
    """
    counted = np.asarray(counts, np.float64)
    weights = np.where(counted > 0, 1 / np.sqrt(np.maximum(counted, 1)), 0)
    return np.asarray(weights * counted.sum() / (weights * counted).sum(), np.float32)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Bounds of the variations.

    flips: left-right and up-down, each in half of the frames. rotation: degrees either way; the
    corners that turn in are filled with the nearest pixel. brightness, contrast: relative, either
    way. gamma: exponent's natural logarithm, either way. noise: largest standard deviation in grey
    levels. blur: largest standard deviation in pixels.
    """

    flips: bool = True
    rotation: float = 3.0
    brightness: float = 0.15
    contrast: float = 0.15
    gamma: float = 0.15
    noise: float = 3.0
    blur: float = 0.7

    def scaled(self, strength: float) -> "Augmentation":
        """Return these bounds times `strength`, 0 or more; flips stay as they are."""
        names = ("rotation", "brightness", "contrast", "gamma", "noise", "blur")
        return replace(self, **{name: strength * getattr(self, name) for name in names})


def augment(pixels: Pixels, rng: Generator, bounds: Augmentation) -> Pixels:
    """Return a varied copy of pixels, uint8 [h, w, c]. The same `rng` state gives the same copy."""
    out = pixels
    if bounds.flips:
        out = out[:: rng.choice([1, -1]), :: rng.choice([1, -1])]
    out = _rotate(np.ascontiguousarray(out), rng.uniform(-1, 1) * bounds.rotation)
    sigma = rng.uniform(0.2, 1) * bounds.blur if rng.random() < 0.3 else 0.0
    if sigma:
        out = cv2.GaussianBlur(out, (0, 0), sigma)  # type: ignore[assignment]
    out = cv2.LUT(out, _tone(rng, bounds))  # type: ignore[assignment]
    deviation = rng.uniform(0, 1) * bounds.noise if rng.random() < 0.5 else 0.0
    if deviation:
        noisy = out + rng.normal(0, deviation, pixels.shape).astype(np.float32)
        out = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    return np.asarray(out, np.uint8).reshape(pixels.shape)


def _rotate(pixels: Pixels, degrees: float) -> Pixels:
    height, width = pixels.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    turned = cv2.warpAffine(pixels, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(turned, np.uint8)


def _tone(rng: Generator, bounds: Augmentation) -> Pixels:
    """Make a table [256] that changes gamma, contrast about mid-grey, and brightness."""
    level = np.arange(256) / 255
    level = level ** np.exp(rng.uniform(-1, 1) * bounds.gamma)
    level = (level - 0.5) * (1 + rng.uniform(-1, 1) * bounds.contrast) + 0.5
    level = level * (1 + rng.uniform(-1, 1) * bounds.brightness)
    return np.asarray(np.clip(np.rint(level * 255), 0, 255), np.uint8)


def mixed(
    pixels: NDArray[np.uint8], targets: NDArray[np.float32], rng: Generator, spread: float
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return each frame mixed with another of the batch, and its targets alike.

    pixels: uint8 [n, height, width, channels]. targets: float32 [n, values]. The frame's own share
    is at least a half, and drawn from a beta distribution of `spread` on both sides: Zhang et al.,
    «mixup: beyond empirical risk minimization», 2018 (arXiv:1710.09412).
    """
    share = rng.beta(spread, spread, len(pixels)).astype(np.float32)
    share = np.maximum(share, 1 - share)
    other = rng.permutation(len(pixels))
    own = share[:, None, None, None]
    both = own * pixels + (1 - own) * pixels[other]
    weight = share[:, None]
    return np.rint(both).astype(np.uint8), weight * targets + (1 - weight) * targets[other]
