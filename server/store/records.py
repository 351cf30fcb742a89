"""What the model repository knows of a model and tells of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from server.store.folders import Fingerprint

if TYPE_CHECKING:
    from server.recognition.tensors import Model


# Versions that served before, as far back as rollback goes.
MOST_HISTORY = 16


class Failure(msgspec.Struct, frozen=True):
    """A version that may not serve, and why."""

    version: int
    reason: str


class Loaded:
    """A version that serves now: the bytes it takes, and the seconds it took to load, warm up and
    check."""

    def __init__(self, recognizer: Model, size: int, seconds: float) -> None:
        self.recognizer, self.bytes, self.seconds = recognizer, size, seconds


class Record:
    """What is known of one name. `_lock` guards the failures, which anyone may ask for; all else
    is for whoever has the turn to load.

    content: the files of the version that serves. size: the most bytes that a version took.
    history: versions that served before, the last one last; recalled: whether it goes on from the
    one on disk.
    """

    def __init__(self) -> None:
        self.content: Fingerprint = ()
        self.size = 0
        self.history: list[int] = []
        self.recalled = False
        self._lock = threading.Lock()
        self._failures: dict[int, tuple[Fingerprint, str]] = {}

    def history_before(self, version: int) -> list[int]:
        """The history as it was when `version` last began to serve."""
        if version not in self.history:
            return []
        return self.history[: len(self.history) - 1 - self.history[::-1].index(version)]

    def serves(self, version: int, content: Fingerprint, size: int, old: int | None) -> None:
        """Takes down that `version`, these files and so many bytes, took over from `old`."""
        self.content, self.size = content, max(self.size, size)
        if old is not None and old != version:
            self.history = [*self.history, old][-MOST_HISTORY:]
        with self._lock:
            self._failures.pop(version, None)

    def refuse(self, version: int, content: Fingerprint, reason: str) -> None:
        """Takes down that `version` with these files may not serve."""
        with self._lock:
            self._failures[version] = (content, reason)

    def refused(self, version: int, content: Fingerprint | None = None) -> bool:
        """Whether `version` was refused when last tried; where `content` is given, whether it had
        those files then."""
        with self._lock:
            failed = self._failures.get(version)
        return failed is not None and content in (None, failed[0])

    def failures(self, present: Sequence[int]) -> tuple[Failure, ...]:
        """Those of the versions `present` that were refused when last tried, in that order."""
        with self._lock:
            failed = self._failures
            return tuple(Failure(n, failed[n][1]) for n in present if n in failed)
