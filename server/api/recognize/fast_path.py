"""The way of a camera's frame past Flask: answered, or refused at once, by one middleware.

On a busy machine what Flask does around a request costs a frame a twelfth of its time (see
docs/benchmark.md). A POST of one image to /v1/recognize by a caller who may come in is therefore
answered from here, by the functions that Flask's route calls as well; an error too. All else goes
on to Flask: other routes and bodies, callers that are limited or must be told why they may not come
in, and browsers of other origins.

If far more comes in than can be done, most of what a server does is refuse. What a refusal costs is
taken from the frames that could be answered, so it is decided from the request's first lines alone,
with the same rules and the same answer as later on.
"""

import io
import math
import time
from collections.abc import Callable, Collection, Iterable
from http import HTTPStatus
from typing import Any

import msgspec
from werkzeug.exceptions import RequestTimeout

from server.api.recognize.options import FrameOptions, frame_age_of, options, parse_frame_options
from server.api.recognize.routes import recognition
from server.api.recognize.service import RecognitionService, age_header
from server.config.products import ProductTable
from server.config.settings import Settings
from server.errors import LinesideError, OverloadedError
from server.http.access.auth import Authenticator
from server.http.body.image import FILE_FIELDS, only_image, query_values, raw_image, to_options
from server.http.body.multipart import boundary_of, parts
from server.http.body.reading import drain_body, whole_body
from server.http.errors import Reply, reply_to
from server.http.request_log import Completion, RequestLog
from server.http.routes import FORM as URLENCODED
from server.http.routes import FRAMES, JSON, MULTIPART
from server.http.wsgi import RequestContext, Wsgi, context_of
from server.recognition.admission import Admission
from server.system.background import BackgroundQueue, Task

RULE = "/v1/recognize"
# The types of bodies that are read here.
TYPES = ("image/", "application/octet-stream", MULTIPART)
# The types of bodies that may name a camera.
TYPES_WITH_OPTIONS = ("multipart/", JSON, URLENCODED)
# The fields of a camera's form; what to say of others is the route's.
KNOWN, FILES = frozenset(FrameOptions.__struct_fields__), frozenset(FILE_FIELDS)


class FastPath:
    """WSGI middleware around the Flask application `app`."""

    def __init__(
        self,
        app: Wsgi,
        recognizing: RecognitionService,
        admission: Admission,
        settings: Settings,
        doors: Authenticator,
        log: RequestLog,
        afterwards: BackgroundQueue[Task],
        unguarded: Collection[str],
    ) -> None:
        """unguarded: the paths of probes, which are not to wait for anything."""
        self._app = app
        self._recognizing = recognizing
        self._admission = admission
        self._settings = settings
        self._doors = doors
        self._log = log
        self._afterwards = afterwards
        self._unguarded = unguarded
        self._most = int(settings.max_body_mb * 1_000_000)
        self._limited = bool(settings.rate_per_key or settings.rate_per_address)

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        context, method = context_of(environ), environ["REQUEST_METHOD"]
        if environ["PATH_INFO"] != RULE or method != "POST" or context.refused is not None:
            # Whoever reads is to find what was answered.
            if method == "GET" and environ["PATH_INFO"] not in self._unguarded:
                self._afterwards.flush()
            return self._app(environ, start_response)
        fast = self._is_plain(environ)
        # Whoever has an answer in the cache is answered however many wait.
        crowded = self._admission.crowded and not self._settings.cache
        if fast or crowded:
            admitted, caller = self._doors.admit(environ, FRAMES)
            if admitted:
                context.caller = caller
                reply = self._refuse(environ, context) if crowded else None
                if reply is None and fast and not (caller and caller.rate):
                    reply = self._answer(environ, context)
                if reply is not None:
                    return self._send(reply, start_response)
        return self._app(environ, start_response)

    def _is_plain(self, environ: dict[str, Any]) -> bool:
        """Return whether the request is one that need not go through Flask, but for its caller."""
        return (
            environ.get("CONTENT_TYPE", "").startswith(TYPES)
            and not self._limited
            # Of a picture, or of one perhaps.
            and "image/jpeg" not in environ.get("HTTP_ACCEPT", "").lower()
            and "render" not in environ.get("QUERY_STRING", "")
            and ("CONTENT_LENGTH" in environ or "HTTP_TRANSFER_ENCODING" in environ)
            and not (self._settings.cors_origins and "HTTP_ORIGIN" in environ)
        )

    def _send(self, reply: Reply, start_response: Callable[..., Any]) -> list[bytes]:
        length = ("Content-Length", str(len(reply.data)))
        status = f"{reply.status} {HTTPStatus(reply.status).phrase.upper()}"
        start_response(status, [*reply.headers, length])
        return [reply.data]

    def _answer(self, environ: dict[str, Any], context: RequestContext) -> Reply | None:
        """Return the answer to a frame or to its error; None for a form that is left to Flask,
        whose body is put back."""
        try:
            reply = self._recognize(environ, context)
        except Exception as error:  # noqa: BLE001 - answered as Flask's handler of errors does
            reply = self._reply_to(error, context)
            if not drain_body(environ, reply):
                reply.headers.append(("Connection", "close"))
        if reply is not None:
            self._log_later(reply, context, environ)
        return reply

    def _recognize(self, environ: dict[str, Any], context: RequestContext) -> Reply | None:
        """Return a frame's answer; None for a form that is left to Flask. Raises what /v1/recognize
        does, and an HTTPException for a body that can't be taken."""
        if environ["CONTENT_TYPE"].startswith(MULTIPART):
            read = self._form(environ)
            if read is None:
                return None
            data, query = read
        else:
            data = raw_image(whole_body(environ, self._most))
            query = parse_frame_options(environ.get("QUERY_STRING", ""))
        context.camera = query.camera
        asked, age = self._recognizing.options(query)
        recognizer, asked = self._recognizing.choose(query, asked)
        answer = self._recognizing.frame(recognizer, data, asked, environ)
        body = msgspec.json.encode(
            recognition(answer, query, asked.product, age, context.request_id)
        )
        headers = [("Content-Type", JSON), ("X-Request-Id", context.request_id)]
        return Reply(200, [*headers, *age_header(answer)], body)

    def _form(self, environ: dict[str, Any]) -> tuple[bytes, FrameOptions] | None:
        """Return the file and the options of a form; None for one that has no file or has other
        fields, whose body is put back.

        Flask's request would take four times as long, to look into what no camera sends.
        """
        whole, boundary = whole_body(environ, self._most), boundary_of(environ["CONTENT_TYPE"])
        fields: dict[str, str] = {}
        files: list[tuple[str, bytes]] = []
        most_parts = self._settings.max_form_parts
        for segment, data, text in parts(whole, boundary, most_parts) if boundary else ():
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

    def _refuse(self, environ: dict[str, Any], context: RequestContext) -> Reply | None:
        """Return the refusal of a frame that can't be admitted; None if it may be.

        A form or JSON whose query string names no camera may be, since the body may name one. The
        log learns how many were refused, since a line of each would cost more than the refusal.
        """
        error = self._refusal(environ, context)
        if error is None or not _body_read(environ, self._most):
            context.options = None
            return None
        reply = self._reply_to(error, context)
        self._log_later(reply, context, environ, silent=True)
        return reply

    def _refusal(self, environ: dict[str, Any], context: RequestContext) -> LinesideError | None:
        """Return why the frame can't be admitted, if so, and note in `context` what it asks."""
        in_body = environ.get("CONTENT_TYPE", "").startswith(TYPES_WITH_OPTIONS)
        try:
            query = parse_frame_options(environ.get("QUERY_STRING", ""))
            product = self._recognizing.product_of(query)
            if (in_body and not query.camera) or not self._serves(query, product):
                return None
            asked = options(query, self._settings, frame_age_of(query, self._settings))
            if product is not None:
                asked = msgspec.structs.replace(asked, product=product.name)
        except (LinesideError, ValueError):
            return None  # the route says what is wrong with it
        context.options = asked
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
            return error.with_traceback(None)
        return None

    def _serves(self, query: FrameOptions, product: ProductTable | None) -> bool:
        """Return whether the model that `query` or its `product` names is in memory; what to say of
        another is the route's."""
        name = product.model if product else query.model
        if name is None:
            return query.version is None
        model = self._recognizing.store.served().get(name)
        return model is not None and query.version in (None, model.manifest.version)

    def _reply_to(self, error: Exception, context: RequestContext) -> Reply:
        context.is_frame = True
        return reply_to(error, context, "POST", RULE, foreign=False, most=self._most)

    def _log_later(
        self,
        reply: Reply,
        context: RequestContext,
        environ: dict[str, Any],
        *,
        silent: bool = False,
    ) -> None:
        """Have the request counted and logged a moment after its answer; silent: as of
        `RequestLog.finish`."""
        at, seconds = time.time(), time.perf_counter() - context.started
        address, asked = environ.get("REMOTE_ADDR"), environ.get("QUERY_STRING", "")

        def log() -> None:
            done = Completion(
                status=reply.status,
                at=at,
                seconds=seconds,
                method="POST",
                path=RULE,
                rule=RULE,
                address=address,
                names=_names(asked) if context.error_code else {},
            )
            self._log.finish(context, done, silent=silent)
            context.failure = None  # its traceback would keep this request until it is collected

        self._afterwards.submit(log)


def _names(query_string: str) -> dict[str, str]:
    try:
        return query_values(query_string)
    except ValueError:
        return {}


def _body_read(environ: dict[str, Any], most: int) -> bool:
    """Read the body, so that the connection can be used again, and return whether that was done;
    not one of unknown length, nor one that is refused for its own size or for not coming."""
    length = environ.get("CONTENT_LENGTH") or ""
    if not length.isdecimal() or int(length) > most:
        return False
    try:
        environ["wsgi.input"].read(int(length))
    except (RequestTimeout, OverloadedError):
        return False
    return True
