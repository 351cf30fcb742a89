"""The cameras that the server reads: a thread for each, which asks its reader for a frame in time
or on demand, and has it judged as a posted frame is."""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from server.config.cameras import CameraTable
from server.config.settings import Settings
from server.errors import (
    BodyTooLargeError,
    CameraExistsError,
    CameraInSettingsError,
    CameraNotFoundError,
    CamerasFullError,
    CameraUnavailableError,
    LinesideError,
    StaleFrameError,
    UndecodableImageError,
)
from server.line.cameras.process import ReaderProcess
from server.line.cameras.sources import Shot, SourceEndedError, SourceError
from server.observe.metrics import Metrics
from server.recognition.answers import Answer, FrameAnswered, FrameRefused, Options
from server.store.cameras import CameraFile
from server.values.trace import Trace
from server.values.wording import kept_sentence

logger = logging.getLogger(__name__)

# Seconds before a camera that was lost is tried again: doubled from the first to the last.
RETRY_MIN_S, RETRY_MAX_S = 0.25, 2.0
# Longest time that a reader waits for a frame before it is asked again.
FRAME_WAIT_MAX_S = 0.5
# As long as that a trigger may wait for a question of motion.
MOTION_WAIT_MAX_S = 0.1
# Time that a reader's start may take beyond `stall_s`, on a busy machine.
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
# Cameras up to which one may be added: each has a process of about 60 MB.
CAMERAS_MAX = 32
# Characters of a part.
PART_MAX = 128
# Keys that say where a camera is.
PLACES = ("url", "device", "path")
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


class Trigger(msgspec.Struct, frozen=True):
    """One demand for a frame. asked: when (time.monotonic()). part: the caller's name for what the
    frame shows; product: in place of the camera's own; batch: the part's lot. trace: of the request
    that asked, if it named one."""

    request_id: str
    asked: float
    part: str = ""
    product: str = ""
    batch: str = ""
    trace: Trace | None = None


class Judge:
    """Has frames recognized, and reports each as a posted frame is reported.

    recognize: returns the answer to a camera's frame, and its options with its product.
    """

    def __init__(
        self,
        settings: Settings,
        recognize: Callable[[CameraTable, bytes, Options, str], tuple[Answer, Options]],
        answered: Callable[[FrameAnswered], object],
        refused: Callable[[FrameRefused], None],
    ) -> None:
        self._settings = settings
        self._recognize = recognize
        self._answered = answered
        self._refused = refused

    def judge(self, table: CameraTable, trigger: Trigger, shot: Shot) -> LinesideError | None:
        """Recognize a frame until it is one interval old. Return the error if it was refused."""
        deadline = shot.captured + table.interval_s
        options = Options(
            top_k=self._settings.default_top_k,
            deadline=deadline,
            camera=table.name,
            latest_only=self._settings.latest_only,
            part=trigger.part,
            from_capture=True,
            product=trigger.product or table.product,
            batch=trigger.batch,
            pulled=True,
        )
        try:
            if time.monotonic() > deadline:
                raise StaleFrameError("the frame is older than the camera's interval_s")
            if not shot.data:
                raise UndecodableImageError("the camera's picture can't be read, or is too large")
            if len(shot.data) > self._settings.max_body_mb * 1e6:
                raise BodyTooLargeError(
                    f"the camera's picture is larger than {self._settings.max_body_mb:g} MB"
                    " (max_body_mb)"
                )
            answer, options = self._recognize(table, shot.data, options, trigger.request_id)
        except LinesideError as error:
            self.refuse(table, trigger, error)
            return error
        except Exception:
            # A trigger that was taken is always accounted for.
            self.refuse(table, trigger, LinesideError("an error of the server, see its log"))
            raise
        event = FrameAnswered(
            time.time(), trigger.request_id, answer, options, shot.data, trace=trigger.trace
        )
        self._answered(event)
        return None

    def refuse(self, table: CameraTable, trigger: Trigger, error: LinesideError) -> None:
        """Report that `trigger` got no verdict."""
        self._refused(
            FrameRefused(
                at=time.time(),
                request_id=trigger.request_id,
                status=error.status,
                code=error.code,
                model=table.model,
                camera=table.name,
                part=trigger.part,
                product=trigger.product or table.product,
                batch=trigger.batch,
                seconds=time.monotonic() - trigger.asked,
                reason=kept_sentence(error.message),
                cause=error.cause,
                let_in=True,
                trace=trigger.trace,
            )
        )


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


def new_trigger(part: str = "", product: str = "", batch: str = "") -> Trigger:
    return Trigger(os.urandom(16).hex(), time.monotonic(), part, product, batch)


class Cameras:
    """The cameras of `settings`, and those that were added later, which `file` keeps.

    `_lock` is held by one change. `_cameras`, by name, is replaced by each, never changed.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, judge: Judge, file: CameraFile
    ) -> None:
        self._judge = judge
        self._metrics = metrics
        self._file = file
        self._lock = threading.Lock()
        self._closed = False
        self._cameras: dict[str, Camera] = {}
        self._fixed = frozenset(table.name for table in settings.camera)
        for table in settings.camera:
            self._make(table)
        for added in file.read():
            if added.name in self._fixed:
                fields = {"camera": added.name}
                logger.warning("added camera has a name of the settings", extra={"fields": fields})
            else:
                self._make(added)

    def _make(self, table: CameraTable) -> Camera:
        camera = Camera(table, self._judge, added=table.name not in self._fixed)
        self._metrics.camera_connected.labels(table.name).set_function(camera.is_connected)
        self._metrics.camera_frame_age.labels(table.name).set_function(camera.frame_age)
        self._cameras = {**self._cameras, table.name: camera}
        return camera

    def start(self) -> None:
        for camera in self._cameras.values():
            camera.start()

    def states(self) -> Sequence[CameraState]:
        return [camera.state() for camera in self._cameras.values()]

    def picture(self, name: str) -> bytes:
        """Return the file of the newest frame. Raises CameraNotFoundError, and what
        `Camera.picture` raises."""
        return self._get(name).picture()

    def _get(self, name: str) -> Camera:
        camera = self._cameras.get(name)
        if camera is None:
            raise CameraNotFoundError("there is no camera of this name")
        return camera

    def add(self, table: CameraTable) -> CameraState:
        """Keep a camera, and start it. Raises CameraExistsError, CamerasFullError, StorageError."""
        with self._lock:
            if self._closed:
                raise CameraUnavailableError("the server stops")
            if table.name in self._cameras:
                raise CameraExistsError(f"there is a camera {table.name} already: delete it first")
            if len(self._cameras) >= CAMERAS_MAX:
                raise CamerasFullError(f"there are {CAMERAS_MAX} cameras already, the most")
            self._file.write([*self._added(), table])
            camera = self._make(table)
            camera.start()
        return camera.state()

    def remove(self, name: str) -> CameraState:
        """Forget and end a camera that was added. Return its last state once no more of its frames
        is judged, or after STOP_TIMEOUT_S. Raises CameraNotFoundError, CameraInSettingsError,
        StorageError."""
        with self._lock:
            camera = self._get_added(name)
            self._file.write([table for table in self._added() if table.name != name])
            self._cameras = {key: each for key, each in self._cameras.items() if key != name}
        camera.stop("the camera was removed")
        camera.join(STOP_TIMEOUT_S)
        state = camera.state()
        with self._lock:
            if name not in self._cameras:
                for gauge in (self._metrics.camera_connected, self._metrics.camera_frame_age):
                    gauge.remove(name)
                for result in ("accepted", "refused", "duplicate", "retained"):
                    self._metrics.camera_triggers.remove(name, result)
        return state

    def change(self, name: str, changed: Callable[[CameraTable], CameraTable]) -> CameraState:
        """Read a camera that was added by another table: what `changed` makes of its own. Return
        its state once the former reader has ended, or after STOP_TIMEOUT_S. Raises what `changed`
        raises, CameraNotFoundError, CameraInSettingsError, StorageError."""
        with self._lock:
            if self._closed:
                raise CameraUnavailableError("the server stops")
            before = self._get_added(name)
            table = changed(before.table)
            others = [each for each in self._added() if each.name != name]
            self._file.write([*others, table])
            before.stop("the camera was changed")
            before.join(STOP_TIMEOUT_S)
            camera = self._make(table)
            if all(getattr(table, key, "") == getattr(before.table, key, "") for key in PLACES):
                camera.take_over(before)
            camera.start()
        return camera.state()

    def _get_added(self, name: str) -> Camera:
        """Return a camera that a request may change. Raises CameraNotFoundError,
        CameraInSettingsError."""
        camera = self._get(name)
        if name in self._fixed:
            raise CameraInSettingsError(
                f"the camera {name} is in the settings: change its table there, and restart"
            )
        return camera

    def _added(self) -> list[CameraTable]:
        return [each.table for each in self._cameras.values() if each.table.name not in self._fixed]

    def trigger(self, name: str, trigger: Trigger) -> None:
        """Have a fresh frame of the camera `name` judged. Raises CameraNotFoundError, and what
        `Camera.trigger` raises."""
        camera, triggers = self._get(name), self._metrics.camera_triggers
        try:
            camera.trigger(trigger)
        except CameraUnavailableError:
            triggers.labels(name, "refused").inc()
            raise
        triggers.labels(name, "accepted").inc()

    def fire(self, name: str, trigger: Trigger) -> None:
        """Do as `trigger`, for a source that takes no answer: the outputs get a refusal."""
        try:
            self.trigger(name, trigger)
        except CameraUnavailableError:
            return  # it is reported
        except CameraNotFoundError as error:
            self.refuse(name, trigger, error)

    def refuse(self, name: str, trigger: Trigger, error: LinesideError) -> None:
        """Report that no frame can be taken for `trigger` of the camera `name`."""
        self._metrics.camera_triggers.labels(name, "refused").inc()
        camera = self._cameras.get(name)
        self._judge.refuse(camera.table if camera else CameraTable(name=name), trigger, error)

    def ignore(self, name: str, reason: str) -> None:
        """Count what is no trigger of the camera `name` though it looks like one."""
        self._metrics.camera_triggers.labels(name, reason).inc()

    def close(self) -> None:
        """End all readers. Return once no more frame is judged, or after STOP_TIMEOUT_S."""
        until = time.monotonic() + STOP_TIMEOUT_S
        with self._lock:
            self._closed = True
        for camera in self._cameras.values():
            camera.stop("the server stops")
        for camera in self._cameras.values():
            camera.join(max(0.0, until - time.monotonic()))
