"""Loading a model that a request asks for and that is not in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from server.config.thread_budget import MOST_LOADING
from server.errors import NotReadyError

if TYPE_CHECKING:
    from server.recognition.tensor_model import Model


class OnDemandLoader:
    """Loads models in a thread of its own, so that a request waits for one no longer than its
    frame is worth, and what it asked for is there for the next."""

    def __init__(self, load: Callable[[str], Model]) -> None:
        self._load = load
        self._places = threading.BoundedSemaphore(MOST_LOADING)
        self._lock = threading.Lock()
        self._going: dict[str, Future[Model]] = {}
        self._thread = ThreadPoolExecutor(1, "cold-load")

    def wait(self, name: str, seconds: float) -> Model:
        """`name`, loaded. Raises NotReadyError where that takes more than `seconds` or where too
        many wait already, and what `load` raises."""
        if not self._places.acquire(blocking=False):
            raise NotReadyError(f"{MOST_LOADING} requests wait for models already", retry_after=1)
        try:
            return self._started(name).result(max(0.0, seconds))
        except TimeoutError:
            raise NotReadyError(f"the model {name} is being loaded", retry_after=1) from None
        finally:
            self._places.release()

    def _started(self, name: str) -> Future[Model]:
        with self._lock:
            load = self._going.get(name)
            if load is None:
                load = self._going[name] = self._thread.submit(self._run, name)
            return load

    def _run(self, name: str) -> Model:
        try:
            return self._load(name)
        finally:
            with self._lock:
                del self._going[name]
