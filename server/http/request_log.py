"""Around every request: an id, the time it took, its count, its log line."""

import logging
import time
from collections.abc import Mapping, Sequence

import msgspec
from flask import Flask, Response, request

from server.http.access.open_access import from_loopback
from server.http.routes import current_route
from server.http.wsgi import RequestContext, current
from server.observe.logs import LogThrottle
from server.observe.metrics import Metrics
from server.recognition.answers import FrameRefused, RefusalListener
from server.values.wording import kept_sentence, looks_secret

logger = logging.getLogger(__name__)

# Characters of what a caller calls a model, a camera or a part.
NAME_CHARACTERS_MAX = 128


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
    return "" if looks_secret(given) else given[:NAME_CHARACTERS_MAX]


def let_in(context: RequestContext, address: str | None) -> bool:
    """Return whether a request came with a valid key, or from this machine."""
    return context.caller is not None or from_loopback(address)


class RequestLog:
    """Counts, times and logs requests. Of those that fail alike, those that `repeats` lets pass are
    logged. Frames that got no labels are reported to `refusals`."""

    def __init__(
        self, metrics: Metrics, repeats: LogThrottle, refusals: Sequence[RefusalListener] = ()
    ) -> None:
        self._metrics = metrics
        self._repeats = repeats
        self._refusals = tuple(refusals)

    def complete(
        self,
        context: RequestContext,
        status: int,
        *,
        method: str,
        path: str,
        rule: str,
        address: str | None,
        names: Mapping[str, str],
        at: float,
        seconds: float,
        quiet: bool = False,
    ) -> CompletedRequest:
        """Return the request that was answered with `status`, and report it if it was a frame that
        got no labels. names: the values of its query string. at: the time of its answer, in seconds
        since 1970. The other arguments are those of `CompletedRequest`."""
        if context.error_code and context.is_frame:
            self._metrics.refuse(context.error_code)
            error = (context.error_code, context.error_message, context.error_cause)
            report_refusal(
                self._refusals, context, status, *error, address, names, at=at, seconds=seconds
            )
        failed = bool(context.error_code)
        return CompletedRequest(
            request_id=context.request_id,
            method=method,
            path=path,
            route=rule,
            status=status,
            seconds=seconds,
            caller=context.caller.name if context.caller else None,
            code=context.error_code or None,
            fields=_fields_of_error(context, address, names) if failed else context.log_fields,
            failure=context.failure,
            cause=context.error_cause,
            quiet=quiet,
        )

    def log(self, done: CompletedRequest) -> None:
        """Count and log an answered request."""
        log_request(done, self._metrics, self._repeats)

    def count(self, done: CompletedRequest) -> None:
        """Count a failed request that gets no line in the log, which learns how many there were."""
        self._metrics.finished(done.route, done.status, done.seconds)
        self._metrics.failed(done.route, done.cause or done.code or "")
        self._repeats.omit(done.code or "", done.route)


def report_refusal(
    refusals: Sequence[RefusalListener],
    context: RequestContext,
    status: int,
    code: str,
    reason: str,
    cause: str,
    address: str | None,
    names: Mapping[str, str],
    *,
    at: float,
    seconds: float,
) -> None:
    """Report that a request's frame got no labels, with what is known of it. reason: the sentence
    that says why. cause: of the error, finer than its code. names: the values of the request's
    query string. at, seconds: as of `RequestLog.complete`."""
    if not refusals:
        return
    manifest, options = context.manifest, context.options
    refusal = FrameRefused(
        at=at,
        request_id=context.request_id,
        status=status,
        code=code,
        model=manifest.name if manifest else safe_name(names.get("model", "")),
        version=manifest.version if manifest else 0,
        camera=options.camera if options else safe_name(context.camera or names.get("camera", "")),
        part=options.part if options else safe_name(names.get("part", "")),
        seconds=seconds,
        reason=kept_sentence(reason),
        cause=cause,
        address=address or "",
        let_in=let_in(context, address),
    )
    for listener in refusals:
        listener(refusal)


def _fields_of_error(
    context: RequestContext, address: str | None, names: Mapping[str, str]
) -> dict[str, object]:
    """Return what the log line of a failed request says, so that its sender and the cause are
    found."""
    fields: dict[str, object] = {"error": kept_sentence(context.error_message)}
    if address:
        fields["address"] = address
    # Names that strangers choose are not kept.
    camera = names.get("camera", "") if context.is_frame else ""
    if camera := safe_name(context.camera or camera):
        fields["camera"] = camera
    return fields


def observe_requests(app: Flask, log: RequestLog) -> None:
    """Have `log` count, time and log every request of `app`, and give each answer its id."""

    @app.before_request
    def start() -> None:
        context = current()
        if context.refused is not None:
            route = current_route()
            context.is_frame = route is not None and route.frame
            raise context.refused

    @app.after_request
    def finish(response: Response) -> Response:
        context, route = current(), current_route()
        response.headers["X-Request-Id"] = context.request_id
        done = log.complete(
            context,
            response.status_code,
            method=request.method,
            path=request.path,
            rule=request.url_rule.rule if request.url_rule else "unmatched",
            address=request.remote_addr,
            names=request.args,
            at=time.time(),
            seconds=time.perf_counter() - context.started,
            quiet=route is not None and route.quiet,
        )
        log.log(done)
        return response
