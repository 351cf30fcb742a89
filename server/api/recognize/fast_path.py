"""The way of a camera's frame past Flask's machinery.

On a busy machine what Flask does around a request costs a frame a tenth of its time. A POST of one
image to /v1/recognize by a caller who may come in is therefore answered from here, by the functions
that Flask's route calls as well. All else goes on to Flask: other routes and bodies, callers that
are limited or must be told why they may not come in, browsers of other origins, and frames that
failed, with their error, so that there is one way in which errors are told.
"""

import io
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

import msgspec

from server.api.recognize.caching import age_header
from server.api.recognize.options import FrameOptions, frame_age_of, options, parse_frame_options
from server.api.recognize.routes import FAILED, recognition
from server.api.recognize.service import RecognitionService, log_fields
from server.config.settings import Settings
from server.http.access.auth import Authenticator
from server.http.access.caller import OWNER, Caller
from server.http.body.image import FILE_FIELDS, only_image, query_values, raw_image, to_options
from server.http.body.multipart import FORM, boundary_of, parts, whole_body
from server.http.probe_reserve import REFUSED
from server.http.request_log import CAMERA, STARTED, CompletedRequest, choose_id, log_request
from server.http.routes import FRAMES
from server.observe.metrics import Metrics
from server.recognition.answers import Answer, Options
from server.system.background import BackgroundQueue, Task

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

ROUTE = "/v1/recognize"
TYPES = ("image/", "application/octet-stream", FORM)
# The fields of a camera's form; what to say of others is the route's.
KNOWN, FILES = frozenset(FrameOptions.__struct_fields__), frozenset(FILE_FIELDS)


class FastPath:
    """WSGI middleware around the Flask application `app`."""

    def __init__(
        self,
        app: Wsgi,
        recognizing: RecognitionService,
        settings: Settings,
        doors: Authenticator,
        metrics: Metrics,
        afterwards: BackgroundQueue[Task],
        probes: Collection[str],
    ) -> None:
        """probes: the paths of requests that are not to wait for anything."""
        self._app, self._recognizing, self._settings = app, recognizing, settings
        self._doors, self._metrics, self._afterwards = doors, metrics, afterwards
        self._probes = probes
        self._most, self._most_parts = (
            int(settings.max_body_mb * 1_000_000),
            settings.max_form_parts,
        )
        self._limited = bool(settings.rate_per_key or settings.rate_per_address)

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        if (
            environ["PATH_INFO"] != ROUTE
            or environ["REQUEST_METHOD"] != "POST"
            or not environ.get("CONTENT_TYPE", "").startswith(TYPES)
            or self._limited
            or REFUSED in environ
            or not ("CONTENT_LENGTH" in environ or "HTTP_TRANSFER_ENCODING" in environ)
        ):
            # Whoever reads is to find what was answered; a probe is not to wait for anything.
            if environ["REQUEST_METHOD"] == "GET" and environ["PATH_INFO"] not in self._probes:
                self._afterwards.flush()
            return self._app(environ, start_response)
        started = time.perf_counter()
        let_in, caller = self._door(environ)
        if not let_in:
            return self._app(environ, start_response)
        environ[STARTED] = started
        if caller:
            environ[OWNER] = caller.name
        request_id = environ["HTTP_X_REQUEST_ID"] = choose_id(environ.get("HTTP_X_REQUEST_ID", ""))
        try:
            answer = self._answer(environ, request_id)
        except Exception as error:  # noqa: BLE001 - raised again in Flask's route, which tells it
            environ[FAILED], answer = error, None
        if answer is None:
            return self._app(environ, start_response)
        body, found, asked = answer
        seconds = time.perf_counter() - started
        name = caller.name if caller else None

        def told() -> None:
            fields = log_fields(found, asked)
            done = CompletedRequest(
                request_id, "POST", ROUTE, ROUTE, 200, seconds, name, None, fields
            )
            log_request(done, self._metrics)

        self._afterwards.submit(told)
        start_response(
            "200 OK",
            [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("X-Request-Id", request_id),
                *age_header(found),
            ],
        )
        return [body]

    def _door(self, environ: dict[str, Any]) -> tuple[bool, Caller | None]:
        """Whether the request may go on here, and whose it is; Flask decides on all others."""
        if self._settings.cors_origins and "HTTP_ORIGIN" in environ:
            return False, None
        let_in, caller = self._doors.admit(environ, FRAMES)
        return let_in and not (caller and caller.rate), caller

    def _answer(
        self, environ: dict[str, Any], request_id: str
    ) -> tuple[bytes, Answer, Options] | None:
        """The answer's body, the answer and what was asked; None for a form that is left to
        Flask, whose body is put back.

        Errors are those of /v1/recognize, and of Werkzeug for a body that can't be taken.
        """
        settings = self._settings
        if environ["CONTENT_TYPE"].startswith(FORM):
            read = self._form(environ)
            if read is None:
                return None
            data, query = read
        else:
            data = raw_image(whole_body(environ, self._most))
            query = parse_frame_options(environ.get("QUERY_STRING", ""))
        environ[CAMERA] = query.camera
        age = frame_age_of(query, settings, self._recognizing.clock_skew)
        asked = options(query, settings, age)
        recognizer = self._recognizing.recognizer(query.model, query.version, asked.deadline)
        answer = self._recognizing.answer(recognizer, data, asked, request_id, environ)
        body = msgspec.json.encode(recognition(answer, query, age, request_id))
        return body, answer, asked

    def _form(self, environ: dict[str, Any]) -> tuple[bytes, FrameOptions] | None:
        """The file and the options of a form; None for one that has no file or has other fields,
        as `_answer` says.

        Flask's request would take four times as long, to look into what no camera sends.
        """
        whole, boundary = whole_body(environ, self._most), boundary_of(environ["CONTENT_TYPE"])
        fields: dict[str, str] = {}
        files: list[tuple[str, bytes]] = []
        for segment, data, text in parts(whole, boundary, self._most_parts) if boundary else ():
            if text is None:
                files.append((segment.name, data))
            else:
                fields.setdefault(segment.name, text)
        if not (files and KNOWN.issuperset(fields) and FILES.issuperset(n for n, _ in files)):
            environ["wsgi.input"] = io.BytesIO(whole)
            return None
        asked = environ.get("QUERY_STRING", "")
        query = parse_frame_options(asked)
        if fields:
            query = to_options(FrameOptions, {**fields, **query_values(asked)})
        return only_image(files), query
