"""One camera that the server reads: a thread that asks its reader for a frame in time or on demand,
and has it judged."""

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Literal

import msgspec

from server.config.cameras import CameraTable
from server.errors import CameraUnavailableError
from server.line.cameras.judge import Judge, Trigger, new_trigger
from server.line.cameras.process import ReaderProcess
from server.line.cameras.sources import SourceEndedError, SourceError

logger = logging.getLogger(__name__)

# Seconds before a camera that was lost is tried again: doubled from the first to the last.
RETRY_MIN_S, RETRY_MAX_S = 0.25, 2.0
# Longest time that a reader waits for a frame before it is asked again.
FRAME_WAIT_MAX_S = 0.5
# As long as that a trigger may wait for a question of motion.
MOTION_WAIT_MAX_S = 0.1
# Time that a reader's start may take beyond `stall_s`, on a busy machine.
START_TIMEOUT_S = 10.0
# Characters of a part.
PART_MAX = 128
# Kinds that are lost if frames stay away, also while none is wanted.
STREAMS = ("rtsp", "usb", "mjpeg")

State = Literal["connecting", "connected", "lost", "ended"]


class CameraState(msgspec.Struct, frozen=True):
    """One camera. state: ended if its video is at its end. last_error: why it was lost or a frame
    was not judged; None if all is well. frame_age_s: seconds since its newest frame was captured;
    None before the first. region, motion_region: x, y, width and height as shares of the frame;
    empty for all of it. added: by a request, so that one may change or remove it."""

    name: str
    kind: str
    model: str
    trigger: str
    interval_s: float
    state: State
    frames: int
    last_error: str | None
    frame_age_s: float | None
    region: tuple[float, ...] = ()
    motion_region: tuple[float, ...] = ()
    added: bool = False


class Camera:
    """One camera. `_changed` guards `_posted`, the one trigger that waits, and `_stopping`."""

    def __init__(self, table: CameraTable, judge: Judge, *, added: bool = False) -> None:
        self.table = table
        self._added = added
        self._kind = str(table.__struct_config__.tag)
        self._judge = judge
        self._changed = threading.Condition()
        self._posted: Trigger | None = None
        self._stopping = False
        self._state: State = "connecting"
        self._error: str | None = None
        self._captured: float | None = None
        self._frames = 0
        self._picture: bytes | None = None
        self._thread = threading.Thread(target=self._run, name=f"camera {table.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, why: str) -> None:
        """Have the thread end. The trigger that waits, if any, gets no verdict: `why`."""
        with self._changed:
            self._stopping = True
            posted, self._posted = self._posted, None
            self._changed.notify_all()
        if posted is not None:
            self._judge.refuse(self.table, posted, CameraUnavailableError(why))

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def is_connected(self) -> bool:
        return self._state == "connected"

    def frame_age(self) -> float:
        """Return the seconds since the newest frame was captured; NaN before the first."""
        captured = self._captured
        return math.nan if captured is None else time.monotonic() - captured

    def picture(self) -> bytes:
        """Return the file of the newest frame that was taken, whole: of a camera with a region, of
        the newest that was sent whole. Raises CameraUnavailableError."""
        if self._picture is None:
            raise CameraUnavailableError(f"no frame of the camera {self.table.name} was taken yet")
        return self._picture

    def take_over(self, former: "Camera") -> None:
        """Show the picture of a camera at the same place until there is one of this."""
        self._picture = former._picture

    def state(self) -> CameraState:
        table, age = self.table, self.frame_age()
        return CameraState(
            name=table.name,
            kind=self._kind,
            model=table.model,
            trigger=table.trigger,
            interval_s=table.interval_s,
            state=self._state,
            frames=self._frames,
            last_error=self._error,
            frame_age_s=None if math.isnan(age) else round(age, 3),
            region=table.region,
            motion_region=table.motion_region,
            added=self._added,
        )

    def trigger(self, trigger: Trigger) -> None:
        """Have a fresh frame judged. Raises CameraUnavailableError, and reports that, if the camera
        is not there, or another trigger waits."""
        with self._changed:
            fault = "" if self.is_connected() else f"the camera {self.table.name} is not connected"
            if self._posted is not None:
                fault = f"another trigger of the camera {self.table.name} waits for its frame"
            if not fault and not self._stopping:
                self._posted = trigger
                self._changed.notify_all()
                return
        error = CameraUnavailableError(fault or "the server stops", retry_after=1)
        self._judge.refuse(self.table, trigger, error)
        raise error

    def _run(self) -> None:
        retry_s = RETRY_MIN_S
        while not self._stopping:
            frames = self._frames
            try:
                with ReaderProcess(self.table) as reader:
                    self._serve(reader)
            except SourceEndedError as error:
                self._lose("ended", str(error))
                return
            except SourceError as error:
                self._lose("lost", str(error))
            except Exception:
                # The line's other cameras go on, and this one is tried again.
                logger.exception("a camera failed", extra={"fields": {"camera": self.table.name}})
                self._lose("lost", "an error of the server, see its log")
            retry_s = RETRY_MIN_S if self._frames > frames else min(RETRY_MAX_S, retry_s * 2)
            self._wait(lambda: False, retry_s)
        self._lose("ended", "the server stops")

    def _lose(self, state: State, why: str) -> None:
        """Note that the camera is gone; the trigger that waits, if any, gets no verdict. A camera
        that has frames in time, or looks for motion, says once that they are missing."""
        was_there = self._state == "connected" and not self._stopping
        first = self._state == "connecting" and self._error is None and not self._stopping
        with self._changed:
            posted, self._posted = self._posted, None
            self._state, self._error = state, why
        if was_there or first:
            fields = {"camera": self.table.name, "reason": why}
            logger.warning("camera lost", extra={"fields": fields})
        if posted is None and state == "lost" and was_there and self.table.trigger != "post":
            posted = new_trigger()
        if posted is not None:
            self._judge.refuse(self.table, posted, CameraUnavailableError(why))

    def _wait(self, done: Callable[[], bool], seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or done(), max(0.0, seconds))

    def _serve(self, reader: ReaderProcess) -> None:
        """Take frames until the server stops. Raises SourceError."""
        timeout_s = self.table.stall_s + START_TIMEOUT_S
        reader.is_there(timeout_s)
        moving, last = self.table.trigger == "motion", -math.inf
        # A question of motion is always due.
        timed = moving or self.table.trigger == "time"
        due = started = time.monotonic()
        while True:
            if reader.seen > -math.inf:
                self._connected()
            wait_s = min(due - time.monotonic(), FRAME_WAIT_MAX_S)
            self._wait(lambda: self._posted is not None, wait_s if timed else FRAME_WAIT_MAX_S)
            if self._stopping:
                return
            posted = self._posted
            now = time.monotonic()
            if posted is None and (not timed or now < due):
                reader.is_there(self.table.stall_s)
                shot = None
            elif posted is None and moving:
                shot = reader.take(-math.inf, MOTION_WAIT_MAX_S, self.table.stall_s)
            else:
                after = posted.asked if posted else last
                shot = reader.take(after, FRAME_WAIT_MAX_S, self.table.stall_s)
            # The first frame may take as long as the reader's start.
            most = self.table.stall_s if reader.seen > -math.inf else timeout_s
            is_watched = moving or self._kind in STREAMS
            if is_watched and now - max(reader.seen, started) > most:
                raise SourceError(f"no frame came for {self.table.stall_s:g} s")
            if self._stopping:
                return
            if shot is None:
                self._give_up(posted, now)
                continue
            waiting = self._posted
            if not (posted or moving) and waiting and shot.earliest >= waiting.asked:
                # The trigger came while a timed frame was waited for; perhaps no other comes.
                posted = waiting
            last = self._captured = shot.captured
            if shot.whole or not self.table.region:
                self._picture = shot.whole or shot.data
            if posted is None and not moving:
                due = max(due + self.table.interval_s, now)
            self._frames += 1
            if posted is not None and not self._claim(posted):
                return
            trigger = posted or new_trigger()
            if not trigger.part and getattr(self.table, "part_from_name", False):
                trigger = msgspec.structs.replace(trigger, part=shot.name[:PART_MAX])
            error = self._judge.judge(self.table, trigger, shot)
            self._error = error.message if error else None

    def _claim(self, posted: Trigger) -> bool:
        """Return whether `posted` still waits: the stop of the server may have refused it. It does
        not afterwards."""
        with self._changed:
            waits = self._posted is posted
            self._posted = None
        return waits

    def _give_up(self, posted: Trigger | None, now: float) -> None:
        """Refuse a trigger that has waited for its frame for longer than `stall_s`."""
        if posted is None or now - posted.asked < self.table.stall_s or not self._claim(posted):
            return
        why = f"no frame came within {self.table.stall_s:g} s after the trigger"
        self._judge.refuse(self.table, posted, CameraUnavailableError(why))

    def _connected(self) -> None:
        if self._state != "connected":
            self._state, self._error = "connected", None
            logger.info("camera connected", extra={"fields": {"camera": self.table.name}})
