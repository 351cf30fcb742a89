"""The features by which a folder is judged before any training: those of ImageNet's MobileNetV2."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.quantization.editor import read_last
from convert.sources import imagenet
from convert.sources.keras import from_keras
from convert.terminal import tensorflow
from convert.training import network
from server.recognition.manifest import Recipe

SIZE = 224
# Directions in which the features vary most; more of them did not find more wrong labels.
_DIRECTIONS = 256
_CHUNK = 64


def read_features(
    frames: Sequence[Path], recipe: Recipe, on_image: Callable[[], object] = lambda: None
) -> NDArray[np.float32]:
    """Return the pooled features of each frame in their strongest directions, of a mean square of 1
    a frame: [frames, directions].

    recipe: with SIZE as sides and the scaling of `imagenet.recipe`. Raises ConvertError if the
    weights are not to be had, and naming a file that is not a readable image.
    """
    keras = tensorflow().keras
    model = from_keras(network.backbone(keras, 1.0, SIZE, "imagenet"))
    parts = []
    for start in range(0, len(frames), _CHUNK):
        part = frames[start : start + _CHUNK]
        parts.append(read_last(model, part, recipe))
        for _ in part:
            on_image()
    return strongest(np.concatenate(parts))


def strongest(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return features [frames, n] standardised, in at most _DIRECTIONS directions."""
    values = features.astype(np.float64)
    values = (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-9)
    left, sizes, _ = np.linalg.svd(values, full_matrices=False)
    values = (left * sizes)[:, :_DIRECTIONS]
    return np.asarray(values / np.sqrt((values**2).sum(axis=1).mean() or 1.0), np.float32)


def have_weights() -> bool:
    """Return True if `read_features` would download nothing."""
    return (imagenet.cache_folder() / network.backbone_file(1.0, SIZE)).is_file()
