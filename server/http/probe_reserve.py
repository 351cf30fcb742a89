"""Keeps threads for probes: no other request may have the last ones.

`server.config.thread_budget` says how many there are.
"""

import io
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from server.errors import OverloadedError

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

# In a WSGI environment, why the request is refused before it is looked at.
REFUSED = "lineside.refused"


class Reserve:
    """WSGI middleware around `app` that has at most `most` requests there at the same time, those
    of `probes` not counted: the paths that machines ask to learn how this one does. Each further
    one goes to `refusing`, with its error as REFUSED and without its body, and its connection is
    closed.

    `_lock` guards `_inside`, the requests there.
    """

    def __init__(self, app: Wsgi, refusing: Wsgi, most: int, probes: Collection[str]) -> None:
        self._app = app
        self._refusing = refusing
        self._most = most
        self._probes = probes
        self._lock = threading.Lock()
        self._inside = 0

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        if environ["PATH_INFO"] in self._probes and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self._app(environ, start_response)
        with self._lock:
            free = self._inside < self._most
            self._inside += free
        if not free:
            return self._refuse(environ, start_response)
        answer = None
        try:
            answer = self._app(environ, start_response)
        finally:
            if answer is None or isinstance(answer, list):
                self._leave()
        return answer if isinstance(answer, list) else _Answer(answer, self._leave)

    def _leave(self) -> None:
        with self._lock:
            self._inside -= 1

    def _refuse(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        environ[REFUSED] = OverloadedError(
            f"{self._most} requests are being answered, which is the most", retry_after=1
        )
        return self._refusing(*without_body(environ, start_response))


class _Answer:
    """The pieces of an answer, with `left` called once when it has ended, however it does."""

    def __init__(self, pieces: Iterable[bytes], left: Callable[[], None]) -> None:
        self._pieces, self._left = pieces, left
        self._open = True

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces)

    def __del__(self) -> None:
        # Whoever forgets the answer without closing it gives its place back all the same.
        self.close()

    def close(self) -> None:
        """As a WSGI server calls it at the answer's end (PEP 3333)."""
        if not self._open:
            return
        self._open = False
        try:
            if close := getattr(self._pieces, "close", None):
                close()
        finally:
            self._left()


def without_body(
    environ: dict[str, Any], start_response: Callable[..., Any]
) -> tuple[dict[str, Any], Callable[..., Any]]:
    """A request as if it had no body, whose connection is closed after its answer, since the body
    may still come on it."""
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(), "0"

    def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
        return start_response(status, [*headers, ("Connection", "close")], *error)

    return environ, start
