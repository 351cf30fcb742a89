"""Frames that come again: answered from the cache, or together with the same frame in hand."""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec
from flask import Response
from werkzeug.datastructures import RequestCacheControl

from server.config.thread_budget import MOST_SHARING
from server.errors import LinesideError
from server.http.access.caller import OWNER
from server.observe.metrics import Metrics
from server.recognition.answers import Answer, Options
from server.recognition.recognizer import STAGES, Recognizer
from server.store.cache.answers import (
    AnswerCache,
    CachedAnswer,
    CacheDownError,
    CacheEntry,
    CacheKey,
)
from server.store.cache.single_flight import SingleFlight


def own_id(environ: Mapping[str, Any], request_id: str) -> str:
    """What a request's answer is found by: ids are the callers' choice, and each has its own."""
    return f"{environ.get(OWNER, '')}:{request_id}"


class Caching:
    """`cache` in front of the models, by the request's Cache-Control (RFC 9111, 5.2.1):

    `no-cache`: computed anew, and kept. `no-store`: not kept. `max-age`: no older answer will do.
    A cache that can't be asked is as good as empty, and counted.
    """

    def __init__(self, cache: AnswerCache, metrics: Metrics) -> None:
        self._cache, self._flights = cache, SingleFlight[CacheEntry](MOST_SHARING)
        self._count = {
            result: metrics.cache_lookups.labels(result).inc
            for result in ("hit", "miss", "shared", "bypass", "error")
        }

    def frame(
        self,
        recognizer: Recognizer,
        data: bytes,
        options: Options,
        request_id: str,
        asked: RequestCacheControl,
        seconds: int | None = None,
    ) -> Answer:
        """As `Recognizer.recognize`; a CachedAnswer where it was computed for another request.
        request_id: as `own_id` makes it. seconds: for which it is kept, `cache_s` without.

        A hit takes no slot of the admission, and neither does waiting for the same frame in hand:
        DeadlineExceededError where that takes too long.
        """
        started = time.perf_counter()
        place = self._cache.place(recognizer, data, options, seconds)
        if asked.no_cache:
            self._count["bypass"]()
            answer = recognizer.recognize(data, options)
            if not asked.no_store:
                self._name(request_id, place, self._keep(place, answer))
            return answer
        kept, result = self._look(place, asked.max_age)
        if kept is None and asked.no_store:
            self._count[result]()
            return recognizer.recognize(data, options)
        if kept is None:
            try:
                kept, result = self._compute(recognizer, place, data, options, asked.max_age)
            except LinesideError:
                self._count[result]()
                raise
        self._count[result]()
        self._name(request_id, place, kept)
        if result in ("hit", "shared"):
            return _cached(kept, time.perf_counter() - started)
        return kept.answer

    def _compute(
        self,
        recognizer: Recognizer,
        place: CacheKey,
        data: bytes,
        options: Options,
        max_age: int | None,
    ) -> tuple[CacheEntry, str]:
        """A new answer, or that of the same frame in hand, with `miss`, `error`, `shared`, or
        `hit` where it was kept a moment ago."""
        result = "miss"

        def work() -> CacheEntry:
            nonlocal result
            # Another may have landed between the caller's look and this flight.
            kept, result = self._look(place, max_age)
            return kept or self._keep(place, recognizer.recognize(data, options))

        kept, shared = self._flights.run(place.key, work, options.deadline)
        return kept, "shared" if shared else result

    def recent(self, request_id: str) -> tuple[Answer, float] | None:
        """The answer that the request of this id got, and its age in seconds; None where there is
        none any more, or the cache can't be asked. request_id: as `own_id` makes it."""
        with suppress(CacheDownError):
            kept = self._cache.recent(request_id)
            return (kept.answer, _age(kept)) if kept else None
        return None

    def _keep(self, place: CacheKey, answer: Answer) -> CacheEntry:
        kept = CacheEntry(time.time(), answer)
        with suppress(CacheDownError):  # counted with the look before it
            self._cache.keep(place, kept)
        return kept

    def _name(self, request_id: str, place: CacheKey, kept: CacheEntry) -> None:
        with suppress(CacheDownError):
            self._cache.name(request_id, place, kept)

    def _look(self, place: CacheKey, max_age: int | None) -> tuple[CacheEntry | None, str]:
        """The answer at `place`, and `hit`, `miss` or `error`."""
        try:
            kept = self._cache.look(place.key)
        except CacheDownError:
            return None, "error"
        if kept is None or (max_age is not None and time.time() - kept.at > max_age):
            return None, "miss"
        return kept, "hit"


def _age(kept: CacheEntry) -> float:
    """Seconds; 0 where the clock went back."""
    return max(0.0, time.time() - kept.at)


def _cached(kept: CacheEntry, seconds: float) -> CachedAnswer:
    """The kept answer with this request's timing: nothing but `seconds` in all."""
    fields = msgspec.structs.asdict(kept.answer)
    fields["timing"] = {**dict.fromkeys(STAGES, 0.0), "total": seconds}
    return CachedAnswer(**fields, age=_age(kept))


def age_header(answer: Answer) -> tuple[tuple[str, str], ...]:
    """The header Age (RFC 9111, 5.1), in whole seconds, where `answer` was another request's."""
    return (("Age", str(int(answer.age))),) if isinstance(answer, CachedAnswer) else ()


def with_age(response: Response, answer: Answer) -> Response:
    """`response` with `age_header`."""
    response.headers.extend(age_header(answer))
    return response
