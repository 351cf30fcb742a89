"""Tar archives from strangers, read as a stream: strictly, and with a bound on every number.

Read are ustar (POSIX.1-1988), the older tar without a magic, and the two extensions for names
of files, PAX's (POSIX.1-2001) and GNU's. Anything else is refused: links,
devices, FIFOs, sparse files, several volumes. An archive is never sought in, and the work for it
grows with its bytes alone.
"""

from collections.abc import Iterator
from typing import Protocol

import msgspec

from server.errors import VersionRefusedError

BLOCK_BYTES = 512
# Bytes asked of the stream at once.
CHUNK_BYTES = 65_536
# Files and folders of an archive; and headers, since each may have two more before it.
MEMBERS_MAX, HEADERS_MAX = 1000, 3100
# Bytes of a PAX header, which may hold a file's attributes too; of a name.
PAX_BYTES_MAX, NAME_BYTES_MAX = 65_536, 1024
# Digits of a number in a PAX header.
DIGITS_MAX = 15
# Compressions by the two bytes that each begins with.
COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZ": "bzip2",
    b"\xfd7": "xz",
    b"PK": "zip",
    b"\x28\xb5": "zstd",
}
FILE_KINDS, FOLDER_KIND = (b"0", b"\0"), b"5"
GNU_NAME, PAX, PAX_GLOBAL = b"L", b"x", b"g"
KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a FIFO",
    b"S": "a sparse file",
}


class Stream(Protocol):
    """The source of the archive's bytes."""

    def read(self, size: int, /) -> bytes:
        """Returns at most `size` bytes, none at the end."""


class Member(msgspec.Struct, frozen=True):
    """A file of `size` bytes, or a folder. name: as in the archive."""

    name: str
    size: int
    is_folder: bool


class _Extension:
    """The values that the headers before a member's own give for it."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.size: int | None = None


class ArchiveReader:
    """The members of the archive in `stream`; the content of each is read before the next one.

    files_max: bytes that all files together may have. Raises VersionRefusedError at the first thing
    that is wrong; what `stream` raises passes through.
    """

    def __init__(self, stream: Stream, files_max: int) -> None:
        self._stream = stream
        self._files_max = files_max
        self._buffer = b""
        self._headers = self._members = 0
        # Bytes of the current member that are not read yet: its content, and the padding behind it.
        self._unread = self._padding = 0
        self._room = files_max

    def __iter__(self) -> Iterator[Member]:
        """Yields each member, up to the end of the archive; nothing may follow it."""
        extension = _Extension()
        while (header := self._header()) is not None:
            kind = header[156:157]
            if kind in (GNU_NAME, PAX, PAX_GLOBAL):
                self._extend(extension, kind, _octal(header[124:136], "size"))
                continue
            member = self._member(header, kind, extension)
            extension = _Extension()
            yield member
            while self._unread:
                self.content()
            self._take(self._padding)
        if extension.name is not None or extension.size is not None:
            raise _refused("a header without a file stands at its end")
        self._check_end()

    def content(self) -> bytes:
        """Returns the next piece of the content of the member in hand; b'' at its end."""
        piece = self._take_some(min(self._unread, CHUNK_BYTES))
        self._unread -= len(piece)
        return piece

    def _header(self) -> bytes | None:
        """Returns the next header; None at the first of the two blocks of zeros that end an
        archive."""
        first = not self._headers
        if first:
            self._check_not_compressed()
        header = self._take(BLOCK_BYTES)
        self._headers += 1
        if self._headers > HEADERS_MAX:
            raise _refused(f"it has more than {HEADERS_MAX} headers")
        if not header.strip(b"\0"):
            if first:
                raise _refused("it has no files")
            return None
        if not _has_checksum(header):
            raise _refused("the checksum of a header is wrong")
        return header

    def _check_not_compressed(self) -> None:
        start = self._buffer = self._stream.read(CHUNK_BYTES)
        # A file's name may begin with the same letters.
        if (name := COMPRESSIONS.get(start[:2])) and not _has_checksum(start[:BLOCK_BYTES]):
            raise VersionRefusedError(f"the body is compressed by {name}: send the tar as it is")

    def _extend(self, extension: _Extension, kind: bytes, size: int) -> None:
        most = NAME_BYTES_MAX if kind == GNU_NAME else PAX_BYTES_MAX
        if size > most:
            raise _refused(f"an extended header has {size} bytes, more than {most}")
        data = self._take(size)
        self._take(-size % BLOCK_BYTES)
        if kind == GNU_NAME:
            extension.name = _text(data.rstrip(b"\0"))
            return
        for key, value in _pax_records(data):
            if key.startswith(b"GNU.sparse"):
                raise _refused("it has a sparse file")
            if key not in (b"path", b"size"):
                continue
            if kind == PAX_GLOBAL:
                raise _refused(f"a header for all files sets their {key.decode()}")
            if key == b"path":
                extension.name = _text(value)
            else:
                extension.size = _decimal(value, "size")

    def _member(self, header: bytes, kind: bytes, extension: _Extension) -> Member:
        name = extension.name or _name(header)
        self._members += 1
        if self._members > MEMBERS_MAX:
            raise _refused(f"it has more than {MEMBERS_MAX} files")
        is_folder = kind == FOLDER_KIND or (kind == b"\0" and name.endswith("/"))
        if not is_folder and kind not in FILE_KINDS:
            what = KINDS.get(kind, "of an unknown kind")
            raise VersionRefusedError(f"{name!r} in the archive is {what}, not a plain file")
        size = _octal(header[124:136], "size") if extension.size is None else extension.size
        if is_folder and size:
            raise _refused(f"the folder {name!r} has a size")
        self._room -= size
        if self._room < 0:
            raise VersionRefusedError(
                f"the files of the archive have more than max_bundle_mb,"
                f" {self._files_max / 1e6:g} MB"
            )
        self._unread = size
        self._padding = -size % BLOCK_BYTES
        return Member(name, size, is_folder)

    def _check_end(self) -> None:
        """Reads the second block of zeros, and the zeros that fill up the last record."""
        if self._take(BLOCK_BYTES).strip(b"\0"):
            raise _refused("one block of zeros stands where two end an archive")
        while rest := self._buffer or self._stream.read(CHUNK_BYTES):
            self._buffer = b""
            if rest.strip(b"\0"):
                raise _refused("something stands behind its end")

    def _take(self, size: int) -> bytes:
        """Returns exactly `size` bytes, few enough for the memory."""
        pieces = []
        while size:
            pieces.append(self._take_some(size))
            size -= len(pieces[-1])
        return b"".join(pieces)

    def _take_some(self, size: int) -> bytes:
        """Returns at least one and at most `size` bytes; none if `size` is 0."""
        if size and not self._buffer:
            self._buffer = self._stream.read(CHUNK_BYTES)
            if not self._buffer:
                raise _refused("it ends in the middle")
        piece = self._buffer[:size]
        self._buffer = self._buffer[size:]
        return piece


def _refused(why: str) -> VersionRefusedError:
    return VersionRefusedError(f"the body is no tar archive that is read here, or cut off: {why}")


def _has_checksum(header: bytes) -> bool:
    """Returns whether the header's sum is the one that it states, its own eight bytes taken as
    spaces."""
    stated = header[148:156].strip(b" \0")
    if not stated or len(stated) > 7 or stated.strip(b"01234567"):
        return False
    return int(stated, 8) == sum(header) - sum(header[148:156]) + 8 * ord(" ")


def _octal(field: bytes, what: str) -> int:
    """Returns a number of a header: octal digits between spaces and zeros. Base 256, for files
    beyond 8 GB, is refused."""
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):
        raise _refused(f"a {what} is not a number")
    return int(digits, 8) if digits else 0


def _decimal(digits: bytes, what: str) -> int:
    if not digits or len(digits) > DIGITS_MAX or digits.strip(b"0123456789"):
        raise _refused(f"a {what} is not a number, or too long")
    return int(digits)


def _pax_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The records `LENGTH KEY=VALUE\\n` of a PAX header; a length counts its record's bytes."""
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + DIGITS_MAX + 1)
        length = _decimal(data[at:space], "length") if space > at else 0
        record = data[space + 1 : at + length]
        key, equals, value = record[:-1].partition(b"=")
        # One without a length would be read again and again.
        if not length or at + length > len(data) or not record.endswith(b"\n") or not equals:
            raise _refused("an extended header is malformed")
        yield key, value
        at += length


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    # GNU's magic, "ustar  ", has other things in the prefix's place.
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _text(name: bytes) -> str:
    if len(name) > NAME_BYTES_MAX:
        raise _refused(f"a name has {len(name)} bytes, more than {NAME_BYTES_MAX}")
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise _refused("a name is not in UTF-8") from None
