"""The models in memory: swapped in, unloaded if memory is short, and accounted for until then.

A model that no longer serves stays in memory until the last frame that works with it is done.
Every holder of a Model holds a reference to it, so its end is the moment when the last reference
goes: nothing can be forgotten, and nothing is taken from under a frame.
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

from server.errors import ModelNeededError, NotReadyError
from server.system.process import trim_heap

if TYPE_CHECKING:
    from server.recognition.interpreter import InterpreterPool
    from server.recognition.tensor_model import Model

Reason = Literal["swap", "memory", "request"]
# Seconds that a model waits for its turn to be loaded, and for the memory of those unloaded.
LOAD_TIMEOUT_S = 30.0
# Seconds after which reference cycles are searched for: a frame's error may have left some.
CYCLE_SEARCH_DELAY_S = 1.0


class Unloaded(msgspec.Struct, frozen=True):
    """A version whose memory is free again. bytes: what it took. seconds: from the moment when it
    no longer served to the end of its last frame."""

    name: str
    version: int
    reason: Reason
    bytes: int
    seconds: float


class Limit(msgspec.Struct, frozen=True):
    """The memory limit of the models. memory: bytes that all models together may take, 0 for no
    limit. copies: how often a model holds its weights, in the file and in each interpreter, for a
    first guess at what it takes."""

    memory: int = 0
    copies: int = 1


class ResidentModels:
    """Accounts of the models in memory, those included that only finish their last frames.

    `_changed` guards `_bytes`, which holds (name, version, bytes) by token, and `_leaving`, the
    tokens of those that no longer serve.
    """

    def __init__(self, budget: int, on_unloaded: Callable[[Unloaded], None]) -> None:
        """budget: bytes that all models together may take; 0 for no limit."""
        self.budget = budget
        self._on_unloaded = on_unloaded
        self._changed = threading.Condition()
        self._tokens = itertools.count()
        self._bytes: dict[int, tuple[str, int, int]] = {}
        self._leaving: set[int] = set()
        self._by_id: weakref.WeakKeyDictionary[Model, int] = weakref.WeakKeyDictionary()

    def add(self, model: Model, size: int) -> None:
        """Takes `model`, of `size` bytes, into the accounts."""
        manifest = model.manifest
        with self._changed:
            token = next(self._tokens)
            self._bytes[token] = (manifest.name, manifest.version, size)
            self._by_id[model] = token

    def by_name(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        with self._changed:
            for name, _, size in self._bytes.values():
                sizes[name] = sizes.get(name, 0) + size
        return sizes

    def staying(self, name: str | None = None) -> int:
        """Returns the bytes of the models that serve, or of `name` alone: what stays when the
        others have gone."""
        with self._changed:
            return sum(
                size
                for token, (each, _, size) in self._bytes.items()
                if token not in self._leaving and name in (None, each)
            )

    def retire(self, model: Model, reason: Reason) -> None:
        """Notes that `model` no longer serves. Once its last holder releases it, its memory goes
        back to the kernel, and the listener is notified."""
        gone: queue.SimpleQueue[InterpreterPool] = queue.SimpleQueue()
        # Unlike an event's or a lock's methods, put() may be called wherever the garbage collector
        # happens to run. The pool outlives the model by this, so that what takes the memory is
        # freed before the kernel is given it, and by no thread that has a frame to answer.
        weakref.finalize(model, gone.put, model.pool).atexit = False
        with self._changed:
            token = self._by_id[model]
            self._leaving.add(token)
        threading.Thread(
            target=self._release,
            args=(token, reason, gone, time.monotonic()),
            name="model-release",
            daemon=True,
        ).start()

    def _release(
        self, token: int, reason: Reason, gone: queue.SimpleQueue[InterpreterPool], since: float
    ) -> None:
        while True:
            try:
                gone.get(timeout=CYCLE_SEARCH_DELAY_S).close()
                break
            except queue.Empty:
                # Else objects from before the server started would not be searched.
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
        """Waits, while models leave, until `size` bytes more keep to the budget. Returns False if
        they do not after `timeout` seconds, or when no more leave."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_room(size) or not self._leaving, timeout)
            return self._has_room(size)

    def _has_room(self, size: int) -> bool:
        return sum(each for _, _, each in self._bytes.values()) + size <= self.budget


class ServingModels:
    """The models that serve, by name.

    `_lock` guards `_serving` and `_used`, which holds the order of use by name; it is held for no
    longer than an assignment.
    """

    def __init__(self, default: str, limit: Limit, on_unloaded: Callable[[Unloaded], None]) -> None:
        """`default` is the model that is never unloaded, and so is `needed`."""
        self.default = self.needed = default
        self.limit = limit
        self.residents = ResidentModels(limit.memory, on_unloaded)
        self._lock = threading.Lock()
        self._serving: dict[str, Model] = {}
        self._used: dict[str, int] = {}
        self._turns = itertools.count()

    def get(self, name: str) -> Model | None:
        """Returns the model that serves `name`, marked as used now."""
        with self._lock:
            model = self._serving.get(name)
            if model is not None:
                self._used[name] = next(self._turns)
            return model

    def all(self) -> dict[str, Model]:
        with self._lock:
            return dict(self._serving)

    def version(self, name: str) -> int | None:
        """Returns the version of `name` that serves, or None."""
        with self._lock:
            model = self._serving.get(name)
            return model.manifest.version if model else None

    def replace(self, name: str, model: Model, size: int) -> int | None:
        """Has `model`, which takes `size` bytes, serve from the next frame on; the one before it
        finishes its frames. Returns the version of that one, or None."""
        self.residents.add(model, size)
        with self._lock:
            before = self._serving.get(name)
            self._serving[name] = model
            self._used[name] = next(self._turns)
        if before is None:
            return None
        self.residents.retire(before, "swap")
        return before.manifest.version

    def unload(self, name: str) -> None:
        """Unloads the model `name`, if it is loaded; it finishes its frames. Raises
        ModelNeededError for one that is never unloaded."""
        if name in (self.default, self.needed):
            what = "the default model" if name == self.default else "of the active product"
            raise ModelNeededError(f"{name} is {what}, which stays loaded")
        with self._lock:
            model = self._serving.pop(name, None)
        if model is not None:
            self.residents.retire(model, "request")

    def reserve(self, name: str, size: int) -> None:
        """Unloads the least recently used models until `size` bytes more keep to the budget.

        Those with a frame under way go after the idle ones. The default is never unloaded, and it,
        or a model that serves already, is loaded beyond the budget rather than not at all. Raises
        NotReadyError if there is no room for another, before any goes if all were not enough.
        """
        if not self.limit.memory:
            return
        optional = name != self.default and self.version(name) is None
        beside = self.residents.staying(self.default)
        if optional and beside + size > self.limit.memory:
            raise self._no_room(name, size, self.limit.memory - beside)
        while self.residents.staying() + size > self.limit.memory and self._evict(name):
            continue
        if self.residents.await_room(size, LOAD_TIMEOUT_S):
            return
        if optional:
            raise self._no_room(
                name, size, self.limit.memory - sum(self.residents.by_name().values())
            )

    def _no_room(self, name: str, size: int, free: int) -> NotReadyError:
        return NotReadyError(
            f"{name} needs about {size / 1e6:.0f} MB and `models_memory_mb` leaves it"
            f" {max(0, free) / 1e6:.0f} MB",
            retry_after=10,
        )

    def _evict(self, keep: str) -> bool:
        """Unloads the least recently used model. Returns False if there is none but the default,
        the needed one and `keep`."""
        with self._lock:
            order = [
                (model.pool.busy > 0, self._used[name], name)
                for name, model in self._serving.items()
                if name not in (self.default, self.needed, keep)
            ]
            if not order:
                return False
            model = self._serving.pop(min(order)[-1])
        self.residents.retire(model, "memory")
        return True
