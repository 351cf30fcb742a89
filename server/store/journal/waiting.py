"""The rows that wait to be written, in two small files, so that kill -9 loses none of them.

A row goes into one of the files when it is taken in, and is in the kernel's cache from then on.
That outlives the process; a cut of power it need not outlive. Once the journal has all rows of a
file, it is emptied, mostly before the kernel has written anything to the disk. The next process
writes the rows that it finds there.
"""

import logging
import os
import stat
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sized
from contextlib import suppress
from pathlib import Path

import msgspec

from server.store.journal.schema import COLUMNS, Values
from server.system.files import read_plain_file

logger = logging.getLogger(__name__)

# Hidden, so that a backup leaves them out: it has the rows that are written.
NAMES = (".journal-waiting-0", ".journal-waiting-1")
# Bytes that a file may have: those of far more rows than may wait.
FILE_BYTES_MAX = 32 << 20
# Before each row: its bytes, and their CRC-32, since the last one may be incomplete.
HEAD = struct.Struct("<II")
OPEN_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple).decode


class _File:
    """One of the files. last: number of its newest row, 0 if it has none. whole: bytes of the rows
    that it has at first; what follows them, such as half a row, is cut off before others are added.
    `descriptor` is -1 while it can't be used."""

    def __init__(self, path: Path, last: int, whole: int) -> None:
        self.path = path
        self.last = last
        self.descriptor = -1
        self._whole = whole

    def append(self, data: bytes, number: int) -> None:
        """Add a row. Raises OSError."""
        if self.descriptor < 0:
            self._open()
        self.last = number
        if os.write(self.descriptor, data) < len(data):
            raise OSError("the disk is full")

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, OPEN_FLAGS, 0o600)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(f"{self.path} is no plain file")
            if status.st_size > self._whole:
                os.ftruncate(descriptor, self._whole)
        except OSError:
            os.close(descriptor)
            raise
        self.descriptor = descriptor

    def clear(self) -> None:
        """Empty it; anew if it was deleted. Raises OSError."""
        self.last = self._whole = 0
        if self.descriptor < 0:
            self._open()
        os.ftruncate(self.descriptor, 0)
        if not os.fstat(self.descriptor).st_nlink:
            self.close()

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


class WaitingRows:
    """Keeps the rows that `submit` takes, in the folder at `folder`, until they are written.

    left: the rows that an earlier process left, oldest first. If a file can't be written, rows wait
    in memory alone. For any thread: `_lock` guards all. It is reentrant, since a signal's handler
    may take in a row.
    """

    def __init__(self, folder: Path) -> None:
        self._lock = threading.RLock()
        found = [_read(folder / name) for name in NAMES]
        self.left = sorted((row for rows, _ in found for row in rows), key=lambda row: row[0])
        self._number = len(self.left)  # of the newest row
        self._newest_missing = 0  # number of the newest row that waits in memory alone
        self._files = [
            _File(folder / name, self._number if rows else 0, whole)
            for name, (rows, whole) in zip(NAMES, found, strict=True)
        ]
        self._current = self._files[0]
        self._paused = False
        self._failing = False

    def put(self, row: Values, submit: Callable[[Values], bool]) -> bool:
        """Keep a row if `submit` takes it; return whether it does."""
        with self._lock:
            if not submit(row):
                return False
            self._number += 1
            # A value that can't be encoded can't be written to the journal either.
            with suppress(ValueError, TypeError, OverflowError):
                self._append(_encode(row))
            return True

    def _append(self, data: bytes) -> None:
        if not self._paused:
            try:
                self._current.append(HEAD.pack(len(data), zlib.crc32(data)) + data, self._number)
            except OSError as error:
                self._failed(error)
            else:
                self._failing = False
                return
        self._newest_missing = self._number

    def _failed(self, error: OSError) -> None:
        """Keep no rows until the next `settle`: what follows half a row can't be read."""
        self._paused = True
        if not self._failing:
            # No error: nothing is lost by it alone, and the journal reports a disk that fails.
            fields = {"reason": str(error), "path": str(self._current.path)}
            logger.warning("rows of the journal wait in memory alone", extra={"fields": fields})
        self._failing = True

    def settle(self, inherited: int, rows: Sized) -> None:
        """Empty the files whose rows are all written. inherited: the number of those of `left` that
        are not. rows: those that `submit` took and that are not written."""
        with self._lock:
            written = 0 if inherited else self._number - len(rows)
            try:
                for file in self._files:
                    if file.last and file.last <= written:
                        file.clear()
                # The next rows go where no older ones wait, so that one of the two is soon empty.
                self._current = min(self._files, key=lambda file: file.last)
                self._paused = self._paused and bool(self._current.last)
            except OSError as error:
                self._failed(error)

    def hold(self, rows: int) -> bool:
        """Return whether the files have all of the newest rows, `rows` of them."""
        with self._lock:
            return self._newest_missing <= self._number - rows

    def close(self) -> None:
        """Close the files. Rows that were not written stay in them."""
        with self._lock:
            for file in self._files:
                file.close()


def _read(path: Path) -> tuple[list[Values], int]:
    """Return the rows of a file up to the first that is not whole, and the bytes that they take."""
    rows: list[Values] = []
    at = 0
    try:
        data = read_plain_file(path, FILE_BYTES_MAX)
    except (FileNotFoundError, NotADirectoryError):
        return rows, at
    except OSError as error:
        fields = {"path": str(path), "reason": str(error)}
        logger.error("rows that waited for the journal can't be read", extra={"fields": fields})
        return rows, at
    while at + HEAD.size <= len(data):
        size, checksum = HEAD.unpack_from(data, at)
        packed = data[at + HEAD.size : at + HEAD.size + size]
        if len(packed) < size or zlib.crc32(packed) != checksum:
            break
        rows += _row_of(packed)
        at += HEAD.size + size
    if at < len(data):
        damaged = {"path": str(path), "bytes": len(data) - at}
        logger.error("rows that waited for the journal are damaged", extra={"fields": damaged})
    return rows, at


def _row_of(packed: bytes) -> Iterator[Values]:
    """Yield the row in `packed`, with the columns of this program: one before it had fewer, and one
    after it may have more."""
    with suppress(msgspec.DecodeError):
        row: Values = _decode(packed)
        if row and isinstance(row[0], int | float):
            yield (row + (None,) * len(COLUMNS))[: len(COLUMNS) - 1]
