"""The models in memory: what each takes, and which go when a budget is set.

A model that no longer serves stays in memory until the last frame that works with it is done.
Every holder of a Recognizer holds a reference to it, so its end is the moment when the last
reference goes: nothing can be forgotten, and nothing is taken from under a frame.
"""

from __future__ import annotations

import gc
import itertools
import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import msgspec

from server.system.process import trim_heap

if TYPE_CHECKING:
    from server.recognition.interpreter import InterpreterPool
    from server.recognition.tensor_model import Model

Reason = Literal["swap", "memory"]
# Seconds after which references that hold one another are looked for, should a frame's error have
# left some.
CYCLES_AFTER = 1.0


class Unloaded(msgspec.Struct, frozen=True):
    """A version whose memory is free again. bytes: what it took. seconds: from the moment when it
    no longer served to the end of its last frame."""

    name: str
    version: int
    reason: Reason
    bytes: int
    seconds: float


class ResidentModels:
    """Accounts of the models in memory, those included that only finish their last frames.

    `_changed` guards `_bytes`, which holds (name, version, bytes) by token, and `_leaving`, the
    tokens of those that no longer serve.
    """

    def __init__(self, budget: int, on_unloaded: Callable[[Unloaded], None]) -> None:
        """budget: bytes that all models together may take; 0 for no limit."""
        self.budget, self._on_unloaded = budget, on_unloaded
        self._changed = threading.Condition()
        self._tokens = itertools.count()
        self._bytes: dict[int, tuple[str, int, int]] = {}
        self._leaving: set[int] = set()
        self._by_id: weakref.WeakKeyDictionary[Model, int] = weakref.WeakKeyDictionary()

    def add(self, recognizer: Model, size: int) -> None:
        """Takes `recognizer`, of `size` bytes, into the accounts."""
        manifest = recognizer.manifest
        with self._changed:
            token = next(self._tokens)
            self._bytes[token] = (manifest.name, manifest.version, size)
            self._by_id[recognizer] = token

    def used(self) -> int:
        """Bytes of all models in memory."""
        with self._changed:
            return sum(size for _, _, size in self._bytes.values())

    def by_name(self) -> dict[str, int]:
        """Bytes by model name."""
        found: dict[str, int] = {}
        with self._changed:
            for name, _, size in self._bytes.values():
                found[name] = found.get(name, 0) + size
        return found

    def staying(self, name: str | None = None) -> int:
        """Bytes of the models that serve, or of `name` alone: what is left when the others have
        gone."""
        with self._changed:
            return sum(
                size
                for token, (each, _, size) in self._bytes.items()
                if token not in self._leaving and name in (None, each)
            )

    def retire(self, recognizer: Model, reason: Reason) -> None:
        """Tells that `recognizer` no longer serves. When its last holder lets it go, its memory is
        given back to the kernel, and the accounts and the listener are told."""
        gone: queue.SimpleQueue[InterpreterPool] = queue.SimpleQueue()
        # Unlike an event's or a lock's methods, put() may be called wherever the garbage collector
        # happens to run. The pool outlives the recognizer by this, so that what takes the memory
        # is freed before the kernel is given it, and by no thread that has a frame to answer.
        weakref.finalize(recognizer, gone.put, recognizer.pool).atexit = False
        with self._changed:
            token = self._by_id[recognizer]
            self._leaving.add(token)
        threading.Thread(
            target=self._see_off,
            args=(token, reason, gone, time.monotonic()),
            name="model-release",
            daemon=True,
        ).start()

    def _see_off(
        self,
        token: int,
        reason: Reason,
        gone: queue.SimpleQueue[InterpreterPool],
        since: float,
    ) -> None:
        while True:
            try:
                gone.get(timeout=CYCLES_AFTER).close()
                break
            except queue.Empty:
                # What was there when the server started is not looked through otherwise.
                gc.unfreeze()
                gc.collect()
                gc.freeze()
        trim_heap()
        with self._changed:
            name, version, size = self._bytes.pop(token)
            self._leaving.discard(token)
            self._changed.notify_all()
        self._on_unloaded(Unloaded(name, version, reason, size, time.monotonic() - since))

    def await_room(self, size: int, timeout: float) -> bool:
        """Waits, while models leave, until `size` bytes more keep to the budget; False where they
        do not after `timeout` seconds, or when no more leave."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_room(size) or not self._leaving, timeout)
            return self._has_room(size)

    def _has_room(self, size: int) -> bool:
        return sum(each for _, _, each in self._bytes.values()) + size <= self.budget
