"""Flask-Caching's backend in Redis, that a frame never waits for.

Each command has a short time. After the first that fails none is sent until a thread of its own
has heard from Redis again, so that of all frames only those at that moment wait at all.
"""

import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from cachelib.serializers import RedisSerializer
from flask import Flask
from flask_caching.backends.rediscache import RedisCache
from redis import Redis, RedisError, ResponseError
from redis.backoff import NoBackoff
from redis.retry import Retry

from server.errors import SettingsError
from server.store.cache.answers import CacheDownError

logger = logging.getLogger(__name__)

# Seconds: for a connection or an answer of Redis; between looks whether it is back.
PATIENCE = 0.1
AGAIN = 1.0
PREFIX = "lineside:"
UNASKED = "it was not asked yet"

T = TypeVar("T")


def client_of(url: str) -> Redis:
    """A client of the Redis at `url`, not connected yet. Raises SettingsError where it is no such
    address."""
    try:
        client = Redis.from_url(
            url,
            socket_connect_timeout=PATIENCE,
            socket_timeout=PATIENCE,
            retry=Retry(NoBackoff(), 0),
        )
        # What the address asks for beyond host and number is looked at only here.
        client.connection_pool.make_connection()
    except (ValueError, TypeError, RedisError) as error:
        raise SettingsError(f"cache_url is not the address of a Redis: {error}") from None
    return client


class _Plain(RedisSerializer):
    """Bytes as they are. cachelib's own would unpickle whatever lies in Redis, and so run what
    anyone who can write there put in."""

    def dumps(self, value: Any, protocol: int = 0) -> bytes:
        return bytes(value)

    def loads(self, bvalue: Any) -> bytes | None:
        return bvalue if isinstance(bvalue, bytes) else None


class BoundedRedis(RedisCache):
    """Bytes by key in a Redis, whose memory is bounded by its own `maxmemory`.

    `get` and `set` raise CacheDownError where Redis can't be asked now, or refuses. `_lock` guards
    `_down`, the reason for which no command is sent, empty where they are, and `_refused`, whether
    it was logged that Redis keeps nothing.
    """

    serializer = _Plain()

    def __init__(self, client: Redis, default_timeout: int) -> None:
        super().__init__(client, default_timeout=default_timeout, key_prefix=PREFIX)
        self._client = client
        self._lock = threading.Lock()
        self._down = UNASKED
        self._refused = False
        self._look_again()

    @classmethod
    def factory(
        cls, app: Flask, config: dict[str, Any], args: list[Any], kwargs: dict[str, Any]
    ) -> "BoundedRedis":
        """What Flask-Caching makes of `CACHE_TYPE` and `CACHE_REDIS_URL`. Raises SettingsError."""
        return cls(client_of(config["CACHE_REDIS_URL"]), kwargs["default_timeout"])

    def get(self, key: str) -> bytes | None:
        """The value; None where there is none. Raises CacheDownError."""
        found: bytes | None = self._ask(lambda: super(BoundedRedis, self).get(key))
        return found

    def set(self, key: str, value: bytes, timeout: int | timedelta | None = None) -> bool:
        """Keeps `value` for `timeout` seconds. Raises CacheDownError."""
        kept = bool(self._ask(lambda: super(BoundedRedis, self).set(key, value, timeout)))
        self._refused = False
        return kept

    def _ask(self, command: Callable[[], T]) -> T:
        if self._down:
            raise CacheDownError(self._down)
        try:
            return command()
        except ResponseError as error:
            self._complain(str(error))
            raise CacheDownError(str(error)) from None
        except (RedisError, OSError) as error:
            self._failed(str(error))
            raise CacheDownError(str(error)) from None

    def _complain(self, reason: str) -> None:
        """Redis answers, but no: its memory is full, or it is another's replica."""
        with self._lock:
            if self._refused:
                return
            self._refused = True
        fields = {"reason": reason}
        logger.error("the cache's Redis refuses, frames go on", extra={"fields": fields})

    def _failed(self, reason: str) -> None:
        with self._lock:
            if self._down:
                return
            self._down = reason or "it does not answer"
        fields = {"reason": self._down}
        logger.error("the cache's Redis is down, frames go on", extra={"fields": fields})
        self._look_again()

    def _look_again(self) -> None:
        threading.Thread(target=self._await, name="cache-redis", daemon=True).start()

    def _await(self) -> None:
        """Until Redis answers."""
        pause, told = threading.Event(), self._down != UNASKED
        while (reason := self._silence()) is not None:
            if not told:
                fields = {"reason": reason}
                logger.error("the cache's Redis is down, frames go on", extra={"fields": fields})
                told = True
            pause.wait(AGAIN)
        with self._lock:
            self._down = ""
            # Before anyone finds it down again, and says so.
            if told:
                logger.info("the cache's Redis is back")

    def _silence(self) -> str | None:
        """Why Redis does not answer; None where it does."""
        try:
            self._client.ping()
        except (RedisError, OSError) as error:
            return str(error)
        return None
