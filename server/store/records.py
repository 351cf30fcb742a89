"""What the model repository knows of a model and tells of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from server.store.folders import Fingerprint

if TYPE_CHECKING:
    from server.recognition.tensors import Model


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
    """What is known of one name; guarded by the store's `_lock`.

    content: the files of the version that serves. size: the most bytes that a version took.
    history: versions that served before, the last one last; recalled: whether it goes on from the
    one on disk. failures: by version, the files that
    were refused, and why.
    """

    def __init__(self) -> None:
        self.content: Fingerprint = ()
        self.size = 0
        self.history: list[int] = []
        self.recalled = False
        self.failures: dict[int, tuple[Fingerprint, str]] = {}

    def history_before(self, version: int) -> list[int]:
        """The history as it was when `version` last began to serve."""
        if version not in self.history:
            return []
        return self.history[: len(self.history) - 1 - self.history[::-1].index(version)]
