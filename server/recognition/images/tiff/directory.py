"""The directory of a TIFF (TIFF 6.0, section 2; BigTIFF as libtiff specifies it), read strictly.

Libraries repair what is wrong here by guessing. A directory that is not what the specification
says is refused instead.
"""

import struct
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from server.errors import UndecodableImageError
from server.recognition.images.header import MAX_TAGS, TIFF_SIZES

# A strip for every row and colour, or small tiles, stay below.
MAX_NUMBERS = 1 << 18
# The next directories are thumbnails and masks of the first; a file has a few.
MAX_DIRECTORIES = 64
SUBFILE, OLD_SUBFILE = 254, 255
REDUCED, PAGE, MASK = 1, 2, 4
OLD_FULL, OLD_REDUCED, OLD_PAGE = 1, 2, 3
NUMBER_TYPES = {3: "u2", 4: "u4", 16: "u8"}
RATIONAL = 5


class _Form(NamedTuple):
    """The layout of numbers. order: of bytes, < or >; start: place of the first directory's offset;
    offset, length, entry: struct's formats of an offset, of the number of entries, and of an entry
    without its value; inline: bytes of a value that is in its entry."""

    order: str
    start: int
    offset: str
    length: str
    entry: str
    inline: int


class Entry(NamedTuple):
    """One tag: TIFF's number of its type, the number of its values, and their offset."""

    kind: int
    number: int
    at: int


class Directory:
    """The first directory of a TIFF. Every method raises UndecodableImageError for a tag that is
    not what it should be."""

    def __init__(self, data: bytes, order: str, entries: Mapping[int, Entry]) -> None:
        self.order = order
        self.entries = entries
        self._data = data

    def numbers(self, tag: int) -> list[int]:
        """Returns the whole numbers of a tag, none if the tag is missing."""
        entry = self.entries.get(tag)
        if entry is None:
            return []
        if entry.kind not in NUMBER_TYPES or not entry.number:
            raise UndecodableImageError(f"the TIFF is damaged: its tag {tag} is no whole number")
        kind = np.dtype(self.order + NUMBER_TYPES[entry.kind])
        values: list[int] = np.frombuffer(self._data, kind, entry.number, entry.at).tolist()
        return values

    def number(self, tag: int, default: int | None = None) -> int:
        """Returns the whole number of a tag that has one, `default` if the tag is missing."""
        values = self.numbers(tag) or ([] if default is None else [default])
        if len(values) != 1:
            raise UndecodableImageError(
                f"the TIFF is damaged: its tag {tag} is {'missing' if not values else 'a list'}"
            )
        return values[0]

    def rationals(self, tag: int) -> list[float] | None:
        """Returns the fractions of a tag, None if it is missing."""
        entry = self.entries.get(tag)
        if entry is None:
            return None
        if entry.kind != RATIONAL:
            raise UndecodableImageError(f"the TIFF is damaged: its tag {tag} is no fraction")
        pairs = np.frombuffer(self._data, self.order + "u4", 2 * entry.number, entry.at)
        return [float(above) / below if below else -1.0 for above, below in pairs.reshape(-1, 2)]

    def raw(self, tag: int) -> bytes:
        """Returns the bytes of a tag of the type BYTE or UNDEFINED, empty if it is missing."""
        entry = self.entries.get(tag)
        if entry is None:
            return b""
        if entry.kind not in (1, 7):
            raise UndecodableImageError(f"the TIFF is damaged: its tag {tag} is no bytes")
        return self._data[entry.at : entry.at + entry.number]


def read_directory(data: bytes) -> tuple[Directory, list[tuple[int, int]]]:
    """Returns the first directory of a TIFF, and the spans (begin, end) of the file that hold the
    header, the directories and the first one's values.

    Raises UndecodableImageError if a directory is cut off, unsorted or leads back to another, if a
    value lies outside the file, or if the file has more than one picture, thumbnails and masks
    aside.
    """
    form = _read_form(data)
    at = _unpack(data, form.order + form.offset, form.start)
    spans = [(0, form.start + struct.calcsize(form.offset))]
    first: Directory | None = None
    while at:
        if len(spans) > MAX_DIRECTORIES or any(at == begin for begin, _ in spans):
            raise UndecodableImageError("the TIFF is damaged: its directories lead in a circle")
        entries, after = _read_entries(data, form, at)
        directory = Directory(data, form.order, entries)
        spans.append((at, after + struct.calcsize(form.offset)))
        if first is None:
            first = directory
            _check_values(data, entries)
            _check_first(directory)
        elif not _is_extra(directory):
            raise UndecodableImageError("the TIFF has more than one picture: send one")
        at = _unpack(data, form.order + form.offset, after)
    if first is None:
        raise UndecodableImageError("the TIFF is damaged: it has no directory")
    for entry in first.entries.values():
        size = TIFF_SIZES.get(entry.kind, 0) * entry.number
        if size > form.inline:
            spans.append((entry.at, entry.at + size))
    return first, spans


def _read_form(data: bytes) -> _Form:
    order = "<" if data.startswith(b"II") else ">"
    version = _unpack(data, order + "H", 2)
    if version == 42:
        return _Form(order, 4, "I", "H", "HHI", 4)
    if version != 43 or _unpack(data, order + "I", 4) != (8 if order == "<" else 8 << 16):
        raise UndecodableImageError("the TIFF's header is cut off or damaged")
    return _Form(order, 8, "Q", "Q", "HHQ", 8)


def _unpack(data: bytes, form: str, at: int) -> int:
    if at + struct.calcsize(form) > len(data):
        raise UndecodableImageError(
            f"the TIFF's header is cut off or damaged: it leads to byte {at}, and the file has"
            f" {len(data)}"
        )
    value: int = struct.unpack_from(form, data, at)[0]
    return value


def _read_entries(data: bytes, form: _Form, at: int) -> tuple[dict[int, Entry], int]:
    """Returns the entries of the directory at `at` by their tags, and the offset of their end. It
    is not checked that the values lie within the file."""
    tags = _unpack(data, form.order + form.length, at)
    if not 0 < tags <= MAX_TAGS:
        raise UndecodableImageError(f"the image's header is damaged: it declares {tags} tags")
    each = struct.Struct(form.order + form.entry)
    at += struct.calcsize(form.length)
    end = at + tags * (each.size + form.inline)
    if end > len(data):
        raise UndecodableImageError("the TIFF is cut off or damaged: its directory is not whole")
    entries: dict[int, Entry] = {}
    previous = -1
    for _ in range(tags):
        tag, kind, number = each.unpack_from(data, at)
        if tag <= previous:
            raise UndecodableImageError(
                f"the TIFF is damaged: its tag {tag} "
                + ("stands there twice" if tag == previous else f"stands behind {previous}")
            )
        at += each.size
        inline = TIFF_SIZES.get(kind, 0) * number <= form.inline
        value = at if inline else _unpack(data, form.order + form.offset, at)
        entries[tag] = Entry(kind, number, value)
        previous = tag
        at += form.inline
    return entries, end


def _check_values(data: bytes, entries: Mapping[int, Entry]) -> None:
    """Raises UndecodableImageError for values outside the file, and for more than it can hold:
    programs copy the values of each tag, even if all tags point to the same bytes."""
    declared = 0
    for kind, number, _ in entries.values():
        size = TIFF_SIZES.get(kind, 0)
        if size > 1 and number > MAX_NUMBERS:
            raise UndecodableImageError(f"the TIFF is damaged: a tag declares {number} numbers")
        declared += size * number
    if declared > len(data):
        raise UndecodableImageError(
            f"the TIFF is damaged: its tags declare {declared} bytes and the file has {len(data)}"
        )
    for tag, entry in entries.items():
        if entry.at + TIFF_SIZES.get(entry.kind, 0) * entry.number > len(data):
            raise UndecodableImageError(
                f"the TIFF is cut off or damaged: the value of its tag {tag} is not in the file"
            )


def _check_first(directory: Directory) -> None:
    """Raises UndecodableImageError if the first picture is only a thumbnail or a mask."""
    if directory.number(SUBFILE, 0) not in (0, PAGE) or (
        directory.number(OLD_SUBFILE, OLD_FULL) not in (OLD_FULL, OLD_PAGE)
    ):
        raise UndecodableImageError("the TIFF's first picture is a thumbnail or a mask: send one")


def _is_extra(directory: Directory) -> bool:
    """Returns whether a further picture is a thumbnail or a mask, by tags that are in their
    entries."""
    for tag in (SUBFILE, OLD_SUBFILE):
        if tag in directory.entries and directory.entries[tag].number != 1:
            return False
    return bool(directory.number(SUBFILE, 0) & (REDUCED | MASK)) or (
        directory.number(OLD_SUBFILE, OLD_FULL) == OLD_REDUCED
    )
