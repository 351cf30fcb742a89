"""The sources of a reader process that need no decoder: folders, and pictures by HTTP.

Runs in the reader's process alone, which should start fast: urllib is imported by the sources that
need it.
"""

import math
import os
import stat
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from typing import IO, Any, NamedTuple

FRAME_BYTES_MAX = 64 << 20
HTTP_TIMEOUT_S = 5.0
LINE_BYTES_MAX = 1 << 16
# Of a part's length; Python refuses to read thousands of them.
LENGTH_DIGITS_MAX = 12
FOLDER_POLL_S = 0.1
# Part of the time in which a watched folder's finished files are looked at again.
FULL_SHARE = 0.05
# Age of a folder's time of change after which no other change can have the same: FAT counts 2 s.
SETTLED_NS = 2_500_000_000
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


class SourceError(Exception):
    """The camera can't be read; the message is our own sentence, without any password."""


class SourceEndedError(SourceError):
    """There will be no more frames."""


class Shot(NamedTuple):
    """An image file's bytes, and when it was captured, in seconds of time.monotonic(). Without
    bytes, it can't be read. earliest: when it was captured at the earliest; -inf if that is not
    known. name: of its file, if it came as one. whole: the frame that `data` is a region of, sent
    now and then."""

    captured: float
    data: bytes
    earliest: float = -math.inf
    name: str = ""
    whole: bytes = b""


class Source(ABC):
    """A source of frames. `seen`: when the camera last gave something (time.monotonic()); -inf
    if it never did."""

    def __init__(self) -> None:
        self.seen = -math.inf

    @abstractmethod
    def take(self, after: float, wait_s: float) -> Shot | None:
        """Return the newest frame that was captured after `after`; None if there is none within
        `wait_s`. Raises SourceError."""


class Stream(Source):
    """A source that a thread reads all the time, so that only the newest frame is kept.

    `_changed` guards `_wanted`, `_newest` and `_error`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()
        self._newest: Shot | None = None
        self._error: SourceError | None = None
        self._wanted = False
        threading.Thread(target=self._read, daemon=True).start()

    @abstractmethod
    def shots(self) -> Iterator[Shot | None]:
        """Yield for each frame that came: the frame, or None if `wanted` is false."""

    @property
    def wanted(self) -> bool:
        return self._wanted

    def _read(self) -> None:
        try:
            for shot in self.shots():
                self.seen = time.monotonic()
                with self._changed:
                    # None: a newer one came, so an older one is not the newest any more.
                    self._newest = shot
                    self._changed.notify_all()
            error = SourceError("the camera ended the stream")
        except SourceError as fault:
            error = fault
        except Exception as fault:  # noqa: BLE001 - the server gets it, and replaces the reader
            error = SourceError(f"the reader failed: {type(fault).__name__}")
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def take(self, after: float, wait_s: float) -> Shot | None:
        def is_there() -> bool:
            fresh = self._newest is not None and self._newest.captured > after
            return fresh or self._error is not None

        with self._changed:
            self._wanted = wait_s > 0
            self._changed.wait_for(is_there, wait_s)
            self._wanted = False
            if self._error is not None:
                raise self._error
            newest = self._newest
        return newest if newest is not None and newest.captured > after else None


class FileState(NamedTuple):
    """A file of a folder: its name, its time of change in ns, its size in bytes."""

    name: str
    changed_ns: int
    size: int


class NewFile(NamedTuple):
    """A file that may still be written: as last seen, the last look that did not see it, and the
    first that did, in seconds of time.monotonic()."""

    state: FileState
    earliest: float
    seen: float


def is_image_name(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def read_whole(file: IO[bytes]) -> bytes:
    """Return what is left of `file`; nothing if that is more than FRAME_BYTES_MAX, since a part of
    a picture must not be judged."""
    data = file.read(FRAME_BYTES_MAX + 1)
    return data if len(data) <= FRAME_BYTES_MAX else b""


class Folder(Source):
    """A watched folder. A file is finished once its size and time stay the same between two looks.

    A file's name, time of change and size tell it from others, so one that is written again is
    new. It came after the last look that did not see it. A look lists the folder only if the
    folder's own time says that names came or went, and asks for the state of new files alone. All
    files are asked for as often as takes FULL_SHARE of the time, for those that are written again.
    """

    def __init__(self, table: Mapping[str, Any]) -> None:
        super().__init__()
        self._path = table["path"]
        self._listed_ns: int | None = None
        self._full_due, self._full_seen = -math.inf, -math.inf
        self._growing: dict[str, NewFile] = {}
        self._done: dict[str, FileState] = {}
        self.seen = time.monotonic()
        self._done = {state.name: state for state in self._look()}

    def _look(self) -> list[FileState]:
        """Return the image files that are new, or changed since they were done; nothing that is no
        plain file. Drop those that are gone from `_done`."""
        began = time.monotonic()
        is_full = began >= self._full_due
        names: Collection[str] = self._growing
        try:
            changed_ns = os.stat(self._path).st_mtime_ns
            if is_full or changed_ns != self._listed_ns:
                # Another name may still come at the same time, as the file system counts it.
                is_settled = time.time_ns() - changed_ns > SETTLED_NS
                self._listed_ns = changed_ns if is_settled else None
                names = {name for name in os.listdir(self._path) if is_image_name(name)}
                if not self._done.keys() <= names:
                    self._done = {key: each for key, each in self._done.items() if key in names}
                if not is_full:
                    names = names - self._done.keys()
        except OSError as error:
            raise SourceError(f"the folder can't be read: {error.strerror}") from None
        states = [state for name in names if (state := self._state(name))]
        if is_full:
            self._full_seen, now = began, time.monotonic()
            self._full_due = now + (now - began) / FULL_SHARE
        return [state for state in states if self._done.get(state.name) != state]

    def _state(self, name: str) -> FileState | None:
        try:
            status = os.stat(os.path.join(self._path, name))
        except OSError:
            return None  # moved away since it was listed, or a link to nothing
        if not stat.S_ISREG(status.st_mode):
            return None
        return FileState(name, status.st_mtime_ns, status.st_size)

    def take(self, after: float, wait_s: float) -> Shot | None:
        until = time.monotonic() + wait_s
        while True:
            last_look, last_full, now = self.seen, self._full_seen, time.monotonic()
            before, present = self._growing, self._look()
            self.seen = now
            self._growing = {}
            for state in present:
                earliest = last_full if state.name in self._done else last_look
                known = before.get(state.name, NewFile(state, earliest, now))
                self._growing[state.name] = known._replace(state=state)
            whole = [
                new
                for name, new in self._growing.items()
                if name in before and before[name].state == new.state and new.state.size
            ]
            if wait_s > 0:
                self._done.update({new.state.name: new.state for new in whole})
                # Those that perhaps came before `after` are not of this question.
                fresh = [new for new in whole if new.earliest >= after]
                newest = max(fresh, default=None, key=lambda n: (n.state.changed_ns, n.state.name))
                shot = self._open(newest) if newest else None
                if shot is not None:
                    return shot
            if now >= until:
                return None
            time.sleep(min(FOLDER_POLL_S, until - now))

    def _open(self, new: NewFile) -> Shot | None:
        name, data = new.state.name, b""
        try:
            with open(os.path.join(self._path, name), "rb") as file:
                data = read_whole(file)
        except FileNotFoundError:
            return None
        except OSError:
            pass  # the server reports a picture that can't be read
        return Shot(new.seen, data, new.earliest, name)


def open_url(table: Mapping[str, Any]) -> IO[bytes]:
    """Return the answer of the table's URL. Raises SourceError."""
    from http.client import HTTPException
    from urllib import request
    from urllib.error import HTTPError

    handlers: list[Any] = [request.ProxyHandler({})]
    if table["username"]:
        passwords = request.HTTPPasswordMgrWithDefaultRealm()
        passwords.add_password(None, table["url"], table["username"], table["password"])
        handlers += [
            request.HTTPBasicAuthHandler(passwords),
            request.HTTPDigestAuthHandler(passwords),
        ]
    try:
        answer: IO[bytes] = request.build_opener(*handlers).open(table["url"], None, HTTP_TIMEOUT_S)
        return answer
    except HTTPError as error:
        raise SourceError(f"the camera answers with the status {error.code}") from None
    except LookupError:
        # Python's reader of WWW-Authenticate, for a parameter without a value.
        raise SourceError("the camera asks for a login in a way that can't be read") from None
    except (OSError, HTTPException, ValueError):
        raise SourceError("the camera can't be reached") from None


class Snapshot(Source):
    """A picture that is fetched by HTTP for each frame, and once at first, which shows that the
    camera is there and takes the login."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        super().__init__()
        self._table = table
        self._fetch()

    def take(self, after: float, wait_s: float) -> Shot | None:
        return self._fetch() if wait_s > 0 else None

    def _fetch(self) -> Shot:
        from http.client import HTTPException

        captured = time.monotonic()
        try:
            with open_url(self._table) as answer:
                data = read_whole(answer)
                # Of what Content-Length promised.
                missing = getattr(answer, "length", None)
        except (OSError, HTTPException):
            raise SourceError("the camera broke off its picture") from None
        if data and missing:
            raise SourceError("the camera broke off its picture")
        self.seen = time.monotonic()
        return Shot(captured, data, captured)


class Mjpeg(Stream):
    """JPEGs in an endless multipart answer (multipart/x-mixed-replace)."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self._table = table
        super().__init__()

    def shots(self) -> Iterator[Shot | None]:
        from http.client import HTTPException

        try:
            with open_url(self._table) as answer:
                yield from parts(answer)
        except (OSError, HTTPException):
            raise SourceError("the camera broke off the stream") from None


def parts(answer: IO[bytes]) -> Iterator[Shot]:
    """Yield the parts of a multipart answer (RFC 2046, 5.1) as they come, each captured when its
    headers came. A part without a length ends before the next boundary, which is the first line
    that begins with `--`. Raises SourceError for a part that is too large."""
    boundary = b"--"
    line = answer.readline(LINE_BYTES_MAX)
    while line:
        if not line.startswith(boundary):
            line = answer.readline(LINE_BYTES_MAX)
            continue
        boundary, length = line.rstrip(), 0
        while (line := answer.readline(LINE_BYTES_MAX)).strip():
            if line.lower().startswith(b"content-length:"):
                text = line.split(b":", 1)[1].strip()
                is_number = text.isdigit() and len(text) <= LENGTH_DIGITS_MAX
                length = int(text) if is_number else -1
        if not line:
            return
        captured = time.monotonic()
        if not 0 <= length <= FRAME_BYTES_MAX:
            raise SourceError("the camera's stream has parts without a usable length")
        if length:
            data, line = answer.read(length), b"\n"
            if len(data) < length:
                return
        else:
            data, line = read_to_boundary(answer, boundary)
            if not line:
                return
        yield Shot(captured, data, captured)


def read_to_boundary(answer: IO[bytes], boundary: bytes) -> tuple[bytes, bytes]:
    """Return what comes before the next line that begins with `boundary`, without the line end
    before it, and that line; b"" if the answer ends before. Raises SourceError if that is more than
    FRAME_BYTES_MAX."""
    data = bytearray()
    while (line := answer.readline(LINE_BYTES_MAX)) and not line.startswith(boundary):
        data += line
        if len(data) > FRAME_BYTES_MAX:
            raise SourceError("the camera's stream has a picture that is too large")
    return bytes(data[:-2] if data.endswith(b"\r\n") else data.removesuffix(b"\n")), line
