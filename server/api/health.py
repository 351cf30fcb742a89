"""GET /livez, /readyz, /metrics: for probes and Prometheus."""

import msgspec
from flask import Blueprint, Response, request
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from server.api.responses import to_json
from server.draining import LEAVING
from server.errors import NotReadyError
from server.observe.metrics import Metrics
from server.store.bundles import BundleStore
from server.wall_clock import clock_fault


class Health(msgspec.Struct, frozen=True):
    """`status` is `ok`. warning: what a person should look at although frames are answered."""

    status: str = "ok"
    warning: str | msgspec.UnsetType = msgspec.UNSET


def blueprint(store: BundleStore, metrics: Metrics) -> Blueprint:
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
        return to_json(Health(warning=clock_fault() or msgspec.UNSET))

    @routes.get("/metrics")
    def exposition() -> Response:
        return Response(metrics.render(), content_type=CONTENT_TYPE_PLAIN_0_0_4)

    return routes
