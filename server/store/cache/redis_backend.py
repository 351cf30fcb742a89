"""Flask-Caching's backend in Redis, changed so that no frame waits for a Redis that is down.

Each command has a short time. After the first that fails none is sent until a thread has heard from
Redis again, so that only the frames of that moment wait at all.
"""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from cachelib.serializers import RedisSerializer
from flask_caching.backends.rediscache import RedisCache
from redis import Redis, RedisError, ResponseError
from redis.backoff import NoBackoff
from redis.retry import Retry

from server.errors import SettingsError
from server.observe.logs import ProblemLog
from server.store.cache import CacheDownError

# Seconds that a connection or an answer of Redis may take.
COMMAND_TIMEOUT_S = 0.1
# Seconds between two pings of a Redis that is down.
PING_INTERVAL_S = 1.0
KEY_PREFIX = "lineside:"
NOT_ASKED = "it was not asked yet"
NO_REASON = "it does not answer"

T = TypeVar("T")


def connection_options() -> dict[str, object]:
    """Return what the client is made with, as Flask-Caching's CACHE_OPTIONS: by default it would
    wait and try again several times."""
    return {
        "socket_connect_timeout": COMMAND_TIMEOUT_S,
        "socket_timeout": COMMAND_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
    }


def check_url(url: str) -> None:
    """Raise SettingsError if `url` is not the address of a Redis."""
    try:
        # Options of the address are only looked at when a connection is made.
        Redis.from_url(url, **connection_options()).connection_pool.make_connection()
    except (ValueError, TypeError, RedisError) as error:
        raise SettingsError(f"cache_url is not the address of a Redis: {error}") from None


class _PlainBytes(RedisSerializer):
    """Bytes as they are. This override must stay: cachelib's own unpickles the values in Redis,
    and so runs code of anyone who can write there."""

    def dumps(self, value: Any, protocol: int = 0) -> bytes:
        return bytes(value)

    def loads(self, bvalue: Any) -> bytes | None:
        return bvalue if isinstance(bvalue, bytes) else None


class BoundedRedis(RedisCache):
    """Bytes by key in a Redis, whose memory is bounded by its own `maxmemory`.

    `get` and `set` must stay overridden: Flask-Caching's own would ask a Redis that is down with
    every frame, and raise what the client raises. Here both raise CacheDownError. `_lock` guards
    `_down`, the reason for which no command is sent, or "".
    """

    serializer = _PlainBytes()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._lock = threading.Lock()
        self._down = NOT_ASKED
        self._outage = ProblemLog(
            "the cache's Redis is down, frames go on", "the cache's Redis is back"
        )
        # Redis answers, but refuses: its memory is full, or it is another's replica.
        self._refusal = ProblemLog(
            "the cache's Redis refuses, frames go on", "the cache's Redis takes answers again"
        )
        self._start_pings()

    def get(self, key: str) -> bytes | None:
        """Return the value; None if there is none. Raises CacheDownError."""
        value: bytes | None = self._ask(lambda: super(BoundedRedis, self).get(key))
        return value

    def set(self, key: str, value: bytes, timeout: int | timedelta | None = None) -> bool:
        """Keep `value` for `timeout` seconds. Raises CacheDownError."""
        done = bool(self._ask(lambda: super(BoundedRedis, self).set(key, value, timeout)))
        self._refusal.went_well()
        return done

    def _ask(self, command: Callable[[], T]) -> T:
        if self._down:
            raise CacheDownError(self._down)
        try:
            return command()
        except ResponseError as error:
            self._refusal.failed(str(error))
            raise CacheDownError(str(error)) from None
        except (RedisError, OSError) as error:
            self._stop_asking(str(error) or NO_REASON)
            raise CacheDownError(str(error)) from None

    def _stop_asking(self, reason: str) -> None:
        with self._lock:
            if self._down:
                return
            self._down = reason
        self._outage.failed(reason)
        self._start_pings()

    def _start_pings(self) -> None:
        threading.Thread(target=self._ping_until_up, name="cache-redis", daemon=True).start()

    def _ping_until_up(self) -> None:
        pause = threading.Event()
        while reason := self._ping():
            self._outage.failed(reason)
            pause.wait(PING_INTERVAL_S)
        with self._lock:
            # Logged before anyone finds Redis down again and logs that.
            self._outage.went_well()
            self._down = ""

    def _ping(self) -> str:
        """Return why Redis does not answer; "" if it does."""
        try:
            self._write_client.ping()
        except (RedisError, OSError) as error:
            return str(error) or NO_REASON
        return ""
