"""Counts frames whose image may be read wrongly, and logs them: once a minute for each camera."""

import logging
import time
from collections.abc import Callable

from server.observe.metrics import Metrics
from server.recognition.events import FrameAnswered
from server.recognition.frame import WARNINGS

logger = logging.getLogger(__name__)

LOG_INTERVAL_S = 60.0
# Callers choose the names: the cameras beyond are logged as one.
MAX_CAMERAS = 256


class SuspectFrames:
    """Counts and logs the warnings of answered frames; a
    `server.recognition.events.Listener`, called in one thread."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics, self._clock = metrics, clock
        self._logged: dict[tuple[str, str], float] = {}
        # There from the start, so that Prometheus sees the first one as an increase.
        for warning in WARNINGS:
            metrics.suspect.labels(warning.reason)

    def __call__(self, seen: FrameAnswered) -> None:
        for warning in seen.answer.warnings:
            self._metrics.suspect.labels(warning.reason).inc()
            if self._may_log(seen.options.camera, warning.reason):
                fields = {
                    "reason": warning.reason,
                    "message": warning.message,
                    "request_id": seen.request_id,
                    "model": f"{seen.answer.model}/{seen.answer.version}",
                }
                if seen.options.camera:
                    fields["camera"] = seen.options.camera
                logger.warning("suspect frame", extra={"fields": fields})

    def _may_log(self, camera: str, reason: str) -> bool:
        """Whether the last line for this camera and reason is a minute old."""
        key = camera, reason
        if key not in self._logged and len(self._logged) >= MAX_CAMERAS:
            key = "", reason
        now = self._clock()
        if now - self._logged.get(key, -LOG_INTERVAL_S) < LOG_INTERVAL_S:
            return False
        self._logged[key] = now
        return True
