"""Labelled images on disk: a folder a class, or a CSV; read, checked and divided."""

import csv
import hashlib
import math
import random
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from convert.data.similar_names import similar_classes
from server.errors import LinesideError
from server.recognition import frame
from server.recognition.manifest import Recipe
from server.system.machine.cores import available_cores

# What file managers leave in a folder of pictures.
IGNORED = frozenset({"thumbs.db", "desktop.ini"})
# Beside the folders of classes, where lists and notes may lie too.
PICTURES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
# One to learn from and one to choose the epoch by.
MIN_FRAMES = 2
# Every pixel, whatever the model's size, so that two encodings of one picture compare equal.
EXACT = Recipe(width=1, height=1, decode="exact")


class DatasetError(ValueError):
    """The images can't be trained or validated on; the message names the files."""


@dataclass(frozen=True, slots=True)
class LabelledFrame:
    """An image file and the index of its class."""

    path: Path
    label: int


@dataclass(frozen=True, slots=True)
class Dataset:
    """`classes` in output order; every frame's `label` is an index into it."""

    classes: tuple[str, ...]
    frames: tuple[LabelledFrame, ...]

    def counts(self) -> tuple[int, ...]:
        """Frames of each class, in the order of `classes`."""
        counts = [0] * len(self.classes)
        for item in self.frames:
            counts[item.label] += 1
        return tuple(counts)


def read_dataset(path: Path, classes: Sequence[str] | None = None) -> Dataset:
    """The labelled images of a folder or a CSV; none is opened yet.

    A folder has one sub-folder a class, searched to its depth; hidden files are left out, and
    every other file counts as an image. A CSV has the columns `path` (relative to the CSV) and
    `label`. Classes are sorted by name unless `classes` gives their order; then no other may occur.

    Raises DatasetError for a path that is neither, a CSV without those columns or with an empty
    field, a class that `classes` doesn't have or whose name labels.txt can't hold, a picture beside
    the folders of classes, and a link to nowhere.
    """
    if path.is_dir():
        by_class = _folder(path)
    elif path.is_file():
        by_class = _csv(path)
    else:
        raise DatasetError(f"{path} is neither a folder of classes nor a CSV of path,label")
    unusable = [repr(name) for name in by_class if not _fits_a_line(name)]
    if unusable:
        raise DatasetError(
            f"{path} has the class {', '.join(unusable)}: a name can't begin or end with a space,"
            " or hold a tab, a line break or another control character"
        )
    if classes is None:
        classes = sorted(by_class)
    else:
        by_class = _named_as(classes, by_class)
    unknown = sorted(set(by_class) - set(classes))
    if unknown:
        raise DatasetError(
            f"{path} has the class {', '.join(unknown)}, which is not one of {', '.join(classes)}"
        )
    return Dataset(
        tuple(classes),
        tuple(
            LabelledFrame(file, label)
            for label, name in enumerate(classes)
            for file in by_class.get(name, ())
        ),
    )


def _named_as(classes: Sequence[str], by_class: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    """`by_class` under the names of `classes`, if they differ only by how Unicode writes accents:
    macOS writes them as letters of their own."""
    known = {unicodedata.normalize("NFC", name): name for name in classes}
    out: dict[str, list[Path]] = {}
    for name, files in by_class.items():
        own = name if name in classes else known.get(unicodedata.normalize("NFC", name), name)
        out[own] = [*out.get(own, ()), *files]
    return out


# Names of folders that each hold a folder a class.
SPLITS = frozenset(
    {"train", "training", "val", "valid", "validation", "test", "testing", "holdout"}
)


def _fits_a_line(name: str) -> bool:
    """Return True if a name comes back as it is from a line of labels.txt."""
    # Control characters, undecodable bytes of a file name, line and paragraph separators.
    bad = {"Cc", "Cs", "Zl", "Zp"}
    return name == name.strip() and not any(unicodedata.category(c) in bad for c in name)


def _folder(path: Path) -> dict[str, list[Path]]:
    names = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise DatasetError(f"{path} has no sub-folders; it should have one a class")
    if all(name.lower() in SPLITS for name in names):
        raise DatasetError(
            f"{path} has the folders {', '.join(names)}, which look like parts of one set of frames"
            " and not like classes: name the one to use"
        )
    loose = sorted(
        p.name
        for p in path.iterdir()
        if p.suffix.lower() in PICTURES and not p.is_dir() and not _ignored(p.name)
    )
    if loose:
        raise DatasetError(
            f"{path} has {_some(loose)} beside the folders of its classes: move it into one"
        )
    return {name: sorted(_images(path / name)) for name in names}


def _images(folder: Path) -> Iterator[Path]:
    for file in all_files(folder):
        if any(_ignored(part) for part in file.relative_to(folder).parts):
            continue
        if file.is_symlink() and not file.exists():
            raise DatasetError(f"{file} is a link to a file that does not exist")
        if file.is_file():
            yield file


def all_files(folder: Path) -> Iterator[Path]:
    """Files and folders in `folder` and its sub-folders.

    Raises DatasetError for a link to a folder, whose frames would be passed over, and for a name
    that is no text, which no report could hold.
    """
    for path in folder.rglob("*"):
        if path.is_symlink() and path.is_dir():
            raise DatasetError(f"{path} is a link to a folder: put the folder itself there")
        if not _is_text(path.name):
            raise DatasetError(f"{path.parent} has a file whose name is not UTF-8: {path.name!r}")
        yield path


def _is_text(name: str) -> bool:
    return not any(unicodedata.category(letter) == "Cs" for letter in name)


def _ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _csv(path: Path) -> dict[str, list[Path]]:
    by_class: dict[str, list[Path]] = defaultdict(list)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"path", "label"} <= set(rows.fieldnames or ()):
                raise DatasetError(f"{path} should have the columns path and label in its 1st line")
            for row in rows:
                name, label = (row["path"] or "").strip(), (row["label"] or "").strip()
                if not name or not label:
                    raise DatasetError(f"{path} line {rows.line_num} lacks its path or its label")
                if "\0" in name:
                    raise DatasetError(f"{path} line {rows.line_num} has a NUL in its path")
                by_class[label].append(path.parent / name)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} is not a CSV in UTF-8: {error}") from None
    return by_class


def check_dataset(
    train: Dataset,
    validation: Dataset | None,
    limits: frame.Limits,
    on_image: Callable[[], object] = lambda: None,
    *,
    allow_similar: bool = False,
) -> None:
    """Decodes every image, as the server would, and refuses what would spoil a training.

    `on_image` is called once for each image, for a progress bar. allow_similar: classes whose names
    look like one are two.

    Raises one DatasetError that lists everything found: fewer than two classes, a class with fewer
    than MIN_FRAMES images (or, in the validation set, with none), classes whose names look like
    one, files that are missing or do not decode, files whose bytes or whose pixels occur twice in
    one set, and those that occur in both.
    """
    problems = [*_class_problems(train, validation)]
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


def split(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Two data sets of the same classes: what stays, and the held-out `share` (0..1) of each class.

    Of a class of at least two frames at least one is held out and one stays. The same seed and
    files give the same halves.
    """
    rng = random.Random(seed)
    kept: list[LabelledFrame] = []
    held: list[LabelledFrame] = []
    for label in range(len(dataset.classes)):
        frames = [item for item in dataset.frames if item.label == label]
        rng.shuffle(frames)
        count = min(max(1, math.floor(len(frames) * share + 0.5)), len(frames) - 1)
        held += frames[:count]
        kept += frames[count:]
    return (
        Dataset(dataset.classes, tuple(sorted(kept, key=lambda i: (i.label, i.path)))),
        Dataset(dataset.classes, tuple(sorted(held, key=lambda i: (i.label, i.path)))),
    )
