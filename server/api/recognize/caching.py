"""Frames that come again: answered from the cache, or together with the same frame in work."""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
from werkzeug.datastructures import RequestCacheControl

from server.config.thread_budget import SHARING_REQUESTS_MAX
from server.errors import LinesideError
from server.http.wsgi import RequestContext
from server.observe.metrics import Metrics
from server.recognition.answers import Answer, Options
from server.recognition.recognizer import STAGES, Recognizer
from server.recognition.tasks.task import Reader
from server.store.cache import CacheDownError
from server.store.cache.answers import AnswerCache, CachedAnswer, CacheEntry, CacheKey
from server.store.cache.single_flight import SingleFlight


def own_id(context: RequestContext, request_id: str) -> str:
    """Return the name under which the answer to a request of the caller is found: callers choose
    the ids, and each caller has ids of its own."""
    return f"{context.caller_name}:{request_id}"


class Caching:
    """`cache` in front of the models, by the request's Cache-Control (RFC 9111, 5.2.1):

    `no-cache`: computed again, and kept. `no-store`: not kept. `max-age`: no older answer will do.
    A cache that can't be asked is as good as empty, and counted.
    """

    def __init__(self, cache: AnswerCache, metrics: Metrics) -> None:
        self._cache = cache
        self._in_work = SingleFlight[CacheEntry](SHARING_REQUESTS_MAX)
        self._count = {
            result: metrics.cache_lookups.labels(result).inc
            for result in ("hit", "miss", "shared", "bypass", "error")
        }

    def frame(
        self,
        recognizer: Recognizer,
        reader: Reader[Any],
        data: bytes,
        options: Options,
        request_id: str,
        control: RequestCacheControl,
        seconds: int | None = None,
    ) -> Answer:
        """As `Recognizer.recognize` by `reader`; a CachedAnswer if it was computed for another
        request.

        A hit takes no slot of the admission, and neither does waiting for the same frame in work,
        which raises DeadlineExceededError if it takes too long.

        Args:
            request_id: as `own_id` makes it.
            seconds: for which the answer is kept; `cache_s` without.
        """
        started = time.perf_counter()
        key = self._cache.key(recognizer, reader, data, options, seconds)
        recognize = partial(recognizer.recognize, data, options, reader=reader)
        if control.no_cache:
            self._count["bypass"]()
            answer = recognize()
            if not control.no_store:
                self._link(request_id, key, self._put(key, answer))
            return answer
        entry, result = self._look(key, control.max_age)
        if entry is None and control.no_store:
            self._count[result]()
            return recognize()
        if entry is None:
            try:
                entry, result = self._compute(key, recognize, options.deadline, control.max_age)
            except LinesideError:
                self._count[result]()
                raise
        self._count[result]()
        self._link(request_id, key, entry)
        if result in ("hit", "shared"):
            return _cached(entry, time.perf_counter() - started)
        return entry.answer

    def _compute(
        self,
        key: CacheKey,
        recognize: Callable[[], Answer],
        deadline: float,
        max_age: int | None,
    ) -> tuple[CacheEntry, str]:
        """Return a new answer, or that of the same frame in work, and the result: `miss`, `error`,
        `shared`, or `hit` if it was put into the cache a moment ago."""
        result = "miss"

        def work() -> CacheEntry:
            nonlocal result
            # Another thread may have ended between the caller's look and this one.
            entry, result = self._look(key, max_age)
            return entry or self._put(key, recognize())

        entry, shared = self._in_work.run(key.key, work, deadline)
        return entry, "shared" if shared else result

    def recent(self, request_id: str) -> tuple[Answer, float] | None:
        """Return the answer that the request of this id got, and its age in seconds; None if it
        is not kept any more, or the cache can't be asked. request_id: as `own_id` makes it."""
        with suppress(CacheDownError):
            entry = self._cache.get_linked(request_id)
            return (entry.answer, _age(entry)) if entry else None
        return None

    def _put(self, key: CacheKey, answer: Answer) -> CacheEntry:
        entry = CacheEntry(time.time(), answer)
        with suppress(CacheDownError):  # counted with the look before it
            self._cache.put(key, entry)
        return entry

    def _link(self, request_id: str, key: CacheKey, entry: CacheEntry) -> None:
        with suppress(CacheDownError):
            self._cache.link(request_id, key, entry)

    def _look(self, key: CacheKey, max_age: int | None) -> tuple[CacheEntry | None, str]:
        """Return the entry under `key`, and `hit`, `miss` or `error`."""
        try:
            entry = self._cache.get(key.key)
        except CacheDownError:
            return None, "error"
        if entry is None or (max_age is not None and time.time() - entry.at > max_age):
            return None, "miss"
        return entry, "hit"


def _age(entry: CacheEntry) -> float:
    """Return its age in seconds; 0 if the clock went back."""
    return max(0.0, time.time() - entry.at)


def _cached(entry: CacheEntry, seconds: float) -> CachedAnswer:
    """Return the cached answer with this request's timing: nothing but `seconds` in all."""
    fields = msgspec.structs.asdict(entry.answer)
    fields["timing"] = {**dict.fromkeys(STAGES, 0.0), "total": seconds}
    return CachedAnswer(**fields, age=_age(entry))
