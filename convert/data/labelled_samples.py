"""Frames that a server kept and a person has labelled, as more to train on."""

from collections import Counter
from pathlib import Path

from convert.data.dataset import Dataset, DatasetError, LabelledFrame
from server.recognition.sample import labelled_samples


def with_samples(dataset: Dataset, folder: Path, model: str) -> Dataset:
    """`dataset` and the labelled samples of `model` in a server's folder of samples.

    A label that is none of its classes makes a new one; the classes are then sorted by name.
    Raises DatasetError for a folder that is not one of samples, or holds no labelled one of
    `model`.
    """
    if not folder.is_dir():
        raise DatasetError(
            f"--labelled {folder} is not a folder; it should be a server's, with"
            " ID.json beside each image"
        )
    try:
        found = list(labelled_samples(folder))
    except (OSError, ValueError) as error:
        raise DatasetError(f"--labelled: {error}") from None
    mine = [(path, sample.label) for path, sample in found if sample.model == model]
    if not mine:
        others = Counter(sample.model for _, sample in found)
        has = ", ".join(f"{count} of {name}" for name, count in sorted(others.items())) or "none"
        raise DatasetError(
            f"{folder} has no labelled samples of the model {model} (it has {has}):"
            " --labelled-of says which model's are wanted"
        )
    named = [(item.path, dataset.classes[item.label]) for item in dataset.frames]
    named += [(path, label) for path, label in mine if label is not None]
    classes = dataset.classes
    if new := {name for _, name in named} - set(classes):
        classes = tuple(sorted({*classes, *new}))
    places = {name: place for place, name in enumerate(classes)}
    return Dataset(classes, tuple(LabelledFrame(path, places[name]) for path, name in named))
