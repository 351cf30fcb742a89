"""Answers kept for a while, so that a frame that comes again costs no inference.

A key is made of everything that an answer follows from: the image's bytes, the model with its
version and the digests of its files, the options, and the program that made it. Never of a name or
address under which a frame came.
"""

import hashlib
import threading
import time
import weakref
from collections.abc import Callable

import msgspec
from flask import Flask

from server import __version__
from server.config.settings import Settings
from server.recognition.answers import Answer, Options
from server.recognition.manifest import MODEL, digest
from server.recognition.recognizer import Recognizer

MEMORY, REDIS = (
    "server.store.cache.memory_backend.MemoryCache",
    "server.store.cache.redis_backend.BoundedRedis",
)


class CacheDownError(Exception):
    """The cache can't be asked now; the message says why."""


class CacheEntry(msgspec.Struct, frozen=True, array_like=True):
    """An answer as it is kept. at: when it was made, in Unix seconds."""

    at: float
    answer: Answer


class CacheKey(msgspec.Struct, frozen=True):
    """Where an answer is kept, by a key of 64 hex digits, and for how many seconds."""

    key: str
    seconds: int


class CachedAnswer(Answer, frozen=True):
    """An answer that was another request's. age: seconds since it was made; `timing` is this
    request's own."""

    age: float = 0.0


class AnswerCache:
    """Answers by what they follow from, and by the ids of the requests that got them.

    The backend is Flask-Caching's, opened when it is first used, or by `open`: in memory up to
    `cache_mb`, or in the Redis at `cache_url`. `_lock` guards `_identities`, the digest of each
    model in use, and the opening. Everything that asks the backend raises CacheDownError where it
    can't be asked.
    """

    def __init__(self, app: Flask, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._lock = threading.Lock()
        self._get: Callable[[str], bytes | None] | None = None
        self._set: Callable[[str, bytes, int], object]
        self._identities: weakref.WeakKeyDictionary[Recognizer, bytes] = weakref.WeakKeyDictionary()

    def open(self) -> None:
        """Imports and sets up what the cache is kept in, once: 6 ms, and 80 ms for Redis.

        Raises SettingsError where `cache_url` can't be understood.
        """
        with self._lock:
            if self._get is None:
                self._set, self._get = _open(self._app, self._settings)

    def place(
        self, recognizer: Recognizer, data: bytes, options: Options, seconds: int | None = None
    ) -> CacheKey:
        """The place of the answer to the image file `data`, for `seconds`, or `cache_s` without.

        Those of another time are others: nobody gets an answer older than asked for.
        """
        seconds = self._settings.cache_s if seconds is None else seconds
        asked = f"{options.top_k} {options.threshold!r} {seconds} ".encode()
        made = hashlib.sha256(data).digest() + self._identity(recognizer) + asked
        return CacheKey(hashlib.sha256(made).hexdigest(), seconds)

    def look(self, key: str) -> CacheEntry | None:
        """The answer under `key`, unless there is none or its time is over."""
        return self._read(f"answer:{key}")

    def keep(self, place: CacheKey, kept: CacheEntry) -> None:
        """Keeps an answer."""
        self._write(f"answer:{place.key}", msgspec.msgpack.encode(kept), place.seconds)

    def name(self, request_id: str, place: CacheKey, kept: CacheEntry) -> None:
        """Lets the answer at `place` be found by the id of a request that got it, as long as it
        is kept."""
        left = place.seconds - int(time.time() - kept.at)
        if left > 0:
            self._write(f"request:{request_id}", place.key.encode(), left)

    def recent(self, request_id: str) -> CacheEntry | None:
        """The answer that the request of this id got, unless there is none or its time is over."""
        self.open()
        assert self._get is not None
        key = self._get(f"request:{request_id}")
        return self.look(key.decode("latin-1")) if key else None

    def _read(self, name: str) -> CacheEntry | None:
        self.open()
        assert self._get is not None
        value = self._get(name)
        if value is None:
            return None
        try:
            return msgspec.msgpack.decode(value, type=CacheEntry)
        except msgspec.DecodeError:
            return None  # not written by this program: as good as absent, and soon written over

    def _write(self, name: str, value: bytes, seconds: int) -> None:
        self.open()
        self._set(name, value, seconds)

    def _identity(self, recognizer: Recognizer) -> bytes:
        """sha256 of all that is told of the model, its files' digests included, and of how images
        are read for it."""
        with self._lock:
            found = self._identities.get(recognizer)
        if found is None:
            bundle = recognizer.bundle
            # A bare model has no bundle.json that gives its digest.
            file = bundle.manifest.sha256.get(MODEL) or digest(bundle.model_path)
            told = msgspec.msgpack.encode(
                (__version__, file, bundle.manifest, bundle.labels, recognizer.limits)
            )
            found = hashlib.sha256(told).digest()
            with self._lock:
                self._identities[recognizer] = found
        return found


Opened = tuple[Callable[[str, bytes, int], object], Callable[[str], bytes | None]]


def _open(app: Flask, settings: Settings) -> Opened:
    from flask_caching import Cache

    config: dict[str, object] = {"CACHE_DEFAULT_TIMEOUT": settings.cache_s}
    if settings.cache_url:
        config |= {"CACHE_TYPE": REDIS, "CACHE_REDIS_URL": settings.cache_url}
    else:
        options = {"max_bytes": int(settings.cache_mb * 1e6)}
        config |= {"CACHE_TYPE": MEMORY, "CACHE_OPTIONS": options}
    cache = Cache(with_jinja2_ext=False)
    cache.init_app(app, config)
    return cache.set, cache.get
