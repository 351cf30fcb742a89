"""Labelled images on disk: a folder a class, or a CSV; read, checked and divided."""

import csv
import math
import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convert.data.labels import similar_classes
from convert.errors import ConvertError, DatasetError
from server.recognition.sample import labelled_samples
from server.values.labels import Label

# Files that file managers make in a folder of pictures.
IGNORED = frozenset({"thumbs.db", "desktop.ini"})
# Suffixes of pictures. Other files, such as lists, may be beside the folders of classes.
PICTURES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


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
        """Return frames of each class, in the order of `classes`."""
        counts = [0] * len(self.classes)
        for item in self.frames:
            counts[item.label] += 1
        return tuple(counts)


def read_dataset(path: Path, classes: Sequence[str] | None = None) -> Dataset:
    """Return the labelled images of a folder or a CSV; none is opened yet.

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
    unusable = [repr(name) for name in by_class if not fits_a_line(name)]
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


def fits_a_line(name: str) -> bool:
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
    """Yield files and folders in `folder` and its sub-folders.

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


def split(
    dataset: Dataset, share: float, seed: int, groups: Mapping[Path, int] | None = None
) -> tuple[Dataset, Dataset]:
    """Return two data sets of the same classes: what stays, and the held-out `share` (0..1) of each
    class.

    groups: frames of one number stay on one side, if their class then has some on each.

    Of a class of at least two frames at least one is held out and one stays. The same seed and
    files give the same halves.
    """
    rng = random.Random(seed)
    kept: list[LabelledFrame] = []
    held: list[LabelledFrame] = []
    decided: dict[int, bool] = {}
    for label in range(len(dataset.classes)):
        frames = [item for item in dataset.frames if item.label == label]
        rng.shuffle(frames)
        count = min(max(1, math.floor(len(frames) * share + 0.5)), len(frames) - 1)
        chosen = [place < count for place in range(len(frames))]
        if groups:
            numbers = [groups[item.path] for item in frames]
            whole = _whole_groups(numbers, count, decided)
            chosen = whole if 0 < sum(whole) < len(frames) else chosen
            decided |= dict(zip(numbers, chosen, strict=True))
        held += [item for item, is_held in zip(frames, chosen, strict=True) if is_held]
        kept += [item for item, is_held in zip(frames, chosen, strict=True) if not is_held]
    return (
        Dataset(dataset.classes, tuple(sorted(kept, key=lambda i: (i.label, i.path)))),
        Dataset(dataset.classes, tuple(sorted(held, key=lambda i: (i.label, i.path)))),
    )


def _whole_groups(numbers: Sequence[int], count: int, decided: Mapping[int, bool]) -> list[bool]:
    """Return which of one class's frames are held out: whole groups in their order, as long as
    there are at most `count` frames; the smallest if none has so few. decided: of groups that
    another class has frames of."""
    sizes = Counter(numbers)
    out = {number: decided[number] for number in sizes if number in decided}
    total = sum(sizes[number] for number, is_held in out.items() if is_held)
    free = [number for number in dict.fromkeys(numbers) if number not in out]
    for number in free:
        out[number] = total + sizes[number] <= count
        total += sizes[number] * out[number]
    if not total and free:
        out[min(free, key=lambda number: sizes[number])] = True
    return [out[number] for number in numbers]


def images(folder: Path) -> tuple[Path, ...]:
    """Return every file in a folder and its sub-folders, hidden ones left out, sorted.

    Raises ConvertError if it is not a folder or is empty, DatasetError as `all_files` does.
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
    """Return True if `read_dataset` reads the path: a CSV, or a folder with sub-folders."""
    return path.is_file() or any(
        p.is_dir() and not p.name.startswith(".") for p in (path.iterdir() if path.is_dir() else ())
    )


def labelled(path: Path, labels: Sequence[Label]) -> Dataset:
    """Return the labelled frames of a folder or CSV whose classes are names or ids of `labels`.

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
