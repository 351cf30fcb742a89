"""Folders of image files: listed, matched with labels, and decoded as the server decodes them."""

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.data.dataset import IGNORED, Dataset, LabelledFrame, all_files, read_dataset
from convert.data.similar_names import similar_classes
from convert.errors import ConvertError
from server.errors import LinesideError
from server.recognition import frame
from server.recognition.manifest import Label, Recipe
from server.recognition.preprocessing import TensorSpec, scaling_table, to_tensor


def images(folder: Path) -> tuple[Path, ...]:
    """Every file in a folder and its sub-folders, hidden ones left out, sorted.

    Raises ConvertError where it is not a folder or is empty, DatasetError as `all_files` does.
    """
    if not folder.is_dir():
        raise ConvertError(f"{folder} is not a folder")
    found = sorted(
        path
        for path in all_files(folder)
        if path.is_file()
        and path.name.lower() not in IGNORED
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise ConvertError(f"{folder} holds no images")
    return tuple(found)


def is_labelled(path: Path) -> bool:
    """Whether a path is what `read_dataset` reads: a CSV, or a folder with sub-folders."""
    return path.is_file() or any(
        p.is_dir() and not p.name.startswith(".") for p in (path.iterdir() if path.is_dir() else ())
    )


def labelled(path: Path, labels: Sequence[Label]) -> Dataset:
    """The labelled frames of a folder or CSV whose classes are names or ids of `labels`.

    The frames' labels are indices into `labels`. Raises ConvertError for a class that is none of
    them or several, and for no frames; DatasetError as `read_dataset` does.
    """
    found = read_dataset(path)
    if not found.frames:
        raise ConvertError(f"{path} holds no images")
    places = [_place(name, labels, path) for name in found.classes]
    return Dataset(
        tuple(label.name for label in labels),
        tuple(LabelledFrame(item.path, places[item.label]) for item in found.frames),
    )


def _place(name: str, labels: Sequence[Label], path: Path) -> int:
    hits = [i for i, label in enumerate(labels) if name in (label.name, label.id)]
    plain = unicodedata.normalize("NFC", name)
    hits = hits or [
        i for i, label in enumerate(labels) if unicodedata.normalize("NFC", label.name) == plain
    ]
    if not hits:
        like = next(
            (y for x in labels for _, y in similar_classes({name: 0, x.name: 1}) if y != name), None
        )
        meant = f"; is it meant to be {like}?" if like else ""
        raise ConvertError(
            f"{path} has the class {name}, which is not one of the model's labels{meant}"
        )
    if len(hits) > 1:
        ids = ", ".join(labels[i].id or str(i) for i in hits)
        raise ConvertError(f"{path} has the class {name}, which {ids} share: name it by its id")
    return hits[0]


def decoded(path: Path, recipe: Recipe) -> frame.Pixels:
    """The file's pixels as the server would decode them. Raises ConvertError naming the file."""
    try:
        return frame.decode(path.read_bytes(), recipe, frame.Limits())
    except OSError as error:
        raise ConvertError(f"{path} can't be read: {error.strerror}") from None
    except LinesideError as error:
        raise ConvertError(f"{path}: {error.message}") from None


def tensors(paths: Sequence[Path], recipe: Recipe) -> Iterator[NDArray[np.float32]]:
    """The frames as a float model's input, [1, height, width, channels], one by one.

    Raises ConvertError naming a file that is not a readable image.
    """
    spec = float_input(recipe)
    for path in paths:
        yield to_tensor(decoded(path, recipe), recipe, spec)


def input_range(recipe: Recipe) -> tuple[float, float]:
    """The lowest and the highest value that `recipe` makes of any pixel."""
    table = scaling_table(recipe, float_input(recipe))
    return float(table.min()), float(table.max())


def float_input(recipe: Recipe) -> TensorSpec:
    """The input of a float model that `recipe` feeds one frame: float32 [1, height, width,
    channels]."""
    return TensorSpec("input", (1, recipe.height, recipe.width, recipe.channels), "float32")
