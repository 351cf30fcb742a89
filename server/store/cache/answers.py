"""Answers kept for a while, so that a frame that comes again costs no inference.

A key is made of everything that an answer depends on: the image's bytes, the model with its version
and the digests of its files, the verdict policy in force, the options, and the program that made
it. It never depends on a name or address under which a frame came.
"""

from __future__ import annotations

import hashlib
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import msgspec
from flask import Flask

from server import __version__
from server.config.settings import Settings
from server.recognition.answers import Answer, Options
from server.recognition.recognizer import Recognizer
from server.recognition.tasks.task import Reader

if TYPE_CHECKING:
    from flask_caching import Cache

# Classes that Flask-Caching imports by these names, as its setting CACHE_TYPE.
MEMORY_BACKEND = "server.store.cache.memory_backend.MemoryCache"
REDIS_BACKEND = "server.store.cache.redis_backend.BoundedRedis"


class CacheEntry(msgspec.Struct, frozen=True, array_like=True):
    """A cached answer. at: when it was made, in Unix seconds."""

    at: float
    answer: Answer


class CacheKey(msgspec.Struct, frozen=True):
    """The key of an answer, 64 hex digits, and for how many seconds the answer is kept."""

    key: str
    seconds: int


class CachedAnswer(Answer, frozen=True):
    """An answer that was another request's. age: seconds since it was made; `timing` is this
    request's own."""

    age: float = 0.0


class AnswerCache:
    """Answers by their keys, and by the ids of the requests that got them.

    The backend is Flask-Caching's, opened when it is first used, or by `open`: in memory up to
    `cache_mb`, or in the Redis at `cache_url`. `_lock` guards `_identities`, the digest of each
    model in use with its policy, by reader, and the opening. Everything that asks the backend
    raises CacheDownError if it can't be asked.
    """

    def __init__(self, app: Flask, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._lock = threading.Lock()
        self._backend: Cache | None = None
        self._identities: weakref.WeakKeyDictionary[Reader[Any], bytes] = (
            weakref.WeakKeyDictionary()
        )

    def open(self) -> Cache:
        """Return the backend, imported and set up once: 6 ms, and 80 ms for Redis.

        Raises SettingsError if `cache_url` can't be understood.
        """
        with self._lock:
            if self._backend is None:
                self._backend = self._make_backend()
            return self._backend

    def _make_backend(self) -> Cache:
        from flask_caching import Cache

        config: dict[str, object] = {"CACHE_DEFAULT_TIMEOUT": self._settings.cache_s}
        if url := self._settings.cache_url:
            from server.store.cache.redis_backend import KEY_PREFIX, check_url, connection_options

            check_url(url)
            config["CACHE_TYPE"] = REDIS_BACKEND
            config["CACHE_REDIS_URL"] = url
            config["CACHE_KEY_PREFIX"] = KEY_PREFIX
            config["CACHE_OPTIONS"] = connection_options()
        else:
            config["CACHE_TYPE"] = MEMORY_BACKEND
            config["CACHE_OPTIONS"] = {"max_bytes": int(self._settings.cache_mb * 1e6)}
        backend = Cache(with_jinja2_ext=False)
        backend.init_app(self._app, config)
        return backend

    def key(
        self,
        recognizer: Recognizer,
        reader: Reader[Any],
        data: bytes,
        options: Options,
        seconds: int | None = None,
    ) -> CacheKey:
        """Return the key of the answer to the image file `data` by the policy of `reader`, kept
        for `seconds`, or `cache_s` without.

        Answers kept for another time have other keys: nobody gets one older than asked for.
        """
        seconds = self._settings.cache_s if seconds is None else seconds
        settings = f"{options.top_k} {options.threshold!r} {seconds} ".encode()
        parts = hashlib.sha256(data).digest() + self._identity(recognizer, reader) + settings
        return CacheKey(hashlib.sha256(parts).hexdigest(), seconds)

    def get(self, key: str) -> CacheEntry | None:
        """Return the entry under `key`; None if there is none or its time is over."""
        value = self.open().get(f"answer:{key}")
        if value is None:
            return None
        try:
            return msgspec.msgpack.decode(value, type=CacheEntry)
        except msgspec.DecodeError:
            return None  # not written by this program: as good as absent, and soon written over

    def put(self, key: CacheKey, entry: CacheEntry) -> None:
        self.open().set(f"answer:{key.key}", msgspec.msgpack.encode(entry), key.seconds)

    def link(self, request_id: str, key: CacheKey, entry: CacheEntry) -> None:
        """Let `entry` be found by the id of a request that got it, as long as it is kept."""
        seconds = key.seconds - int(time.time() - entry.at)
        if seconds > 0:
            self.open().set(f"request:{request_id}", key.key.encode(), seconds)

    def get_linked(self, request_id: str) -> CacheEntry | None:
        """Return the entry that was linked to this id; None if there is none or its time is
        over."""
        key = self.open().get(f"request:{request_id}")
        return self.get(key.decode("latin-1")) if key else None

    def _identity(self, recognizer: Recognizer, reader: Reader[Any]) -> bytes:
        """Return the sha256 of the model's description, its files' digests included, of the policy
        in force, and of how images are read and measured for it."""
        with self._lock:
            identity = self._identities.get(reader)
        if identity is None:
            bundle = recognizer.bundle
            description = msgspec.msgpack.encode(
                (
                    __version__,
                    bundle.model_sha256(),
                    bundle.manifest,
                    bundle.labels,
                    reader.policy,
                    reader.policy_source,
                    recognizer.limits,
                    recognizer.measures,
                )
            )
            identity = hashlib.sha256(description).digest()
            with self._lock:
                self._identities[reader] = identity
        return identity
