"""Answers as pictures: the frame with its answer drawn on it, for who asks for that."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import BoundedSemaphore

from flask import Response
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from server.config.thread_budget import DRAWING_REQUESTS_MAX
from server.errors import OverloadedError
from server.http.routes import JSON
from server.recognition.answers import Answer, Options
from server.recognition.recognizer import Recognizer

JPEG, HTML = "image/jpeg", "text/html"


def wants_picture(render: bool | None, accept: str) -> bool:
    """Return whether a caller asks for a picture: by `render` if that was sent, else by the header
    Accept (RFC 9110, 12.5.1), if that names image/jpeg and prefers it to JSON.

    `*/*` and `image/*` name nothing. A list with text/html is a browser's own, not its user's wish.
    """
    if render is not None:
        return render
    if JPEG not in accept.lower():
        return False
    types = parse_accept_header(accept, MIMEAccept)
    named = {name.partition(";")[0].strip().lower() for name, _ in types}
    return JPEG in named and HTML not in named and types.quality(JPEG) > types.quality(JSON)


class Pictures:
    """Draws answers in one thread of its own: a frame of 12 million pixels takes 100 MB meanwhile,
    and OpenCV keeps the memory of its font for each thread that draws."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "drawing")
        self._places = BoundedSemaphore(DRAWING_REQUESTS_MAX)
        self.close = self._thread.shutdown

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places for requests that want a picture. Raises OverloadedError if all
        are taken."""
        if not self._places.acquire(blocking=False):
            raise OverloadedError(
                f"{DRAWING_REQUESTS_MAX} pictures are being drawn, which is the most: ask for JSON,"
                " or later",
                retry_after=1,
            )
        try:
            yield
        finally:
            self._places.release()

    def respond(
        self, recognizer: Recognizer, data: bytes, answer: Answer, options: Options, request_id: str
    ) -> Response:
        """Return the picture of an answer. Its headers say what the JSON's fields of these names
        do. The caller holds a `place`. Raises what `Recognizer.drawn` raises."""
        drawing = self._thread.submit(recognizer.drawn, data, answer, options, request_id)
        response = Response(drawing.result(), content_type=JPEG)
        response.headers["X-Model"] = f"{answer.model}/{answer.version}"
        if answer.verdict is not None:
            response.headers["X-Verdict"] = answer.verdict
            response.headers["X-Verdict-Reason"] = answer.verdict_reason or ""
        return response
