"""Answers as bytes: JSON by msgspec, and the one shape of every error."""

import math
import time
from typing import NamedTuple

import msgspec
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, SecurityError

from server.errors import ContentCodingError, LinesideError
from server.http.routes import JSON, current_table
from server.http.wsgi import RequestContext, current
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
    """An error: a stable code for programs, a sentence for people."""

    code: str
    message: str
    request_id: str


class ErrorAnswer(msgspec.Struct, frozen=True):
    """The shape of every error of Lineside's own routes."""

    error: ErrorBody


class ForeignError(msgspec.Struct, frozen=True):
    """The shape of every error of the routes that other protocols define."""

    error: str


class Reply(NamedTuple):
    """An answer of JSON. headers: all but its length."""

    status: int
    headers: list[tuple[str, str]]
    data: bytes


def error_body(
    code: str, message: str, request_id: str, *, foreign: bool
) -> ForeignError | ErrorAnswer:
    """Return an error in Lineside's own shape or, if `foreign`, in that of the other protocols."""
    if foreign:
        return ForeignError(message)
    return ErrorAnswer(ErrorBody(code, message, request_id))


def retry_header(error: LinesideError, options: Options | None = None) -> tuple[str, str]:
    """Return the header of a 503 on trying again: Retry-After (RFC 9110, 10.2.3) in whole seconds,
    at least 1; or `X-Should-Retry: false` if that can't help, so that no client sends a stale frame
    again. options: what was asked of the frame, as far as that is known."""
    seconds = max(1, math.ceil(error.retry_after or 0))
    curable = error.retryable
    if options is not None and options.from_capture:
        curable = curable and options.deadline > time.monotonic() + seconds
    if not curable:
        return "X-Should-Retry", "false"
    return "Retry-After", str(seconds)


def reply_to(
    error: Exception, context: RequestContext, method: str, path: str, *, foreign: bool, most: int
) -> Reply:
    """Return the answer to `error`, and note it in `context` for the metrics and the log line.

    An error that was not foreseen is answered with the request id alone, under which the log has
    its traceback. foreign: the route's errors have another protocol's shape. most: bytes that a
    body may have. What the caller called a thing stands in the message, unless it looks like a key.
    """
    headers = [("Content-Type", JSON), ("X-Request-Id", context.request_id)]
    if isinstance(error, LinesideError):
        status, code, message = error.status, error.code, error.message
        context.error_cause = error.cause
        if status == 503:
            headers.append(retry_header(error, context.options))
        if isinstance(error, ContentCodingError):
            headers.append(("Accept-Encoding", "gzip, deflate"))
    elif isinstance(error, HTTPException):
        status = error.code or 500
        code = HTTP_CODES.get(status, error.name.upper().replace(" ", "_"))
        message = _http_message(error, status, method, path, most)
        if isinstance(allow := getattr(error, "valid_methods", None), list | tuple | set):
            headers.append(("Allow", ", ".join(sorted(allow))))
    else:
        status, code = 500, "INTERNAL"
        message = "the server failed; the log says why under this request id"
        context.failure = error
    context.error_code = code
    context.error_message = hide_secrets(message.encode("utf-8", "backslashreplace").decode())
    body = error_body(code, context.error_message, context.request_id, foreign=foreign)
    return Reply(status, headers, msgspec.json.encode(body))


def _http_message(error: HTTPException, status: int, method: str, path: str, most: int) -> str:
    messages = {
        400: "the request's Host names no host" if isinstance(error, SecurityError) else "",
        404: f"there is nothing at {path}",
        405: f"{method} is not possible at {path}",
        429: f"too many requests: the limit is {error.description}",
        413: f"the request's body has more than {most / 1e6:g} MB or too many parts",
    }
    ours = error.description if error.description != type(error).description else None
    return messages.get(status) or ours or f"the request can't be answered: {error.name.lower()}"


def register_errors(app: Flask) -> None:
    """Make `app` answer every error in the one shape, or that of the route's protocol."""

    @app.errorhandler(Exception)
    def answer(error: Exception) -> Response:
        foreign = current_table().is_foreign(request.path)
        most = request.max_content_length or 0
        reply = reply_to(error, current(), request.method, request.path, foreign=foreign, most=most)
        return Response(reply.data, reply.status, reply.headers)
