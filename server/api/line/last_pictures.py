"""The last frame of each camera with its answer drawn on it, drawn once for all who watch."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec
from flask import Response

from server.api.recognize.pictures import JPEG, Pictures
from server.engine import Engine
from server.errors import NotFoundError
from server.observe.recent import PICTURES_MAX, RecentFrames
from server.recognition.answers import FrameAnswered
from server.recognition.recognizer import Recognizer

# Seconds for which a drawing of a camera serves; consoles ask for a newer one once a second.
FRESH_S = 0.9
# While frames are worked on, all drawing rests for so many times the time that a drawing took: it
# takes less than a fortieth of one core from them.
REST = 40.0


class _Drawing(msgspec.Struct, frozen=True):
    """number: of the frame. at: when it was drawn, in seconds of the clock."""

    number: int
    at: float
    data: bytes
    headers: tuple[tuple[str, str], ...]


class LastPictures:
    """Draws the pictures of `recent` by the models of `engine`. clock: seconds that only go
    forward.

    `_lock` guards what follows it: `_drawings` by camera, the longest unasked first; `_busy`, the
    cameras of which one is being drawn; `_rest_until`, by the clock.
    """

    def __init__(
        self,
        engine: Engine,
        recent: RecentFrames,
        pictures: Pictures,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._recent, self._pictures = engine, recent, pictures
        self._clock = clock
        self._lock = threading.Lock()
        self._drawings: OrderedDict[str, _Drawing] = OrderedDict()
        self._busy: set[str] = set()
        self._rest_until = 0.0

    def get(self, camera: str) -> Response:
        """Return a picture of `camera`: of its last frame, or of one a moment before. The header
        X-Frame-Number names the frame, as `RecentFrame.number` does. Raises NotFoundError if there
        is none, and what `Pictures.place` and `Recognizer.drawn` raise."""
        last = self._recent.picture(camera)
        if last is None or last[1].data is None:
            raise NotFoundError(
                f"there is no picture of {camera or 'frames without a camera'} yet: the next frame"
                " is kept"
            )
        number, event = last
        with self._lock:
            drawing = self._drawings.get(camera)
            if drawing is not None and not self._is_due(camera, drawing, number):
                self._drawings.move_to_end(camera)
                return _response(drawing)
            self._busy.add(camera)
        try:
            return _response(self._draw(camera, number, event))
        finally:
            with self._lock:
                self._busy.discard(camera)

    def _is_due(self, camera: str, drawing: _Drawing, number: int) -> bool:
        """Return whether the frame `number` is to be drawn in place of an earlier `drawing`. Under
        `_lock`."""
        now = self._clock()
        return (
            drawing.number != number
            and camera not in self._busy
            and now - drawing.at >= FRESH_S
            and (now >= self._rest_until or self._engine.admission.busy == 0)
        )

    def _draw(self, camera: str, number: int, event: FrameAnswered) -> _Drawing:
        model = self._engine.store.served().get(event.answer.model)
        if not isinstance(model, Recognizer):
            raise NotFoundError(f"the model {event.answer.model} serves no longer")
        assert event.data is not None
        began = self._clock()
        with self._pictures.place():
            response = self._pictures.respond(
                model, event.data, event.answer, event.options, event.request_id
            )
        now = self._clock()
        headers = tuple((name, value) for name, value in response.headers if name[:2] == "X-")
        drawing = _Drawing(number, now, response.get_data(), headers)
        with self._lock:
            self._rest_until = max(self._rest_until, now + REST * (now - began))
            self._drawings[camera] = drawing
            self._drawings.move_to_end(camera)
            while len(self._drawings) > PICTURES_MAX:
                self._drawings.popitem(last=False)
        return drawing


def _response(drawing: _Drawing) -> Response:
    response = Response(drawing.data, content_type=JPEG)
    for name, value in drawing.headers:
        response.headers[name] = value
    response.headers["X-Frame-Number"] = str(drawing.number)
    response.headers["Cache-Control"] = "no-store"
    return response
