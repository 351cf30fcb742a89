"""Frames by camera: how many, how they ended, and when the last one came."""

import threading
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge

from server.recognition.observation import Observation, Refusal

Result = Literal["answered", "bad", "refused", "failed"]
RESULTS: tuple[Result, ...] = ("answered", "bad", "refused", "failed")
# Statuses of frames that were in order, and for which there was no room or no time.
REFUSALS = (429, 503)
OTHER = "other"


def result_of(status: int) -> Result:
    """How a frame ended that was answered with the error `status`: refused, failed by our fault,
    or bad by the sender's."""
    if status in REFUSALS:
        return "refused"
    return "failed" if status >= 500 else "bad"


class _Series(msgspec.Struct, frozen=True):
    """One camera's counters, looked up once: a look-up by labels costs more than counting."""

    count: Mapping[Result, Callable[[], None]]
    last: Callable[[float], None]


class Cameras:
    """Counts the frames of named cameras.

    Callers choose the names, so only the first `most` that send a frame which is answered get
    series of their own; all others share `other`. `_lock` guards the adding to `_known`.
    """

    def __init__(self, registry: CollectorRegistry, most: int) -> None:
        self._frames = Counter(
            "lineside_camera_frames_total",
            "Frames of a camera by how they ended: answered, bad, refused or failed",
            ("camera", "result"),
            registry=registry,
        )
        self._last = Gauge(
            "lineside_camera_last_frame_timestamp_seconds",
            "When the newest frame of a camera came, whatever became of it",
            ("camera",),
            registry=registry,
        )
        self._most, self._lock = most, threading.Lock()
        self._known: dict[str, _Series] = {}
        self._other: _Series | None = None

    def answered(self, seen: Observation) -> None:
        """Counts an answered frame; a `server.recognition.observation.Listener`."""
        if camera := seen.options.camera:
            self._count(self._known.get(camera) or self._add(camera), "answered", seen.at)

    def refused(self, refusal: Refusal) -> None:
        """Counts a frame that got an error; a `server.recognition.observation.RefusalListener`."""
        if camera := refusal.camera:
            series = self._known.get(camera) or self._shared()
            self._count(series, result_of(refusal.status), refusal.at)

    def _count(self, series: _Series, result: Result, at: float) -> None:
        series.count[result]()
        series.last(at)

    def _add(self, camera: str) -> _Series:
        with self._lock:
            if camera in self._known:
                return self._known[camera]
            if len(self._known) < self._most:
                self._known[camera] = self._make(camera)
                return self._known[camera]
        return self._shared()

    def _shared(self) -> _Series:
        with self._lock:
            if self._other is None:
                self._other = self._make(OTHER)
            return self._other

    def _make(self, camera: str) -> _Series:
        # One name that is no UTF-8 would make the whole page of metrics unwritable.
        camera = camera.encode("utf-8", "replace").decode("utf-8")
        counts = {result: self._frames.labels(camera, result).inc for result in RESULTS}
        return _Series(counts, self._last.labels(camera).set)
