"""Flask-Caching's backend in this process's memory, bounded by bytes: the least recently used go.

Flask-Caching's own SimpleCache is bounded by a count, which says nothing of memory.
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
OVERHEAD = 450


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
        self.max_bytes, self._clock = max_bytes, clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._size = 0

    @classmethod
    def factory(
        cls, app: Flask, config: dict[str, Any], args: list[Any], kwargs: dict[str, Any]
    ) -> "MemoryCache":
        """What Flask-Caching makes of `CACHE_TYPE` and `CACHE_OPTIONS`."""
        return cls(*args, **kwargs)

    @property
    def size(self) -> int:
        """Bytes in use at this moment."""
        return self._size

    def get(self, key: str) -> bytes | None:
        """The value; None where there is none, or where its time is over."""
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
        """Keeps `value` for `timeout` seconds; 0: for ever. False where it is larger than all the
        room there is."""
        with self._lock:
            return self._put(key, value, timeout)

    def add(self, key: str, value: bytes, timeout: int | timedelta | None = None) -> bool:
        """As `set`, but leaves a value that is there. False for that too."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry[1] > self._clock():
                return False
            return self._put(key, value, timeout)

    def has(self, key: str) -> bool:
        """Whether there is a value whose time is not over."""
        with self._lock:
            entry = self._entries.get(key)
            return entry is not None and entry[1] > self._clock()

    def delete(self, key: str) -> bool:
        """Whether there was one to delete."""
        with self._lock:
            if key not in self._entries:
                return False
            self._drop(key)
            return True

    def clear(self) -> bool:
        """Forgets everything."""
        with self._lock:
            self._entries.clear()
            self._size = 0
            return True

    def _put(self, key: str, value: bytes, timeout: int | timedelta | None) -> bool:
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
    return len(key) + len(value) + OVERHEAD
