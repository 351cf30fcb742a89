"""Around every request: the time it took, its count, its log line."""

import logging
import time
from collections.abc import Mapping, Sequence

import msgspec
from flask import Flask, Response, request

from server.http.access.caller import from_loopback
from server.http.routes import current_route
from server.http.wsgi import RequestContext, current
from server.observe.logs import LogThrottle
from server.observe.metrics import Metrics
from server.recognition.answers import FrameRefused, RefusalListener
from server.values.wording import kept_sentence, looks_secret

logger = logging.getLogger(__name__)

# Characters of what a caller calls a model, a camera or a part.
NAME_CHARACTERS_MAX = 128


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """An answered request. at: seconds since 1970; seconds: from the arrival. path: as
    asked; rule: as registered. address: of the sender. names: the values of the query string.
    quiet: one of the scrapes and probes, which come every few seconds and say nothing of the
    line."""

    status: int
    at: float
    seconds: float
    method: str
    path: str
    rule: str
    address: str | None
    names: Mapping[str, str]
    quiet: bool = False


def completion(status: int) -> Completion:
    """Return how the request that Flask works on is answered now."""
    route = current_route()
    return Completion(
        status=status,
        at=time.time(),
        seconds=time.perf_counter() - current().started,
        method=request.method,
        path=request.path,
        rule=request.url_rule.rule if request.url_rule else "unmatched",
        address=request.remote_addr,
        names=request.args,
        quiet=route is not None and route.quiet,
    )


class RequestLog:
    """Counts, times and logs requests. Of those that fail alike, those that `repeats` lets pass are
    logged. Frames that got no labels are reported to `refusals`."""

    def __init__(
        self, metrics: Metrics, repeats: LogThrottle, refusals: Sequence[RefusalListener] = ()
    ) -> None:
        self._metrics = metrics
        self._repeats = repeats
        self._refusals = tuple(refusals)

    def finish(self, context: RequestContext, done: Completion, *, silent: bool = False) -> None:
        """Count, time and log an answered request, and report it if it was a frame that got no
        labels. silent: the log gets no line of it, only how many there were."""
        code = context.error_code
        if code and context.is_frame:
            self._metrics.refuse(code)
            error = code, context.error_message, context.error_cause
            report_refusal(self._refusals, context, done, *error)
        self._metrics.finished(done.rule, done.status, done.seconds)
        if code:
            self._metrics.failed(done.rule, context.error_cause or code)
        if silent:
            self._repeats.omit(code, done.rule)
            return
        level = logging.DEBUG if done.quiet else logging.INFO
        if context.failure is not None:
            level = logging.ERROR
        if not logger.isEnabledFor(level):
            return
        if code and not self._repeats.passes(code, done.rule):
            return
        event = "request" if context.failure is None else "request failed"
        fields = {"fields": _fields(context, done)}
        logger.log(level, event, exc_info=context.failure, extra=fields)


def _fields(context: RequestContext, done: Completion) -> dict[str, object]:
    fields: dict[str, object] = {
        "request_id": context.request_id,
        "method": done.method,
        "path": done.path,
        "status": done.status,
        "ms": round(done.seconds * 1000, 2),
    }
    if context.trace is not None:
        fields |= {"trace_id": context.trace.trace_id, "span_id": context.trace.span_id}
    if context.error_code:
        # So that the sender and the cause are found.
        fields["error"] = kept_sentence(context.error_message)
        if done.address:
            fields["address"] = done.address
        # Names that strangers choose are not kept.
        camera = done.names.get("camera", "") if context.is_frame else ""
        if camera := safe_name(context.camera or camera):
            fields["camera"] = camera
    else:
        fields |= context.log_fields
    if context.caller is not None:
        fields["caller"] = context.caller.name
    if context.error_code:
        fields["code"] = context.error_code
    return fields


def safe_name(name: str) -> str:
    """Return what a caller called a model, a camera or a part, as it may be kept; empty if it looks
    like a key."""
    return "" if looks_secret(name) else name[:NAME_CHARACTERS_MAX]


def report_refusal(
    refusals: Sequence[RefusalListener],
    context: RequestContext,
    done: Completion,
    code: str,
    reason: str,
    cause: str,
) -> None:
    """Report that a request's frame got no labels, with what is known of it. reason: the sentence
    that says why. cause: of the error, finer than its code."""
    if not refusals:
        return
    manifest, options, names = context.manifest, context.options, done.names
    camera = context.camera or names.get("camera", "")
    refusal = FrameRefused(
        at=done.at,
        request_id=context.request_id,
        status=done.status,
        code=code,
        model=manifest.name if manifest else safe_name(names.get("model", "")),
        version=manifest.version if manifest else 0,
        camera=options.camera if options else safe_name(camera),
        part=options.part if options else safe_name(names.get("part", "")),
        product=options.product if options else safe_name(names.get("product", "")),
        batch=options.batch if options else safe_name(names.get("batch", "")),
        seconds=done.seconds,
        reason=kept_sentence(reason),
        cause=cause,
        address=done.address or "",
        # With a valid key, or from this machine.
        let_in=context.caller is not None or from_loopback(done.address),
        trace=context.trace,
    )
    for listener in refusals:
        listener(refusal)


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
        context = current()
        response.headers["X-Request-Id"] = context.request_id
        log.finish(context, completion(response.status_code))
        return response
