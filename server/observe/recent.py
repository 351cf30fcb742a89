"""The last frames, for who watches the line: their verdicts, and the newest picture of each camera.

Pictures are kept only while somebody watches, since a console that nobody has open should take no
memory.
"""

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence

import msgspec

from server.recognition.answers import FrameAnswered, FrameRefused
from server.system.clock import rfc3339

# Frames that are listed, seconds over which counts and latencies go, and the most frames of them.
LISTED, WINDOW_S, COUNTED_MAX = 60, 60.0, 5000
# Seconds after the last look for which pictures are kept, cameras of which one is, and all bytes.
WATCHED_S, PICTURES_MAX, PICTURES_BYTES_MAX = 15.0, 16, 24_000_000


class RecentFrame(msgspec.Struct, frozen=True):
    """One frame. number: counts the frames since the start. at: RFC 3339. label, probability: the
    best. code: the error's, if it was refused or failed; verdict and label are null then."""

    number: int
    at: str
    request_id: str
    camera: str
    part: str
    model: str
    version: int
    label: str | None
    probability: float | None
    verdict: str | None
    reason: str | None
    code: str | None
    total_ms: float


class _Listed(msgspec.Struct):
    """A listed frame. shown: as those who watch get it, made for the first of them."""

    number: int
    event: FrameAnswered | FrameRefused
    shown: RecentFrame | None = None


class LastMinute(msgspec.Struct, frozen=True):
    """The frames of the last minute. verdicts: by verdict, `none` without one. refused: refused or
    failed. p50_ms, p99_ms: of the answered ones' time in the server; null without any."""

    frames: int
    verdicts: dict[str, int]
    refused: int
    p50_ms: float | None
    p99_ms: float | None


class RecentFrames:
    """Listens to answered and refused frames, and has who waits for the next one woken.

    `_changed` guards all that follows it: `_frames`, the last ones; `_times`, of those of the last
    minute, when (time.monotonic()), verdict and milliseconds, None for a refused one; `_pictures`,
    the number and the last frame of each camera, the longest unchanged first; `_watched`, when
    somebody looked last.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._number = 0
        self._frames: deque[_Listed] = deque(maxlen=LISTED)
        self._times: deque[tuple[float, str, float | None]] = deque(maxlen=COUNTED_MAX)
        self._pictures: OrderedDict[str, tuple[int, FrameAnswered]] = OrderedDict()
        self._watched = -WATCHED_S

    def answered(self, event: FrameAnswered) -> None:
        """Add an answered frame."""
        answer = event.answer
        verdict = answer.verdict or "none"
        with self._changed:
            if time.monotonic() - self._watched < WATCHED_S:
                self._keep_picture(event)
            elif self._pictures:
                self._pictures.clear()
            self._add(_without_data(event), verdict, answer.timing.get("total", 0.0) * 1000)

    def refused(self, event: FrameRefused) -> None:
        """Add a refused or failed frame; but not one of a stranger, who could fill the list."""
        if event.let_in:
            with self._changed:
                self._add(event, "", None)

    def _add(self, event: FrameAnswered | FrameRefused, verdict: str, ms: float | None) -> None:
        self._number += 1
        self._frames.append(_Listed(self._number, event))
        self._times.append((time.monotonic(), verdict, ms))
        self._changed.notify_all()

    def _keep_picture(self, event: FrameAnswered) -> None:
        if event.data is None or len(event.data) > PICTURES_BYTES_MAX // 2:
            return
        self._pictures[event.options.camera] = self._number + 1, event
        self._pictures.move_to_end(event.options.camera)
        size = sum(len(each.data or b"") for _, each in self._pictures.values())
        while len(self._pictures) > PICTURES_MAX or size > PICTURES_BYTES_MAX:
            _, (_, gone) = self._pictures.popitem(last=False)
            size -= len(gone.data or b"")

    def since(self, number: int, timeout_s: float = 0.0) -> list[RecentFrame]:
        """Return the listed frames after the one with `number`, the oldest first; if there is none,
        wait for one for `timeout_s` seconds."""
        with self._changed:
            self._watched = time.monotonic()
            self._changed.wait_for(lambda: self._number > number, timeout_s)
            self._watched = time.monotonic()
            frames = [each for each in self._frames if each.number > number]
        for each in frames:
            # Two who watch may make it at the same time, to the same end.
            each.shown = each.shown or _recent(each.number, each.event)
        return [each.shown for each in frames if each.shown]

    @property
    def number(self) -> int:
        """The number of the newest frame, 0 before the first."""
        return self._number

    def last_minute(self) -> LastMinute:
        """Return the counts of the last minute."""
        with self._changed:
            since = time.monotonic() - WINDOW_S
            while self._times and self._times[0][0] < since:
                self._times.popleft()
            times = list(self._times)
        verdicts = Counter(verdict for _, verdict, ms in times if ms is not None)
        latencies = sorted(ms for _, _, ms in times if ms is not None)
        return LastMinute(
            len(times),
            dict(verdicts),
            len(times) - len(latencies),
            _quantile(latencies, 0.5),
            _quantile(latencies, 0.99),
        )

    def pictures(self) -> list[str]:
        """Return the cameras of which there is a picture; '' for frames without a camera."""
        with self._changed:
            return list(self._pictures)

    def picture(self, camera: str) -> tuple[int, FrameAnswered] | None:
        """Return the number and the last frame of `camera`; None if none was kept."""
        with self._changed:
            self._watched = time.monotonic()
            return self._pictures.get(camera)


def _without_data(event: FrameAnswered) -> FrameAnswered:
    return msgspec.structs.replace(event, data=None) if event.data is not None else event


def _quantile(values: Sequence[float], share: float) -> float | None:
    return round(values[min(len(values) - 1, int(share * len(values)))], 2) if values else None


def _recent(number: int, event: FrameAnswered | FrameRefused) -> RecentFrame:
    if isinstance(event, FrameRefused):
        return RecentFrame(
            number,
            rfc3339(event.at),
            event.request_id,
            event.camera,
            event.part,
            event.model,
            event.version,
            None,
            None,
            None,
            event.reason,
            event.code,
            round(event.seconds * 1000, 2),
        )
    answer = event.answer
    return RecentFrame(
        number,
        rfc3339(event.at),
        event.request_id,
        event.options.camera,
        event.options.part,
        answer.model,
        answer.version,
        answer.label or None,
        answer.probability if answer.best else None,
        answer.verdict,
        answer.verdict_reason,
        None,
        round(answer.timing.get("total", 0.0) * 1000, 2),
    )
