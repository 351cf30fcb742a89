"""Answers as bytes: JSON by msgspec, and the one shape of every error."""

import math
import time

import msgspec
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException, SecurityError

from server.errors import ContentCodingError, LinesideError
from server.http.request_log import ASKED
from server.http.routes import current_table, to_json
from server.recognition.answers import Options
from server.values.wording import hide_secrets

HTTP_CODES = {
    400: "BAD_REQUEST",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    408: "REQUEST_TIMEOUT",
    411: "LENGTH_REQUIRED",
    413: "BODY_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    429: "RATE_LIMITED",
}


class ErrorBody(msgspec.Struct, frozen=True):
    """What went wrong: a stable code for programs, a sentence for people."""

    code: str
    message: str
    request_id: str


class ErrorAnswer(msgspec.Struct, frozen=True):
    """The shape of every error of Lineside's own routes."""

    error: ErrorBody


class ForeignError(msgspec.Struct, frozen=True):
    """The shape of every error of the routes that other protocols define."""

    error: str


def error_answer(status: int, code: str, message: str) -> Response:
    """The error shape of this request's route, remembered for the metrics and the log line. What
    the caller called a thing stands in `message`, unless it looks like a key."""
    message = hide_secrets(message.encode("utf-8", "backslashreplace").decode())
    g.error_code, g.error_message = code, message
    foreign = current_table().is_foreign(request.path)
    body = error_body(code, message, g.get("request_id", ""), foreign=foreign)
    return to_json(body, status)


def error_body(
    code: str, message: str, request_id: str, *, foreign: bool
) -> ForeignError | ErrorAnswer:
    """Return an error in Lineside's own shape or, if `foreign`, in that of the other protocols."""
    if foreign:
        return ForeignError(message)
    return ErrorAnswer(ErrorBody(code, message, request_id))


def retry_header(error: LinesideError, options: Options | None = None) -> tuple[str, str]:
    """What a 503 says of trying again: Retry-After (RFC 9110, 10.2.3) in whole seconds, at least 1;
    or `X-Should-Retry: false` where that can't help, so that no client sends a stale frame again.
    options: what was asked of the frame, as far as that is known."""
    seconds = max(1, math.ceil(error.retry_after or 0))
    curable = error.retryable
    if options is not None and options.from_capture:
        curable = curable and options.deadline > time.monotonic() + seconds
    if not curable:
        return "X-Should-Retry", "false"
    return "Retry-After", str(seconds)


def _known(error: LinesideError) -> Response:
    response = error_answer(error.status, error.code, error.message)
    g.error_cause = error.cause
    if error.status == 503:
        asked = request.environ.get(ASKED)
        name, value = retry_header(error, asked[1] if asked else None)
        response.headers[name] = value
    if isinstance(error, ContentCodingError):
        response.headers["Accept-Encoding"] = "gzip, deflate"
    return response


def _http(error: HTTPException) -> Response:
    status = error.code or 500
    messages = {
        400: "the request's Host names no host" if isinstance(error, SecurityError) else "",
        404: f"there is nothing at {request.path}",
        405: f"{request.method} is not possible at {request.path}",
        429: f"too many requests: the limit is {error.description}",
        413: f"the request's body has more than {(request.max_content_length or 0) / 1e6:g} MB or"
        " too many parts",
    }
    ours = error.description if error.description != type(error).description else None
    message = messages.get(status) or ours or f"the request can't be answered: {error.name.lower()}"
    response = error_answer(
        status, HTTP_CODES.get(status, error.name.upper().replace(" ", "_")), message
    )
    if isinstance(allow := getattr(error, "valid_methods", None), list | tuple | set):
        response.headers["Allow"] = ", ".join(sorted(allow))
    return response


def _unknown(error: Exception) -> Response:
    """What we did not foresee: the caller learns the request id, the request's log line the
    rest."""
    g.failure = error
    return error_answer(
        500, "INTERNAL", "the server failed; the log says why under this request id"
    )


def register_errors(app: Flask) -> None:
    """Makes `app` answer every error in the one shape, or that of the route's protocol."""
    app.register_error_handler(LinesideError, _known)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(Exception, _unknown)
