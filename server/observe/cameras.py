"""Frames by camera: their results, clocks that are ahead, and images that may be read wrongly."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge

from server.recognition.answers import FrameAnswered, FrameRefused, ImageHealth
from server.recognition.frame import WARNINGS
from server.recognition.images.problems import PROBLEMS

logger = logging.getLogger(__name__)

Result = Literal["answered", "bad", "refused", "failed"]
RESULTS: tuple[Result, ...] = ("answered", "bad", "refused", "failed")
VERDICTS = ("pass", "fail", "unsure")
# Statuses of frames that were in order, and for which there was no room or no time.
REFUSALS = (429, 503)
OTHER = "other"
# Seconds between two lines of one camera.
SKEW_LOG_INTERVAL_S = 600.0
SUSPECT_LOG_INTERVAL_S = 60.0
# Callers choose the names: suspect frames of the cameras beyond are logged as of one.
SUSPECT_CAMERAS_MAX = 256


def result_of(status: int) -> Result:
    """Returns how a frame ended that was answered with the error `status`: refused, failed by our
    fault, or bad by the sender's."""
    if status in REFUSALS:
        return "refused"
    return "failed" if status >= 500 else "bad"


class _Series:
    """One camera's series, looked up once: a look-up by labels costs more than counting. at: Unix
    seconds of its newest frame. was_answered: at least one of its frames got labels. fails: its
    last frames, in a row, with the verdict `fail`."""

    __slots__ = (
        "at",
        "count",
        "fails",
        "label",
        "last",
        "problems",
        "reasons",
        "verdicts",
        "was_answered",
    )

    def __init__(
        self, label: str, count: Mapping[Result, Callable[[], None]], last: Callable[[float], None]
    ) -> None:
        self.label = label
        self.count = count
        self.last = last
        self.reasons: dict[str, Callable[[], None]] = {}
        self.verdicts: dict[str, Callable[[], None]] = {}
        self.fails = 0
        self.problems: dict[str, Callable[[], None]] = {}
        self.at = 0.0
        self.was_answered = False


class Cameras:
    """Counts the frames of named cameras.

    Callers choose the names, so only `most` cameras have series of their own; all others share
    `other`. A camera gets its series with its first frame that is answered, or that fails but came
    from a sender who was let in. One that was never answered gives way to one that is.
    `_lock` guards what is added to `_known` and to its series, and what is taken from them.
    """

    def __init__(self, registry: CollectorRegistry, most: int, fail_run: int = 5) -> None:
        """fail_run: verdicts `fail` in a row that count as a run."""
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
        self._verdicts = Counter(
            "lineside_camera_verdicts_total",
            "Frames of a camera by verdict",
            ("camera", "verdict"),
            registry=registry,
        )
        self._fail_runs = Counter(
            "lineside_camera_fail_runs_total",
            "Times that so many frames of a camera in a row got the verdict fail (fail_run)",
            ("camera",),
            registry=registry,
        )
        self._problems = Counter(
            "lineside_camera_image_problems_total",
            "Answered frames of a camera with a problem of the picture, by problem",
            ("camera", "problem"),
            registry=registry,
        )
        self._last = Gauge(
            "lineside_camera_last_frame_timestamp_seconds",
            "When the newest frame of a camera came, whatever became of it",
            ("camera",),
            registry=registry,
        )
        self._most = most
        self._fail_run = fail_run
        self._lock = threading.Lock()
        self._known: dict[str, _Series] = {}
        self._other: _Series | None = None

    def answered(self, event: FrameAnswered) -> None:
        """Counts an answered frame; a `server.recognition.answers.Listener`."""
        if camera := event.options.camera:
            series = self._known.get(camera)
            if series is None or not series.was_answered:
                series = self._claim(camera)
            self._count(series, "answered", event.at)
            if event.answer.verdict is not None:
                self._judged(series, event.answer.verdict)
            if event.answer.health is not None:
                self._count_problems(series, event.answer.health)

    def refused(self, refusal: FrameRefused) -> None:
        """Counts a frame that got an error; a `server.recognition.answers.RefusalListener`."""
        if camera := refusal.camera:
            series = self._known.get(camera) or self._unanswered(camera, refusal)
            self._count(series, result_of(refusal.status), refusal.at)
            self._reason(series, refusal.cause or refusal.code)

    def _count(self, series: _Series, result: Result, at: float) -> None:
        series.count[result]()
        series.last(at)
        series.at = at

    def _judged(self, series: _Series, verdict: str) -> None:
        """Counts a verdict, and a run of fails once as it gets long enough. The cameras that share
        `other` have no runs."""
        if not series.verdicts:
            # All from 0 on, so that the first ones are an increase.
            series.verdicts = {
                each: self._verdicts.labels(series.label, each).inc for each in VERDICTS
            }
            self._fail_runs.labels(series.label)
        series.verdicts[verdict]()
        series.fails = series.fails + 1 if verdict == "fail" else 0
        if series.fails == self._fail_run and series.label != OTHER:
            self._fail_runs.labels(series.label).inc()

    def _count_problems(self, series: _Series, health: ImageHealth) -> None:
        if not series.problems:
            # All at once, so that Prometheus sees the first one as an increase.
            series.problems = {
                problem: self._problems.labels(series.label, problem).inc for problem in PROBLEMS
            }
        for problem in health.problems:
            series.problems[problem]()

    def _reason(self, series: _Series, reason: str) -> None:
        count = series.reasons.get(reason)
        if count is None:
            with self._lock:
                count = self._refused.labels(series.label, reason).inc
                series.reasons[reason] = count
        count()

    def _claim(self, camera: str) -> _Series:
        """Returns the series of a camera whose frame was answered."""
        with self._lock:
            series = self._known.get(camera)
            if series is None and self._make_room():
                series = self._known[camera] = self._make(camera)
            if series is not None:
                series.was_answered = True
                return series
        return self._shared()

    def _unanswered(self, camera: str, refusal: FrameRefused) -> _Series:
        """Returns the series of a camera without an answered frame so far."""
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
        self._most = most
        self._lock = threading.Lock()
        self._logged: dict[str, float] = {}

    def note(
        self, camera: str, ahead: float, tolerated: float, cause: Callable[[], str] = str
    ) -> None:
        """Notes a frame of `camera`, whose clock is ahead by `ahead` seconds; 0 or less: not ahead.

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
        """Returns the series of `camera`, and whether a line of it is due, which then counts as
        written."""
        with self._lock:
            named = len(self._logged) - (OTHER in self._logged)
            if camera not in self._logged and (not camera or named >= self._most):
                camera = OTHER
            last = self._logged.setdefault(camera, -SKEW_LOG_INTERVAL_S)
            now = time.monotonic()
            due = to_log and now - last >= SKEW_LOG_INTERVAL_S
            if due:
                self._logged[camera] = now
            return camera, due


class SuspectFrames:
    """Counts answered frames whose image may be read wrongly, and logs them once a minute for each
    camera; a `server.recognition.answers.Listener`, called in one thread.

    counter: has the label `reason`.
    """

    def __init__(self, counter: Counter, clock: Callable[[], float] = time.monotonic) -> None:
        self._counter = counter
        self._clock = clock
        self._logged: dict[tuple[str, str], float] = {}
        # There from the start, so that Prometheus sees the first one as an increase.
        for warning in WARNINGS:
            counter.labels(warning.reason)

    def __call__(self, event: FrameAnswered) -> None:
        for warning in event.answer.warnings:
            self._counter.labels(warning.reason).inc()
            if self._may_log(event.options.camera, warning.reason):
                fields = {
                    "reason": warning.reason,
                    "message": warning.message,
                    "request_id": event.request_id,
                    "model": f"{event.answer.model}/{event.answer.version}",
                }
                if event.options.camera:
                    fields["camera"] = event.options.camera
                logger.warning("suspect frame", extra={"fields": fields})

    def _may_log(self, camera: str, reason: str) -> bool:
        """Returns whether the last line for this camera and reason is a minute old."""
        key = camera, reason
        if key not in self._logged and len(self._logged) >= SUSPECT_CAMERAS_MAX:
            key = "", reason
        now = self._clock()
        if now - self._logged.get(key, -SUSPECT_LOG_INTERVAL_S) < SUSPECT_LOG_INTERVAL_S:
            return False
        self._logged[key] = now
        return True
