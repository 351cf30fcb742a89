"""Judges the health of each camera's pictures, and learns what is usual for it."""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from server.config.image_health import CameraLimits
from server.config.settings import Settings
from server.errors import CameraNotFoundError
from server.line.health.baseline import Baseline, learn
from server.line.health.rules import Comparison, HealthBounds, bounds_of, judge
from server.line.health.storage import HealthFile, Learned
from server.recognition.answers import Answer, ImageHealth, Options, unsure
from server.recognition.images.measurement import Measurement
from server.recognition.images.problems import ImageProblem

logger = logging.getLogger(__name__)

# Callers choose the names of cameras: so many of them are known, and learn at once. Cameras that
# the server reads, or whose limits are set, are few and always have a place.
CAMERAS_MAX, LEARNING_MAX = 256, 16
# Seconds without a frame to learn from after which a camera that learns gives its place to another.
STALLED_S = 60.0
# The reason of the verdict of a frame with a problem.
REASON = "image_{}"

Key = tuple[str, str]


class CameraHealth(msgspec.Struct, frozen=True):
    """The pictures of a camera that one model gets. learning: its usual values are not known yet.
    learned_frames: of `frames_to_learn`. reference: a part of the picture stays, so that a shift is
    noticed. problems: frames since the start, by problem. last: of the newest frame, null before
    the first since the start. bounds: in force."""

    camera: str
    model: str
    learning: bool
    learned_frames: int
    frames_to_learn: int
    reference: bool
    size: tuple[int, int] | None
    problems: dict[ImageProblem, int]
    last: ImageHealth | None
    bounds: HealthBounds


class _Camera:
    """One camera's frames for one model. `lock` guards all else. frames: those to learn from.
    learned_at: when the last of them came, in seconds of the clock. known: its name was not chosen
    by a caller."""

    def __init__(
        self, limits: CameraLimits, learned_at: float, known: bool, baseline: Baseline | None = None
    ) -> None:
        self.known = known
        self.lock = threading.Lock()
        self.limits = limits
        self.use(baseline)
        self.before: Measurement | None = None
        self.problems: Counter[ImageProblem] = Counter()
        self.last: ImageHealth | None = None
        self.learned_at = learned_at

    def use(self, baseline: Baseline | None) -> None:
        """Compare with `baseline` from now on; with None, learn."""
        self.frames: list[Measurement] = []
        self.comparison = (
            Comparison.of(self.limits, baseline) if baseline else Comparison(self.limits)
        )

    @property
    def baseline(self) -> Baseline | None:
        return self.comparison.baseline


class HealthMonitor:
    """The cameras whose frames come, by name and model. `_lock` guards which there are, `_saving`
    the file.

    submit: runs a task soon, in a thread that no frame waits for; False if it can't.
    """

    def __init__(
        self,
        settings: Settings,
        submit: Callable[[Callable[[], None]], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._frames_to_learn = settings.image_health_frames
        self._limits = {table.name: table for table in settings.image_health_limits}
        self._submit = submit
        self._lock, self._saving = threading.Lock(), threading.Lock()
        self._file = HealthFile(Path(settings.data))
        self._cameras: dict[Key, _Camera] = {
            (each.camera, each.model): _Camera(
                self._limits_of(each.camera), clock(), each.camera in self._limits, each.baseline
            )
            for each in self._file.load()
        }

    def judge(self, answer: Answer, options: Options, *, in_order: bool = True) -> Answer:
        """Return `answer` with the health of its picture; with a problem, its verdict is unsure,
        and so is that of each region.

        An unhealthy picture says nothing about the part: neither that it is good, nor that it is
        bad. in_order: the frame follows its camera's last one, so that it may be the same again,
        and may be learned from.
        """
        measured = answer.measured
        if measured is None:
            return answer
        camera = self._camera(options, answer.model, in_order) if options.camera else None
        if camera is None:
            health = judge(measured, Comparison(self._limits_of(options.camera)), None)
        else:
            with camera.lock:
                health = judge(measured, camera.comparison, camera.before if in_order else None)
                camera.problems.update(health.problems)
                camera.last = health
                if in_order:
                    camera.before = measured
                    self._learn_from(options.camera, answer.model, camera, measured, health.ok)
        judged = msgspec.structs.replace(answer, measured=None, health=health)
        return judged if health.ok else unsure(judged, REASON.format(health.problems[0]))

    def _limits_of(self, camera: str) -> CameraLimits:
        return self._limits.get(camera) or CameraLimits(name="default")

    def _camera(self, options: Options, model: str, in_order: bool) -> _Camera | None:
        """Return the camera of a frame; None if there is no place for another. in_order: it may be
        learned from; one that may not be keeps no place from a camera that learns."""
        key = options.camera, model
        camera = self._cameras.get(key)
        if camera is None:
            known = options.pulled or options.camera in self._limits
            learned_at = self._clock() if in_order else -math.inf
            with self._lock:
                camera = self._cameras.get(key)
                if camera is None and (known or self._make_room()):
                    camera = _Camera(self._limits_of(options.camera), learned_at, known)
                    self._cameras[key] = camera
        if camera is not None and options.pulled:
            camera.known = True  # of a file, it may have been learned by posted frames
        return camera

    def _make_room(self) -> bool:
        """Return whether there is a place for a camera whose name a caller chose. Of those that
        make no progress, the one that learned least gives its place. The caller holds `_lock`."""
        chosen = {key: each for key, each in self._cameras.items() if not each.known}
        learning = {key: each for key, each in chosen.items() if each.baseline is None}
        if len(learning) < LEARNING_MAX and len(chosen) < CAMERAS_MAX:
            return True
        before = self._clock() - STALLED_S
        stalled = [key for key, each in learning.items() if each.learned_at <= before]
        if not stalled:
            return False
        del self._cameras[min(stalled, key=lambda key: len(learning[key].frames))]
        return True

    def _learn_from(
        self, name: str, model: str, camera: _Camera, measured: Measurement, healthy: bool
    ) -> None:
        """Take a frame into account, with the camera's lock held."""
        if (
            camera.baseline is not None
            or not healthy
            or len(camera.frames) >= self._frames_to_learn
        ):
            return
        camera.frames.append(measured)
        camera.learned_at = self._clock()
        if len(camera.frames) == self._frames_to_learn and not self._submit(
            partial(self._learn, name, model, camera, camera.frames)
        ):
            camera.frames.pop()  # the next frame tries again

    def _learn(self, name: str, model: str, camera: _Camera, frames: Sequence[Measurement]) -> None:
        baseline = learn(frames)
        with camera.lock:
            if camera.frames is not frames:
                return  # the camera began anew meanwhile
            camera.use(baseline)
        fields = {"camera": name, "model": model, "reference": bool(baseline.reference)}
        logger.info("image health learned", extra={"fields": fields})
        self._save()

    def _save(self) -> None:
        with self._saving:
            with self._lock:
                cameras = list(self._cameras.items())
            self._file.save(
                [Learned(*key, usual) for key, each in cameras if (usual := each.baseline)]
            )

    def states(self) -> list[CameraHealth]:
        """Return what is known of each camera, by name and model."""
        with self._lock:
            cameras = sorted(self._cameras.items())
        return [self._state(key, camera) for key, camera in cameras]

    def _state(self, key: Key, camera: _Camera) -> CameraHealth:
        with camera.lock:
            usual = camera.baseline
            return CameraHealth(
                *key,
                learning=usual is None,
                learned_frames=usual.frames if usual else len(camera.frames),
                frames_to_learn=self._frames_to_learn,
                reference=camera.comparison.reference is not None,
                size=usual.size if usual else None,
                problems=dict(camera.problems),
                last=camera.last,
                bounds=bounds_of(camera.comparison),
            )

    def forget(self, name: str, model: str | None = None) -> list[str]:
        """Learn a camera anew with its next frames, for `model` or for all models. Return the
        models. Raises CameraNotFoundError if no frame of it came."""
        with self._lock:
            keys = [key for key in self._cameras if key[0] == name and model in (None, key[1])]
            for key in keys:
                camera = self._cameras[key]
                with camera.lock:
                    camera.use(None)
                    camera.problems.clear()
        if not keys:
            raise CameraNotFoundError("no picture of a camera of this name was judged")
        self._save()
        return [key[1] for key in keys]
