"""Checks a data set before a training: too few, damaged, repeated or leaked images."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from convert.data.dataset import Dataset
from convert.data.labels import similar_classes
from convert.errors import DatasetError
from server.errors import LinesideError
from server.recognition import frame
from server.recognition.manifest import Recipe
from server.system.resources import available_cores

# One to train on and one to choose the epoch by.
MIN_FRAMES = 2
# Every pixel at its full size, so that two encodings of one picture compare equal.
EXACT = Recipe(width=1, height=1, decode="exact")


def check_dataset(
    train: Dataset,
    validation: Dataset | None,
    limits: frame.Limits,
    on_image: Callable[[], object] = lambda: None,
    *,
    allow_similar: bool = False,
    partial: bool = False,
) -> None:
    """Decode every image, as the server would, and refuses what would spoil a training.

    `on_image` is called once for each image, for a progress bar. allow_similar: classes whose names
    look like one are two. partial: the frames are a part of a larger set, so that one class, or one
    frame of a class, is enough.

    Raises one DatasetError that lists everything found: fewer than two classes, a class with fewer
    than MIN_FRAMES images (or, in the validation set, with none), classes whose names look like
    one, files that are missing or do not decode, files whose bytes or whose pixels occur twice in
    one set, and those that occur in both.
    """
    problems: list[str] = [] if partial else [*_class_problems(train, validation)]
    if not allow_similar:
        problems += _similar(train)
    parts = [("training", train)] + ([("validation", validation)] if validation else [])
    broken: list[str] = []
    seen: dict[str, dict[str, list[str]]] = {}
    for name, dataset in parts:
        by_content: dict[str, list[str]] = defaultdict(list)
        paths = [item.path for item in dataset.frames]
        for item, result in zip(dataset.frames, _digests(paths, limits), strict=True):
            on_image()
            if isinstance(result, str):
                by_content[result].append(f"{item.path} ({dataset.classes[item.label]})")
            else:
                broken.append(f"{item.path}: {result}")
        seen[name] = by_content
        twice = [" = ".join(files) for files in by_content.values() if len(files) > 1]
        problems += _listed(f"the same picture more than once in the {name} set", twice)
    problems += _listed("not readable as an image", broken)
    if validation:
        problems += _listed("in the training set and in the validation set", _leaks(seen))
    if problems:
        raise DatasetError("These images can't be used:\n" + "\n".join(problems))


def _class_problems(train: Dataset, validation: Dataset | None) -> Iterator[str]:
    if len(train.classes) < 2:
        only = ", ".join(train.classes)
        yield f"only one class ({only}): a classifier needs at least two"
    for name, count in zip(train.classes, train.counts(), strict=True):
        if count < MIN_FRAMES:
            number = f"has {count or 'no'} image{'s' if count != 1 else ''}"
            yield f"class {name} {number} to train on: at least {MIN_FRAMES} are needed"
    if validation:
        for name, count in zip(validation.classes, validation.counts(), strict=True):
            if not count:
                yield f"class {name} has no images to validate on: at least 1 is needed"


def _similar(train: Dataset) -> list[str]:
    counts = dict(zip(train.classes, train.counts(), strict=True))
    pairs = [
        f"{one!r} ({counts[one]} images) and {other!r} ({counts[other]} images)"
        for one, other in similar_classes(counts)
    ]
    if not pairs:
        return []
    advice = "  if these are one class, put their images together; if not, --allow-similar-classes"
    return [*_listed("classes whose names look like one", pairs), advice]


def _digests(
    paths: Sequence[Path], limits: frame.Limits
) -> Iterator[str | LinesideError | OSError]:
    def digest(path: Path) -> str | LinesideError | OSError:
        try:
            # Two files of the same bytes have the same pixels, so the pixels tell both.
            pixels = frame.decode(path.read_bytes(), EXACT, limits)
        except (LinesideError, OSError) as error:
            return error
        return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()

    with ThreadPoolExecutor(available_cores()) as workers:
        yield from workers.map(digest, paths)


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    return [f"{title} ({len(lines)}):", *(f"  {line}" for line in lines)] if lines else []


def _leaks(seen: Mapping[str, Mapping[str, list[str]]]) -> list[str]:
    train, validation = seen["training"], seen["validation"]
    return [
        " = ".join([*train[digest], *files])
        for digest, files in validation.items()
        if digest in train
    ]
