"""Checks a folder of labelled photographs before any training, or for the report of one."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from convert.data.dataset import Dataset
from convert.data.frames import decoded
from convert.folder_check import features as network_features
from convert.folder_check.curve import learning_curve
from convert.folder_check.judge import suspected
from convert.folder_check.near_duplicates import (
    Fingerprint,
    fingerprint,
    groups,
    near_duplicates,
)
from convert.folder_check.result import FolderCheck
from convert.recipe.choice import recipe_with
from convert.sources import imagenet
from convert.terminal import Terminal
from server.recognition.manifest import Recipe
from server.recognition.preprocessing import to_input_pixels
from server.system.resources import available_cores


def check_recipe(**view: object) -> Recipe:
    """Return the recipe by which frames are checked. view: fields of Recipe, such as the region."""
    return recipe_with(imagenet.recipe(network_features.SIZE), **view)


def read_fingerprints(
    frames: Iterable[Path], recipe: Recipe, terminal: Terminal
) -> dict[Path, Fingerprint]:
    """Return the fingerprint of each frame. Raises ConvertError naming a file that is not a
    readable image."""
    paths = list(frames)

    def one(path: Path) -> Fingerprint:
        return fingerprint(to_input_pixels(decoded(path, recipe), recipe))

    with (
        terminal.bar("Looking for near-duplicates", len(paths)) as advance,
        ThreadPoolExecutor(available_cores()) as workers,
    ):
        out = {}
        for path, found in zip(paths, workers.map(one, paths), strict=True):
            out[path] = found
            advance()
    return out


def grouped(dataset: Dataset, prints: Mapping[Path, Fingerprint]) -> dict[Path, int]:
    """Return a number for each frame, the same for those that are nearly the same picture."""
    paths = [item.path for item in dataset.frames]
    pairs = near_duplicates([prints[path] for path in paths]) or ()
    return dict(zip(paths, groups(len(paths), pairs).tolist(), strict=True))


def check_folder(
    train: Dataset,
    validation: Dataset | None,
    prints: Mapping[Path, Fingerprint],
    recipe: Recipe,
    terminal: Terminal,
    *,
    download: bool,
) -> FolderCheck:
    """Return what is to be said of the frames.

    recipe: of `check_recipe`, by which `prints` were made. download: fetch ImageNet's weights if
    they are not on this machine; without them labels are not looked at.

    Raises ConvertError if the weights can't be fetched, and for a file that is not a readable
    image.
    """
    frames = (*train.frames, *(validation.frames if validation else ()))
    held = len(validation.frames) if validation else 0
    pairs = near_duplicates([prints[item.path] for item in frames])
    if not download and not network_features.have_weights():
        why = "ImageNet's weights of MobileNetV2 1.0 at 224 pixels are not on this machine"
        return FolderCheck(train.classes, frames, held, pairs, why_not=why)
    paths = [item.path for item in frames]
    with terminal.bar("Features of the frames", len(paths)) as advance:
        features = network_features.read_features(paths, recipe, advance)
    labels = np.array([item.label for item in frames], np.intp)
    classes = len(train.classes)
    terminal.say("looking for labels that may be wrong, and at what more photographs would add")
    suspects = suspected(features, labels, classes)
    curve = learning_curve(features, labels, classes, groups(len(frames), pairs or ()))
    return FolderCheck(train.classes, frames, held, pairs, tuple(suspects), curve)
