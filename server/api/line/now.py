"""Tell the console what the line does now: the last frames, counts, cameras, outputs, events."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from flask import Response, request

from server.api.line.last_pictures import LastPictures
from server.api.recognize.pictures import JPEG
from server.config.load import SettingInForce, settings_in_force
from server.config.settings import Settings
from server.config.thread_budget import EVENTS_REQUESTS_MAX
from server.engine import Engine
from server.errors import OverloadedError
from server.http.access.caller import Caller
from server.http.body.image import read_options
from server.http.routes import ADMIN, route
from server.http.wsgi import current
from server.line.cameras.camera import CameraState
from server.line.outputs.base import OutputState
from server.observe.device import temperatures
from server.observe.recent import LastMinute, RecentFrame, RecentFrames
from server.system.clock import rfc3339

# Seconds between two states of a stream of events, of a wait in it, and of its whole length: who
# left is not noticed, and keeps a place until then. A client connects again by itself.
STATE_EVERY_S, STEP_S, STREAM_S = 2.0, 0.5, 60.0
# Seconds that a stream waits after an event, so that a busy line does not wake each of them with
# each frame; and for which all streams share a state.
PACE_S, SHARED_S = 0.25, 1.0
# Milliseconds after which a client connects again (HTML, 9.2, server-sent events).
RETRY_MS = 1000


class Now(msgspec.Struct, frozen=True):
    """The line at this moment. at: RFC 3339. ready: the default model answers; not_ready: why it
    does not. number: of the newest frame. temperature_c: the hottest zone's, null if unknown.
    pictures: cameras of which there is a picture."""

    at: str
    ready: bool
    not_ready: str
    number: int
    last_minute: LastMinute
    temperature_c: float | None
    cameras: tuple[CameraState, ...]
    outputs: tuple[OutputState, ...]
    pictures: tuple[str, ...]
    frames: tuple[RecentFrame, ...]


class NowQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """after: only frames with a greater number are listed."""

    after: Annotated[int, msgspec.Meta(ge=0)] = 0


class PictureQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """camera: whose last frame is wanted; empty for frames that named none."""

    camera: Annotated[str, msgspec.Meta(max_length=128)] = ""


class SettingList(msgspec.Struct, frozen=True):
    """The settings in force. Passwords and secrets are not shown."""

    settings: tuple[SettingInForce, ...]


class NowRoutes:
    """Answers what `recent` has heard, and the states of cameras and outputs."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        recent: RecentFrames,
        pictures: LastPictures,
        cameras: Callable[[], Sequence[CameraState]],
        outputs: Callable[[], Sequence[OutputState]],
        knows: Callable[[Caller | None], bool],
    ) -> None:
        """knows: returns whether a caller who was let in may still come in."""
        self._settings, self._engine, self._recent = settings, engine, recent
        self._pictures, self._cameras, self._outputs = pictures, cameras, outputs
        self._knows = knows
        self._shared_lock = threading.Lock()
        self._shared: tuple[float, Now] | None = None
        self._streams = threading.BoundedSemaphore(EVENTS_REQUESTS_MAX)

    def _state(self, frames: Sequence[RecentFrame], number: int) -> Now:
        ready, reason = self._engine.ready()
        zones = temperatures(Path("/"))
        return Now(
            rfc3339(time.time()),
            ready,
            "" if ready else reason,
            frames[-1].number if frames else min(number, self._recent.number),
            self._recent.last_minute(),
            max(zones.values(), default=None),
            tuple(self._cameras()),
            tuple(self._outputs()),
            tuple(self._recent.pictures()),
            tuple(frames),
        )

    def _shared_state(self, frames: Sequence[RecentFrame], number: int) -> Now:
        """Return the state as `_state` does, its parts up to SHARED_S old."""
        with self._shared_lock:
            now = time.monotonic()
            if self._shared is None or now - self._shared[0] >= SHARED_S:
                self._shared = now, self._state((), 0)
            shared = self._shared[1]
        return msgspec.structs.replace(
            shared,
            at=rfc3339(time.time()),
            number=frames[-1].number if frames else number,
            frames=tuple(frames),
        )

    @route("GET", "/v1/now", rights=ADMIN, query=NowQuery, errors=(400,), quiet=True)
    def now(self) -> Now:
        """Return what the line does now, and its last frames."""
        after = read_options(NowQuery, request).after
        return self._state(self._recent.since(after), after)

    @route(
        "GET",
        "/v1/events",
        rights=ADMIN,
        answer={"text/event-stream": str},
        errors=(503,),
        quiet=True,
    )
    def events(self) -> Response:
        """Send server-sent events: `now`, the state, every two seconds, and `frames`, the newest
        frames as soon as they are answered. The stream ends with the key, and after a minute:
        connect again."""
        if not self._streams.acquire(blocking=False):
            raise OverloadedError(
                f"{EVENTS_REQUESTS_MAX} streams of events are open, which is the most: ask"
                " /v1/now now and then instead",
                retry_after=int(STREAM_S),
            )
        context = current()

        def leaving() -> bool:
            return context.leaving or not self._knows(context.caller)

        response = Response(self._stream(leaving), content_type="text/event-stream")
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Accel-Buffering"] = "no"  # nginx would hold the events back
        response.call_on_close(self._streams.release)
        return response

    def _stream(self, leaving: Callable[[], bool]) -> Iterator[bytes]:
        began, state_due, number, wait_s = time.monotonic(), 0.0, 0, 0.0
        yield f"retry: {RETRY_MS}\n\n".encode()
        while (now := time.monotonic()) - began < STREAM_S and not leaving():
            frames = self._recent.since(number, wait_s)
            wait_s = STEP_S
            if frames:
                number = frames[-1].number
            if now >= state_due:
                state_due = now + STATE_EVERY_S
                yield _event("now", self._shared_state(frames, number))
            elif frames:
                yield _event("frames", frames)
            if frames:
                time.sleep(PACE_S)

    @route(
        "GET",
        "/v1/now/picture",
        rights=ADMIN,
        query=PictureQuery,
        answer={JPEG: bytes},
        errors=(400, 404, 503),
        quiet=True,
    )
    def picture(self) -> Response:
        """Return the last frame of a camera, with its answer drawn on it; on a busy server, one of
        some seconds before. X-Frame-Number names it. Frames are kept only while somebody looks."""
        camera = read_options(PictureQuery, request).camera
        return self._pictures.get(camera)

    @route("GET", "/v1/settings", rights=ADMIN)
    def settings(self) -> SettingList:
        """Return the settings in force, and where each comes from."""
        return SettingList(tuple(settings_in_force(self._settings)))


def _event(name: str, value: object) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(value) + b"\n\n"
