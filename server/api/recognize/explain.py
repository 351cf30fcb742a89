"""POST /v1/explain: what a model is shown of a frame, and where it looks, beside the line."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore

import msgspec
from flask import request

from server.api.recognize.options import IMAGE_TYPES, Name, Version
from server.api.recognize.service import RecognitionService
from server.config.thread_budget import EXPLAINING_REQUESTS_MAX
from server.errors import OverloadedError
from server.http.body.image import need_length, read_image, read_options
from server.http.routes import FRAMES, MULTIPART, Files, route
from server.http.wsgi import current
from server.recognition.admission import Admission
from server.recognition.answers import Options
from server.recognition.tasks.explain import Explanation, explain

# Seconds that an explanation may take, and between looks for a free interpreter.
EXPLAIN_TIMEOUT_S, POLL_S = 20.0, 0.01


class ExplainQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """model, version: which bundle is asked; without, the default one."""

    model: Name | None = None
    version: Version | None = None


class Turns:
    """Interpreters of `admission` that no frame of the line waits for, until `until` (seconds of
    time.monotonic()). At least half of the time is left to others."""

    def __init__(self, admission: Admission, until: float) -> None:
        self._admission = admission
        self._until = until
        self._next = 0.0

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold an interpreter. Raises OverloadedError if none is free in time."""
        time.sleep(max(0.0, self._next - time.monotonic()))
        while (now := time.monotonic()) < self._until:
            with self._admission.idle_slot() as is_free:
                if is_free:
                    yield
                    self._next = 2 * time.monotonic() - now
                    return
            time.sleep(POLL_S)
        raise OverloadedError("the line needs all interpreters: ask again later", retry_after=10)


class ExplainRoutes:
    """Explains answers of the models of `recognizing`."""

    def __init__(self, recognizing: RecognitionService, admission: Admission) -> None:
        self._recognizing = recognizing
        self._admission = admission
        self._places = BoundedSemaphore(EXPLAINING_REQUESTS_MAX)

    @route(
        "POST",
        "/v1/explain",
        rights=FRAMES,
        query=ExplainQuery,
        body={MULTIPART: Files(("file", "image")), **dict.fromkeys(IMAGE_TYPES, bytes)},
        errors=(400, 404, 413, 415, 422, 503),
    )
    def explain(self) -> Explanation:
        """Return what a model is shown of a frame and, if it is a classifier, where it looks. The
        frame is not judged: journal, outputs, samples and counts know nothing of it. It takes only
        interpreters that no frame needs, so it may take seconds."""
        need_length(request)
        data, query = read_image(request), read_options(ExplainQuery, request)
        until = time.monotonic() + EXPLAIN_TIMEOUT_S
        recognizer = self._recognizing.recognizer(query.model, query.version, until)
        if not self._places.acquire(blocking=False):
            raise OverloadedError("another frame is being explained", retry_after=5)
        try:
            turns = Turns(self._admission, until)
            options = Options(deadline=until)
            return explain(recognizer, data, options, current().request_id, turns.take)
        finally:
            self._places.release()
