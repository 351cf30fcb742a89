"""Around every request: an id, the time it took, its count, its log line."""

import logging
import re
import time
import uuid

from flask import Flask, Response, g, request

from server.observe.logs import LOGGER
from server.observe.metrics import Metrics
from server.observe.repeats import Repeats

logger = logging.getLogger(LOGGER)

# Not what looks like a key or token, which would then be told and logged.
REQUEST_ID = re.compile(r"(?!ls_|eyJ)[A-Za-z0-9._:-]{1,64}")
# Scrapes and probes come every few seconds and say nothing of the line.
QUIET = ("/metrics", "/livez", "/readyz")


def choose_id(given: str) -> str:
    """The caller's X-Request-Id where it is a plain name of at most 64 characters, else a new
    one."""
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def observe_requests(app: Flask, metrics: Metrics, repeats: Repeats) -> None:
    """Counts, times and logs every request of `app`, and gives each its id. Of requests that fail
    alike, those that `repeats` lets pass are logged."""

    @app.before_request
    def start() -> None:
        g.started = time.perf_counter()
        g.request_id = choose_id(request.headers.get("X-Request-Id", ""))

    @app.after_request
    def finish(response: Response) -> Response:
        seconds = time.perf_counter() - g.started
        route = request.url_rule.rule if request.url_rule else "unmatched"
        metrics.requests.labels(route, str(response.status_code)).inc()
        metrics.request_duration.labels(route).observe(seconds)
        if "error_code" in g and g.get("is_frame"):
            metrics.refused.labels(g.error_code).inc()
            camera = g.get("camera") or request.args.get("camera", "")
            metrics.cameras.refused(camera, g.error_code)
        response.headers["X-Request-Id"] = g.request_id
        level = _level()
        if logger.isEnabledFor(level) and (
            "error_code" not in g or repeats.passes(g.error_code, route)
        ):
            failure = g.get("failure")
            logger.log(
                level,
                "request failed" if failure else "request",
                exc_info=failure,
                extra={"fields": _fields(response.status_code, seconds)},
            )
        return response


def _level() -> int:
    if "failure" in g:
        return logging.ERROR
    return logging.DEBUG if request.path in QUIET else logging.INFO


def _fields(status: int, seconds: float) -> dict[str, object]:
    fields = {
        "request_id": g.request_id,
        "method": request.method,
        "path": request.path,
        "status": status,
        "ms": round(seconds * 1000, 2),
        **g.get("log_fields", {}),
    }
    if (caller := g.get("caller")) is not None:
        fields["caller"] = caller.name
    if "error_code" in g:
        fields["code"] = g.error_code
    return fields
