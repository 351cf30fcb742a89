"""What the model repository knows of a model and tells of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from server.store.bundles.layout import Fingerprint

if TYPE_CHECKING:
    from server.recognition.tensor_model import Model


# Versions that served before, as far back as rollback goes.
MOST_HISTORY = 16
# Measures of a model's size that are kept, the least ones.
SURE = 3


class Failure(msgspec.Struct, frozen=True):
    """A version that may not serve, and why."""

    version: int
    reason: str


class Loaded:
    """A version that serves now: the bytes it takes, and the seconds it took to load, warm up and
    check."""

    def __init__(self, recognizer: Model, size: int, seconds: float) -> None:
        self.recognizer, self.bytes, self.seconds = recognizer, size, seconds


class ModelRecord:
    """What is known of one name. `_lock` guards the failures, which anyone may ask for; all else
    is for whoever has the turn to load.

    content: the files of the version that serves. sizes: the bytes that those files took when they
    were loaded, the least ones. history: versions that served before, the last one last; recalled:
    whether it goes on from the one on disk.
    """

    def __init__(self) -> None:
        self.content: Fingerprint = ()
        self.sizes: list[int] = []
        self.history: list[int] = []
        self.recalled = False
        self._lock = threading.Lock()
        self._failures: dict[int, tuple[Fingerprint, str]] = {}

    def history_before(self, version: int) -> list[int]:
        """The history as it was when `version` last began to serve."""
        if version not in self.history:
            return []
        return self.history[: len(self.history) - 1 - self.history[::-1].index(version)]

    @property
    def size(self) -> int:
        """The bytes that the version takes, as far as known; 0 before it was loaded.

        What frames took meanwhile counts as the model's, so that the least measure is the best.
        """
        return min(self.sizes, default=0)

    @property
    def sure(self) -> bool:
        """Whether `size` was measured often enough to refuse a model by it."""
        return len(self.sizes) >= SURE

    def measured(self, content: Fingerprint, size: int) -> int:
        """Takes down that these files took `size` bytes; returns what they are taken to take."""
        if content != self.content:
            self.content, self.sizes = content, []
        self.sizes = sorted([*self.sizes, size])[:SURE]
        return self.size

    def serves(self, version: int, old: int | None) -> None:
        """Takes down that `version` took over from `old`."""
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
