"""Cameras whose clocks are ahead of this server's: a metric by camera, and a line in the log."""

import logging
import threading
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge

from server.observe.cameras import OTHER

logger = logging.getLogger(__name__)

# Seconds between two lines of one camera.
PAUSE_S = 600.0


class ClockSkew:
    """Reports frames that seem to come from the future.

    Callers choose the names of cameras, so only the first `most` get series and lines of their
    own; all others, and frames without a name, share `other`. `_lock` guards `_logged`, by series
    when its last line was written.
    """

    def __init__(self, registry: CollectorRegistry, most: int) -> None:
        self._ahead = Gauge(
            "lineside_camera_clock_skew_seconds",
            "How far captured_at of a camera's newest frame was ahead of this server's clock",
            ("camera",),
            registry=registry,
        )
        self._most, self._lock = most, threading.Lock()
        self._logged: dict[str, float] = {}

    def note(
        self, camera: str, ahead: float, tolerated: float, cause: Callable[[], str] = str
    ) -> None:
        """A frame of `camera` came whose clock is `ahead` seconds; not ahead if 0 or less.

        tolerated: seconds up to which there is no line in the log. cause: says what may be wrong.
        """
        if ahead <= 0 and camera not in self._logged:
            return
        # A name that is no UTF-8 would make the whole page of metrics unwritable.
        camera = camera.encode("utf-8", "replace").decode()
        series, due = self._series(camera, ahead > tolerated)
        self._ahead.labels(series).set(max(0.0, ahead))
        if due:
            fields = {"camera": camera, "ahead_s": round(ahead, 1), "cause": cause()}
            event = "captured_at is ahead of this server's clock"
            logger.warning(event, extra={"fields": fields})

    def _series(self, camera: str, to_log: bool) -> tuple[str, bool]:
        """The series of `camera`, and whether a line of it is due, which then counts as written."""
        with self._lock:
            named = len(self._logged) - (OTHER in self._logged)
            if camera not in self._logged and (not camera or named >= self._most):
                camera = OTHER
            last = self._logged.setdefault(camera, -PAUSE_S)
            now = time.monotonic()
            due = to_log and now - last >= PAUSE_S
            if due:
                self._logged[camera] = now
            return camera, due
