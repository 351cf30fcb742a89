"""The cameras that the server reads: those of the settings, and those that were added later."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from server.config.cameras import CameraTable
from server.config.settings import Settings
from server.errors import (
    CameraExistsError,
    CameraInSettingsError,
    CameraNotFoundError,
    CamerasFullError,
    CameraUnavailableError,
    LinesideError,
)
from server.line.cameras.camera import Camera, CameraState
from server.line.cameras.judge import Judge, Trigger
from server.observe.metrics import Metrics
from server.store.cameras import CameraFile

logger = logging.getLogger(__name__)

# Time that a camera's end may take.
STOP_TIMEOUT_S = 5.0
# Cameras up to which one may be added: each has a process of about 60 MB.
CAMERAS_MAX = 32
# Keys that say where a camera is.
PLACES = ("url", "device", "path")


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
