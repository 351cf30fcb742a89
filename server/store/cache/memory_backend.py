"""Flask-Caching's backend in this process's memory, bounded by bytes: the least recently used go.

Flask-Caching's own SimpleCache stays unused because it is bounded by a count, which says nothing of
memory, and is not safe among threads.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from flask import Flask
from flask_caching.backends.base import BaseCache

# Bytes that CPython keeps beside key and value: two object headers, the place in the ordered
# dictionary, the pair and its time, with room for the dictionary's growth.
ENTRY_OVERHEAD_BYTES = 450


class MemoryCache(BaseCache):
    """Bytes by key, at most `max_bytes` of them with what each takes beside; safe among threads.

    `_lock` guards `_entries`, the least recently used first, each as (value, when it ends, in
    seconds of `clock`), and `_size`, their bytes.
    """

    def __init__(
        self,
        max_bytes: int,
        default_timeout: int = 300,
        ignore_delete_many_errors: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(default_timeout, ignore_delete_many_errors)
        self.max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._size = 0

    @classmethod
    def factory(
        cls, app: Flask, config: dict[str, Any], args: list[Any], kwargs: dict[str, Any]
    ) -> "MemoryCache":
        """Return the backend for `CACHE_OPTIONS`; Flask-Caching asks every backend for this."""
        return cls(*args, **kwargs)

    @property
    def size(self) -> int:
        return self._size

    def get(self, key: str) -> bytes | None:
        """Return the value; None if there is none or its time is over."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            if entry[1] <= self._clock():
                self._drop(key)
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def set(self, key: str, value: bytes, timeout: int | timedelta | None = None) -> bool:
        """Keep `value` for `timeout` seconds; 0: for ever. Return False if it is larger than all
        the room there is."""
        with self._lock:
            if key in self._entries:
                self._drop(key)
            size = _size_of(key, value)
            if size > self.max_bytes:
                return False
            while self._size + size > self.max_bytes:
                self._drop(next(iter(self._entries)))
            seconds = self._normalize_timeout(timeout)
            self._entries[key] = value, self._clock() + seconds if seconds else float("inf")
            self._size += size
            return True

    def _drop(self, key: str) -> None:
        self._size -= _size_of(key, self._entries.pop(key)[0])


def _size_of(key: str, value: bytes) -> int:
    return len(key) + len(value) + ENTRY_OVERHEAD_BYTES
