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
from collections.abc import Iterator, Mapping
from typing import IO, Any, NamedTuple

FRAME_BYTES_MAX = 64 << 20
HTTP_TIMEOUT_S = 5.0
FOLDER_POLL_S = 0.1
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


class SourceError(Exception):
    """The camera can't be read; the message is our own sentence, without any password."""


class SourceEndedError(SourceError):
    """There will be no more frames."""


class Shot(NamedTuple):
    """An image file's bytes, and when it was captured, in seconds of time.monotonic(). Without
    bytes, it can't be read."""

    captured: float
    data: bytes


class Source(ABC):
    """Where frames come from. `seen`: when the camera last gave something (time.monotonic()); -inf
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


def read_whole(file: IO[bytes]) -> bytes:
    """Return what is left of `file`; nothing if that is more than FRAME_BYTES_MAX, since a part of
    a picture must not be judged."""
    data = file.read(FRAME_BYTES_MAX + 1)
    return data if len(data) <= FRAME_BYTES_MAX else b""


class Folder(Source):
    """A watched folder. A file is finished once its size and time stay the same between two looks.

    A file's name, time of change and size tell it from others, so one that is written again is
    new. It came after the last look that did not see it.
    """

    def __init__(self, table: Mapping[str, Any]) -> None:
        super().__init__()
        self._path = table["path"]
        self.seen = time.monotonic()
        self._done = set(self._look())
        self._growing: dict[str, NewFile] = {}

    def _look(self) -> Iterator[FileState]:
        """Yield each image file; nothing that is no plain file."""
        try:
            with os.scandir(self._path) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or not entry.name.lower().endswith(
                        IMAGE_SUFFIXES
                    ):
                        continue
                    try:
                        status = entry.stat()
                    except OSError:
                        continue  # moved away since it was listed, or a link to nothing
                    if stat.S_ISREG(status.st_mode):
                        yield FileState(entry.name, status.st_mtime_ns, status.st_size)
        except OSError as error:
            raise SourceError(f"the folder can't be read: {error.strerror}") from None

    def take(self, after: float, wait_s: float) -> Shot | None:
        until = time.monotonic() + wait_s
        while True:
            last_look, now = self.seen, time.monotonic()
            present = set(self._look())
            self.seen = now
            self._done &= present
            before = self._growing
            self._growing = {
                file.name: before.get(file.name, NewFile(file, last_look, now))._replace(state=file)
                for file in present - self._done
            }
            whole = [
                new
                for name, new in self._growing.items()
                if name in before and before[name].state == new.state and new.state.size
            ]
            if wait_s > 0:
                self._done.update(new.state for new in whole)
                # Those that perhaps came before `after` are not of this question.
                fresh = [new for new in whole if new.earliest >= after]
                newest = max(fresh, default=None, key=lambda n: (n.state.changed_ns, n.state.name))
                shot = self._open(newest.state.name, newest.seen) if newest else None
                if shot is not None:
                    return shot
            if now >= until:
                return None
            time.sleep(min(FOLDER_POLL_S, until - now))

    def _open(self, name: str, captured: float) -> Shot | None:
        try:
            with open(os.path.join(self._path, name), "rb") as file:
                return Shot(captured, read_whole(file))
        except FileNotFoundError:
            return None
        except OSError:
            return Shot(captured, b"")


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
        return Shot(captured, data)


class Mjpeg(Stream):
    """JPEGs in an endless multipart answer (multipart/x-mixed-replace)."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self._table = table
        super().__init__()

    def shots(self) -> Iterator[Shot | None]:
        from http.client import HTTPException

        try:
            with open_url(self._table) as answer:
                while (shot := self._part(answer)) is not None:
                    yield shot
        except (OSError, HTTPException):
            raise SourceError("the camera broke off the stream") from None

    @staticmethod
    def _part(answer: IO[bytes]) -> Shot | None:
        """Return the next part, captured when its length came; None at the end. Raises SourceError
        for a part without a length."""
        length, captured = 0, 0.0
        in_headers = False
        while line := answer.readline(FRAME_BYTES_MAX):
            if line.startswith(b"--"):
                in_headers = True
            elif in_headers and line.lower().startswith(b"content-length:"):
                text = line.split(b":", 1)[1].strip()
                length, captured = int(text) if text.isdigit() else 0, time.monotonic()
            elif in_headers and not line.strip():
                if not 0 < length <= FRAME_BYTES_MAX:
                    raise SourceError("the camera's stream has parts without a usable length")
                data = answer.read(length)
                return Shot(captured, data) if len(data) == length else None
        return None
