"""The models that serve, by name: swapped in, and let go when memory is short."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from server.errors import NotReadyError
from server.store.bundles.residents import ResidentModels, Unloaded

if TYPE_CHECKING:
    from server.recognition.tensor_model import Model

# Seconds that a model waits for its turn, and for the memory of those let go to come free.
LONGEST_WAIT = 30.0


class Limit(msgspec.Struct, frozen=True):
    """memory: bytes that all models together may take, 0 for no limit. copies: how often a model
    holds its weights, in the file and in each interpreter, for a first guess at what it takes."""

    memory: int = 0
    copies: int = 1


class ServingModels:
    """`_lock` guards `_serving` and `_used`, which tells the order of use by name; it is held for
    no longer than an assignment."""

    def __init__(self, default: str, limit: Limit, on_unloaded: Callable[[Unloaded], None]) -> None:
        """`default` is the model that is never let go."""
        self.default, self.limit = default, limit
        self.residents = ResidentModels(limit.memory, on_unloaded)
        self._lock = threading.Lock()
        self._serving: dict[str, Model] = {}
        self._used: dict[str, int] = {}
        self._turns = itertools.count()

    def use(self, name: str) -> Model | None:
        """What serves `name`, marked as used now."""
        with self._lock:
            recognizer = self._serving.get(name)
            if recognizer is not None:
                self._used[name] = next(self._turns)
            return recognizer

    def served(self) -> dict[str, Model]:
        """What serves, by name."""
        with self._lock:
            return dict(self._serving)

    def version(self, name: str) -> int | None:
        """The version of `name` that serves, or None."""
        with self._lock:
            recognizer = self._serving.get(name)
            return recognizer.manifest.version if recognizer else None

    def swap(self, name: str, recognizer: Model, size: int) -> int | None:
        """Lets `recognizer`, which takes `size` bytes, serve from the next frame on; what served
        finishes its frames. Returns the version of that, or None."""
        self.residents.add(recognizer, size)
        with self._lock:
            old = self._serving.get(name)
            self._serving[name] = recognizer
            self._used[name] = next(self._turns)
        if old is None:
            return None
        self.residents.retire(old, "swap")
        return old.manifest.version

    def make_room(self, name: str, size: int) -> None:
        """Lets go of the least recently used models until `size` bytes more keep to the budget.

        Those with a frame under way go after the idle ones. The default is never let go, and it,
        or a model that serves already, is loaded beyond the budget rather than not at all. Raises
        NotReadyError where there is no room for another, before any goes where all were not enough.
        """
        if not self.limit.memory:
            return
        optional = name != self.default and self.version(name) is None
        beside = self.residents.staying(self.default)
        if optional and beside + size > self.limit.memory:
            raise self._no_room(name, size, self.limit.memory - beside)
        while self.residents.staying() + size > self.limit.memory and self._let_go(name):
            continue
        if self.residents.await_room(size, LONGEST_WAIT):
            return
        if optional:
            raise self._no_room(name, size, self.limit.memory - self.residents.used())

    def _no_room(self, name: str, size: int, left: int) -> NotReadyError:
        return NotReadyError(
            f"{name} needs about {size / 1e6:.0f} MB and `models_memory_mb` leaves it"
            f" {max(0, left) / 1e6:.0f} MB",
            retry_after=10,
        )

    def _let_go(self, wanted: str) -> bool:
        """Lets go of the model whose turn it is; False where there is none but `wanted`."""
        with self._lock:
            order = [
                (recognizer.pool.busy > 0, self._used[name], name)
                for name, recognizer in self._serving.items()
                if name not in (self.default, wanted)
            ]
            if not order:
                return False
            recognizer = self._serving.pop(min(order)[-1])
        self.residents.retire(recognizer, "memory")
        return True
