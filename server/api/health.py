"""GET /livez, /readyz, /metrics: for probes and Prometheus."""

import msgspec
from flask import Blueprint, Response, request
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from server.errors import NotReadyError
from server.http.errors import to_json
from server.http.protocol import LEAVING
from server.observe.metrics import Metrics
from server.store.bundles.repository import BundleRepository
from server.store.crashes.guard import CrashGuard
from server.system.clock import clock_fault, rfc3339


class LastCrash(msgspec.Struct, frozen=True):
    """at: RFC 3339. signal: its name, such as SIGSEGV."""

    at: str
    signal: str


class Health(msgspec.Struct, frozen=True):
    """`status` is `ok`. warning: what a person should look at although frames are answered.
    worker_crashes: how many workers a signal ended since the server started; last_worker_crash:
    when, by which signal. Each is there only if there is something to say."""

    status: str = "ok"
    warning: str | msgspec.UnsetType = msgspec.UNSET
    worker_crashes: int | msgspec.UnsetType = msgspec.UNSET
    last_worker_crash: LastCrash | msgspec.UnsetType = msgspec.UNSET


def blueprint(store: BundleRepository, metrics: Metrics, guard: CrashGuard) -> Blueprint:
    """The routes for machines that watch this one."""
    routes = Blueprint("health", __name__)

    @routes.get("/livez")
    def livez() -> Response:
        return to_json(Health())

    @routes.get("/readyz")
    def readyz() -> Response:
        if request.environ.get(LEAVING):
            raise NotReadyError("the server is stopping", retry_after=5)
        ready, reason = store.ready()
        if not ready:
            raise NotReadyError(reason, retry_after=1)
        last = guard.crashes[-1] if guard.crashes else None
        return to_json(
            Health(
                warning=clock_fault() or msgspec.UNSET,
                worker_crashes=guard.crash_count or msgspec.UNSET,
                last_worker_crash=LastCrash(rfc3339(last.at), last.signal)
                if last
                else msgspec.UNSET,
            )
        )

    @routes.get("/metrics")
    def exposition() -> Response:
        return Response(metrics.render(), content_type=CONTENT_TYPE_PLAIN_0_0_4)

    return routes
