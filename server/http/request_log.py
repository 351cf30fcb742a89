"""Around every request: an id, the time it took, its count, its log line."""

import logging
import os
import re
import time
from collections.abc import Mapping, Sequence

import msgspec
from flask import Flask, Response, g, request

from server.http.access.open_access import from_loopback
from server.http.probe_reserve import REFUSED
from server.http.routes import current_route
from server.observe.logs import LogThrottle
from server.observe.metrics import Metrics
from server.recognition.answers import FrameRefused, Options, RefusalListener
from server.recognition.manifest import Manifest
from server.values.wording import kept_sentence, looks_secret

logger = logging.getLogger(__name__)

# Not what looks like a key or token, which would then be told and logged.
REQUEST_ID = re.compile(r"(?!ls_|eyJ)[A-Za-z0-9._:-]{1,64}")
# Characters of what a caller calls a model, a camera or a part.
LONGEST = 128
# In a WSGI environment, when the request began, where somebody looked at it before Flask.
STARTED = "lineside.started"
# There too, the manifest of the model that was asked, and the options.
ASKED = "lineside.asked"
# And the camera that the frame is of, where that is known and no more.
CAMERA = "lineside.camera"


def choose_id(given: str) -> str:
    """The caller's X-Request-Id where it is a plain name of at most 64 characters, else a new
    one."""
    return given if given and REQUEST_ID.fullmatch(given) else os.urandom(16).hex()


class CompletedRequest(msgspec.Struct, frozen=True):
    """One answered request. path: as asked; route: as registered. caller: the name of its key or
    token, if any. code: of the error it was answered with, if any, and cause: finer than that, or
    empty. fields: what its log line says
    beside that. failure: what we did not foresee, whose traceback is part of the line. quiet: one
    of the scrapes and probes, which come every few seconds and say nothing of the line."""

    request_id: str
    method: str
    path: str
    route: str
    status: int
    seconds: float
    caller: str | None = None
    code: str | None = None
    fields: Mapping[str, object] = {}
    failure: Exception | None = None
    cause: str = ""
    quiet: bool = False


def log_request(
    done: CompletedRequest, metrics: Metrics, repeats: LogThrottle | None = None
) -> None:
    """Counts, times and logs one answered request; of those that failed alike, as many as
    `repeats` lets pass are logged."""
    metrics.finished(done.route, done.status, done.seconds)
    if done.code:
        metrics.failed(done.route, done.cause or done.code)
    level = logging.DEBUG if done.quiet else logging.INFO
    if done.failure is not None:
        level = logging.ERROR
    if not logger.isEnabledFor(level):
        return
    if done.code and repeats and not repeats.passes(done.code, done.route):
        return
    line: dict[str, object] = {
        "request_id": done.request_id,
        "method": done.method,
        "path": done.path,
        "status": done.status,
        "ms": round(done.seconds * 1000, 2),
        **done.fields,
    }
    if done.caller is not None:
        line["caller"] = done.caller
    if done.code is not None:
        line["code"] = done.code
    event = "request" if done.failure is None else "request failed"
    logger.log(level, event, exc_info=done.failure, extra={"fields": line})


def safe_name(given: str) -> str:
    """What a caller called a model, a camera or a part, as it may be kept; empty where that looks
    like a key."""
    return "" if looks_secret(given) else given[:LONGEST]


def let_in(caller: object, address: str | None) -> bool:
    """Return whether a request came with a valid key, or from this machine."""
    return caller is not None or from_loopback(address)


def report_refusal(
    refusals: Sequence[RefusalListener], status: int, code: str, reason: str, cause: str
) -> None:
    """Tells that this request's frame got no labels, with what is known of it. reason: the sentence
    that says why. cause: of the error, finer than its code."""
    if not refusals:
        return
    asked: tuple[Manifest, Options] | None = request.environ.get(ASKED)
    manifest, options = asked if asked else (None, None)
    camera = request.environ.get(CAMERA) or request.args.get("camera", "")
    refusal = FrameRefused(
        at=time.time(),
        request_id=g.request_id,
        status=status,
        code=code,
        model=manifest.name if manifest else safe_name(request.args.get("model", "")),
        version=manifest.version if manifest else 0,
        camera=options.camera if options else safe_name(camera),
        part=options.part if options else safe_name(request.args.get("part", "")),
        seconds=time.perf_counter() - g.started,
        reason=kept_sentence(reason),
        cause=cause,
        address=request.remote_addr or "",
        let_in=let_in(g.get("caller"), request.remote_addr),
    )
    for listener in refusals:
        listener(refusal)


def _fields_of_error() -> dict[str, object]:
    """What the log line of a request that failed says, so that its sender and the cause are
    found."""
    fields: dict[str, object] = {"error": kept_sentence(g.error_message)}
    if request.remote_addr:
        fields["address"] = request.remote_addr
    # Names that strangers choose are not kept.
    camera = request.args.get("camera", "") if g.get("is_frame") else ""
    if camera := safe_name(request.environ.get(CAMERA) or camera):
        fields["camera"] = camera
    return fields


def observe_requests(
    app: Flask, metrics: Metrics, repeats: LogThrottle, refusals: Sequence[RefusalListener] = ()
) -> None:
    """Counts, times and logs every request of `app`, and gives each its id. Of requests that fail
    alike, those that `repeats` lets pass are logged. Frames that got no labels are told to
    `refusals`."""

    @app.before_request
    def start() -> None:
        g.started = request.environ.get(STARTED) or time.perf_counter()
        g.request_id = choose_id(request.headers.get("X-Request-Id", ""))
        # Where the answer to a body that does not come finds it, as it finds Express's.
        request.environ["HTTP_X_REQUEST_ID"] = g.request_id
        if refused := request.environ.get(REFUSED):
            route = current_route()
            g.is_frame = route is not None and route.frame
            raise refused

    @app.after_request
    def finish(response: Response) -> Response:
        if "error_code" in g and g.get("is_frame"):
            metrics.refuse(g.error_code)
            cause = g.get("error_cause", "")
            report_refusal(refusals, response.status_code, g.error_code, g.error_message, cause)
        response.headers["X-Request-Id"] = g.request_id
        caller = g.get("caller")
        route = current_route()
        done = CompletedRequest(
            request_id=g.request_id,
            method=request.method,
            path=request.path,
            route=request.url_rule.rule if request.url_rule else "unmatched",
            status=response.status_code,
            seconds=time.perf_counter() - g.started,
            caller=caller.name if caller else None,
            code=g.get("error_code"),
            fields=_fields_of_error() if "error_code" in g else g.get("log_fields", {}),
            failure=g.get("failure"),
            cause=g.get("error_cause", ""),
            quiet=route is not None and route.quiet,
        )
        log_request(done, metrics, repeats)
        return response
