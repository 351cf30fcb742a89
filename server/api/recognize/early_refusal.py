"""Refusals before Flask sees the request.

When far more comes in than can be done, most of what a server does is refuse. What a refusal
costs is taken from the frames that could be answered, so it is decided from the request's first
lines alone, with the same rules and the same answer as later on.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from werkzeug.exceptions import RequestTimeout

from server.api.recognize.options import FrameOptions, frame_age_of, options, parse_frame_options
from server.config.settings import Settings
from server.errors import LinesideError, OverloadedError
from server.http.access.auth import Authenticator
from server.http.errors import ErrorAnswer, ErrorBody, retry_header
from server.http.probe_reserve import REFUSED
from server.http.request_log import choose_id, let_in, safe_name
from server.http.routes import FRAMES
from server.observe.logs import LogThrottle
from server.observe.metrics import Metrics
from server.recognition.admission import Admission
from server.recognition.answers import FrameRefused, RefusalListener
from server.recognition.tensor_model import Model
from server.system.background import BackgroundQueue, Task
from server.values.wording import kept_sentence

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

# The routes whose requests are one frame each, with its options in the query string.
FRAME_PATHS = frozenset({"/v1/recognize"})
# The types of bodies that may name a camera.
WITH_OPTIONS = ("multipart/", "application/json", "application/x-www-form-urlencoded")
NOTHING = FrameOptions()
# In a WSGI environment, whether the sender has a valid key or is on this machine.
LET_IN = "lineside.let_in"
NO_HEADER = ("", "")


class EarlyRefusal:
    """WSGI middleware around `app` that answers 503 for frames that could not be admitted.

    Whoever may not come in is left to Flask, which says so and keeps no name that such a caller
    chose. A form or JSON whose query string names no camera is let through, since the body may. The
    log learns from `repeats` how many there were, since a line would cost more than the refusal.
    """

    def __init__(
        self,
        app: Wsgi,
        admission: Admission,
        settings: Settings,
        metrics: Metrics,
        repeats: LogThrottle,
        doors: Authenticator,
        afterwards: BackgroundQueue[Task],
        refusals: Sequence[RefusalListener] = (),
        *,
        served: Callable[[], Mapping[str, Model]],
    ) -> None:
        """refusals: are told each frame that is refused here. served: tells the models in memory,
        by name."""
        self._app, self._admission, self._metrics = app, admission, metrics
        self._repeats, self._doors, self._afterwards = repeats, doors, afterwards
        self._latest_only, self._most = settings.latest_only, settings.max_body_mb * 1e6
        self._settings, self._refusals, self._served = settings, refusals, served
        # Whoever has an answer in the cache is answered however many wait.
        self._paths = frozenset() if settings.cache else FRAME_PATHS

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        if (
            environ["PATH_INFO"] in self._paths
            and environ["REQUEST_METHOD"] == "POST"
            and self._admission.crowded
            and REFUSED not in environ
        ):
            started = time.perf_counter()
            error, query, again = self._refusal(environ)
            admitted, caller = self._doors.admit(environ, FRAMES) if error else (False, None)
            if error and admitted and _body_read(environ, self._most):
                environ[LET_IN] = let_in(caller, environ.get("REMOTE_ADDR"))
                return self._refuse(environ, query, error, again, started, start_response)
        return self._app(environ, start_response)

    def _refusal(
        self, environ: dict[str, Any]
    ) -> tuple[LinesideError | None, FrameOptions, tuple[str, str]]:
        """Why the frame can't be admitted, if so, what its query string asks, and the header that
        says whether to try again."""
        in_body = environ.get("CONTENT_TYPE", "").startswith(WITH_OPTIONS)
        query = NOTHING
        try:
            query = parse_frame_options(environ.get("QUERY_STRING", ""))
            if (in_body and not query.camera) or not self._serves(query):
                return None, query, NO_HEADER
            asked = options(query, self._settings, frame_age_of(query, self._settings))
        except (LinesideError, ValueError):
            return None, query, NO_HEADER  # the route says what is wrong with it
        # A deadline that the body may name is not known yet.
        known = not in_body or query.deadline_ms is not None
        try:
            self._admission.check(
                asked.deadline if known else math.inf,
                asked.camera,
                latest_only=asked.latest_only,
            )
        except LinesideError as error:
            # Else its frames and it would keep each other, and the request, until garbage is looked
            # for.
            return error.with_traceback(None), query, retry_header(error, asked)
        return None, query, NO_HEADER

    def _serves(self, query: FrameOptions) -> bool:
        """Whether the model that `query` names is in memory; what to say of another is the
        route's."""
        if query.model is None:
            return query.version is None
        model = self._served().get(query.model)
        return model is not None and query.version in (None, model.manifest.version)

    def _refuse(
        self,
        environ: dict[str, Any],
        query: FrameOptions,
        error: LinesideError,
        again: tuple[str, str],
        started: float,
        start_response: Callable[..., Any],
    ) -> list[bytes]:
        route = environ["PATH_INFO"]
        request_id = environ["HTTP_X_REQUEST_ID"]
        body = msgspec.json.encode(ErrorAnswer(ErrorBody(error.code, error.message, request_id)))
        at, seconds = time.time(), time.perf_counter() - started

        def told() -> None:
            self._metrics.finished(route, error.status, seconds)
            self._metrics.failed(route, error.reason)
            self._metrics.refuse(error.code)
            self._repeats.omit(error.code, route)
            if self._refusals:
                self._tell(at, query, error, environ, seconds)

        self._afterwards.submit(told)
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            again,
            ("X-Request-Id", request_id),
        ]
        start_response(f"{error.status} SERVICE UNAVAILABLE", headers)
        return [body]

    def _tell(
        self,
        at: float,
        query: FrameOptions,
        error: LinesideError,
        environ: dict[str, Any],
        seconds: float,
    ) -> None:
        model, camera, part = (
            safe_name(name or "") for name in (query.model, query.camera, query.part)
        )
        refusal = FrameRefused(
            at=at,
            request_id=environ["HTTP_X_REQUEST_ID"],
            status=error.status,
            code=error.code,
            model=model,
            camera=camera,
            part=part,
            seconds=seconds,
            reason=kept_sentence(error.message),
            cause=error.cause,
            address=environ.get("REMOTE_ADDR") or "",
            let_in=environ[LET_IN],
        )
        for listener in self._refusals:
            listener(refusal)


def _body_read(environ: dict[str, Any], most: float) -> bool:
    """Takes the body in, so that the connection can be used again; not one of unknown length, nor
    one that is refused for its own size or for not coming."""
    length = environ.get("CONTENT_LENGTH") or ""
    if not length.isdecimal() or int(length) > most:
        return False
    environ["HTTP_X_REQUEST_ID"] = choose_id(environ.get("HTTP_X_REQUEST_ID", ""))
    try:
        environ["wsgi.input"].read(int(length))
    except (RequestTimeout, OverloadedError):
        return False
    return True
