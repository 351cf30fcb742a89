"""Labels and names of classes: read from a file, and compared for names that may mean one class."""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path

from convert.errors import ConvertError
from server.errors import BundleError
from server.values.labels import Label, parse_labels

# A misspelling has few pictures beside the class that was meant.
_SMALL_SHARE = 0.2
_MIN_LENGTH, _LONG = 4, 8


def read_labels(path: Path) -> tuple[Label, ...]:
    """Return labels in output order, `LABEL` or `ID<TAB>LABEL` a line. Raises ConvertError.

    Numbers that only count the lines from 0, as Teachable Machine writes them (`0 Good Part`), are
    left out.
    """
    labels = _labels_as_written(path)
    return _without_numbers(labels) or labels


def is_numbered(path: Path) -> bool:
    """True if `read_labels` leaves numbers out."""
    return _without_numbers(_labels_as_written(path)) is not None


def _labels_as_written(path: Path) -> tuple[Label, ...]:
    try:
        return parse_labels(path.read_bytes(), str(path))
    except OSError as error:
        raise ConvertError(f"{path} can't be read: {error.strerror}") from None
    except BundleError as error:
        raise ConvertError(str(error)) from None


def _without_numbers(labels: tuple[Label, ...]) -> tuple[Label, ...] | None:
    """Return the labels without their numbers; None if not every line has its own, or the numbers
    tell labels apart ("0 holes", "1 hole", "2 holes")."""
    names = []
    for number, label in enumerate(labels):
        first, _, name = label.name.partition(" ")
        if label.id or first != str(number) or not name.strip():
            return None
        names.append(name.strip())
    if len(names) < 2 or len(set(names)) < len(names):
        return None
    return tuple(Label(name) for name in names)


def similar_classes(counts: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield pairs of names that may mean one class, the one with fewer pictures first.

    counts: pictures of each class. A pair differs only by capitals, spaces, dashes, underscores or
    the form of Unicode; or by one letter (two if long) if one has at most a fifth of the other's
    pictures. Names that differ by a number or a single letter as a word, such as `side a` and
    `side b`, are two classes.
    """
    for pair in combinations(counts, 2):
        fewer, more = sorted(pair, key=lambda name: counts[name])
        rare = counts[fewer] <= _SMALL_SHARE * counts[more]
        if _letters(fewer) == _letters(more) or (rare and _misspelt(fewer, more)):
            yield fewer, more


def _plain(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _letters(name: str) -> str:
    return re.sub(r"[\s_-]+", "", _plain(name))


def _misspelt(one: str, other: str) -> bool:
    first, second = _letters(one), _letters(other)
    shorter, longer = sorted((first, second), key=len)
    if len(shorter) < _MIN_LENGTH or re.findall(r"\d+", first) != re.findall(r"\d+", second):
        return False
    words = [[word for word in re.split(r"[\s_-]+", _plain(name)) if word] for name in (one, other)]
    if len(words[0]) == len(words[1]):
        different = [(a, b) for a, b in zip(*words, strict=True) if a != b]
        if all(len(a) == len(b) == 1 for a, b in different):
            return False
    distance = _distance(first, second)
    # `incomplete` is no misspelling of `complete`.
    return distance == 1 or (distance == 2 and len(shorter) >= _LONG and shorter not in longer)


def _distance(one: str, other: str) -> int:
    """Letters added, left out, changed or swapped with their neighbour between two words."""
    rows = [list(range(len(other) + 1))]
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            best = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]
