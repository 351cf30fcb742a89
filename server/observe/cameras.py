"""Frames by camera: how many, how they ended, why some failed, and when the last one came."""

import threading
from collections.abc import Callable, Mapping
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge

from server.recognition.events import FrameAnswered, FrameRefused

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


class _Series:
    """One camera's series, looked up once: a look-up by labels costs more than counting. at: Unix
    seconds of its newest frame. was_answered: at least one of its frames got labels."""

    __slots__ = ("at", "count", "label", "last", "reasons", "was_answered")

    def __init__(
        self, label: str, count: Mapping[Result, Callable[[], None]], last: Callable[[float], None]
    ) -> None:
        self.label, self.count, self.last = label, count, last
        self.reasons: dict[str, Callable[[], None]] = {}
        self.at, self.was_answered = 0.0, False


class Cameras:
    """Counts the frames of named cameras.

    Callers choose the names, so only `most` cameras have series of their own; all others share
    `other`. A camera gets its series with its first frame that is answered, or that fails but came
    from a sender who was let in. One that was never answered gives way to one that is.
    `_lock` guards what is added to `_known` and to its series, and what is taken from them.
    """

    def __init__(self, registry: CollectorRegistry, most: int) -> None:
        self._frames = Counter(
            "lineside_camera_frames_total",
            "Frames of a camera by how they ended: answered, bad, refused or failed",
            ("camera", "result"),
            registry=registry,
        )
        self._refused = Counter(
            "lineside_camera_refused_total",
            "Frames of a camera that got no labels, by error code or finer cause",
            ("camera", "reason"),
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

    def answered(self, seen: FrameAnswered) -> None:
        """Counts an answered frame; a `server.recognition.events.Listener`."""
        if camera := seen.options.camera:
            series = self._known.get(camera)
            if series is None or not series.was_answered:
                series = self._claim(camera)
            self._count(series, "answered", seen.at)

    def refused(self, refusal: FrameRefused) -> None:
        """Counts a frame that got an error; a `server.recognition.events.RefusalListener`."""
        if camera := refusal.camera:
            series = self._known.get(camera) or self._unanswered(camera, refusal)
            self._count(series, result_of(refusal.status), refusal.at)
            self._reason(series, refusal.cause or refusal.code)

    def _count(self, series: _Series, result: Result, at: float) -> None:
        series.count[result]()
        series.last(at)
        series.at = at

    def _reason(self, series: _Series, reason: str) -> None:
        count = series.reasons.get(reason)
        if count is None:
            with self._lock:
                count = self._refused.labels(series.label, reason).inc
                series.reasons[reason] = count
        count()

    def _claim(self, camera: str) -> _Series:
        """The series of a camera whose frame was answered."""
        with self._lock:
            series = self._known.get(camera)
            if series is None and self._make_room():
                series = self._known[camera] = self._make(camera)
            if series is not None:
                series.was_answered = True
                return series
        return self._shared()

    def _unanswered(self, camera: str, refusal: FrameRefused) -> _Series:
        """The series of a camera of which no frame was answered so far."""
        with self._lock:
            if camera in self._known:
                return self._known[camera]
            if refusal.let_in and len(self._known) < self._most:
                self._known[camera] = self._make(camera)
                return self._known[camera]
        return self._shared()

    def _make_room(self) -> bool:
        """Removes the series of the never answered camera that was silent for longest, if there is
        no room. Returns whether there is room now."""
        if len(self._known) < self._most:
            return True
        unanswered = [name for name, series in self._known.items() if not series.was_answered]
        if not unanswered:
            return False
        series = self._known.pop(min(unanswered, key=lambda name: self._known[name].at))
        # Two names that are no UTF-8 may have one label, and one camera may be called `other`.
        labels = {OTHER, *(other.label for other in self._known.values())}
        if series.label not in labels:
            for result in RESULTS:
                self._frames.remove(series.label, result)
            for reason in series.reasons:
                self._refused.remove(series.label, reason)
            self._last.remove(series.label)
        return True

    def _shared(self) -> _Series:
        with self._lock:
            if self._other is None:
                self._other = self._make(OTHER)
            return self._other

    def _make(self, camera: str) -> _Series:
        # One name that is no UTF-8 would make the whole page of metrics unwritable.
        label = camera.encode("utf-8", "replace").decode("utf-8")
        counts = {result: self._frames.labels(label, result).inc for result in RESULTS}
        return _Series(label, counts, self._last.labels(label).set)
