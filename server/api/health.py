"""GET /livez, /readyz, /metrics: for probes and Prometheus."""

from collections.abc import Callable

import msgspec
from flask import Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from server.errors import NotReadyError
from server.http.routes import METRICS, OPEN, route
from server.http.wsgi import current
from server.observe.metrics import Metrics
from server.store.crashes import CrashGuard
from server.system.clock import clock_fault, rfc3339


class LastCrash(msgspec.Struct, frozen=True):
    """The last crash of a worker. at: RFC 3339. signal: its name, such as SIGSEGV."""

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


class HealthRoutes:
    """For machines that watch this one."""

    def __init__(
        self, ready: Callable[[], tuple[bool, str]], metrics: Metrics, guard: CrashGuard
    ) -> None:
        """ready: says whether frames are judged, and if not, why."""
        self._ready = ready
        self._metrics = metrics
        self._guard = guard

    @route("GET", "/livez", rights=OPEN, probe=True, quiet=True, unlimited=True, unguarded=True)
    def livez(self) -> Health:
        """Return whether the server answers."""
        return Health()

    @route(
        "GET",
        "/readyz",
        rights=OPEN,
        errors=(503,),
        probe=True,
        quiet=True,
        unlimited=True,
        unguarded=True,
    )
    def readyz(self) -> Health:
        """Return whether frames are judged.

        Raises NotReadyError if it does not.
        """
        if current().leaving:
            raise NotReadyError("the server is stopping", retry_after=5)
        ready, reason = self._ready()
        if not ready:
            raise NotReadyError(reason, retry_after=1)
        guard = self._guard
        last = guard.crashes[-1] if guard.crashes else None
        return Health(
            warning=clock_fault() or msgspec.UNSET,
            worker_crashes=guard.crash_count or msgspec.UNSET,
            last_worker_crash=LastCrash(rfc3339(last.at), last.signal) if last else msgspec.UNSET,
        )

    @route("GET", "/metrics", rights=METRICS, answer={"text/plain": str}, probe=True, quiet=True)
    def metrics(self) -> Response:
        """Return the metrics in Prometheus's text format."""
        return Response(self._metrics.render(), content_type=CONTENT_TYPE_PLAIN_0_0_4)
