"""Random variations of a frame, as parts on a belt show them.

They act on the model's uint8 input pixels, after the recipe. Nothing is shifted, zoomed or
mirrored at the border: what enters a picture that way looks like an edge or a defect that the
part does not have.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from server.recognition.frame import Pixels


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


def augment(pixels: Pixels, rng: Generator, bounds: Augmentation) -> Pixels:
    """uint8 [h, w, c] -> a varied copy of the same shape. The same `rng` state gives the same."""
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
    """A table [256] that changes gamma, contrast about mid-grey, and brightness."""
    level = np.arange(256) / 255
    level = level ** np.exp(rng.uniform(-1, 1) * bounds.gamma)
    level = (level - 0.5) * (1 + rng.uniform(-1, 1) * bounds.contrast) + 0.5
    level = level * (1 + rng.uniform(-1, 1) * bounds.brightness)
    return np.asarray(np.clip(np.rint(level * 255), 0, 255), np.uint8)
