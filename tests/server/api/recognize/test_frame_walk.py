"""The walk of one frame through our files, from its body to its answer."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from images import encode, plain
from job_workers import await_that
from server_process import ROOT
from werkzeug.test import Client, EnvironBuilder

from server.app import create_app
from server.config.settings import Settings
from server.http.wsgi import Wsgi

SERVER = f"{ROOT / 'server'}/"
# Ten of them are the recognition itself, of a JPEG by a classifier.
FILES_MAX = 21


class Body(io.BytesIO):
    """A body that notes that it was read."""

    was_read = False

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.was_read = True
        return data


@contextmanager
def profiled(body: Body) -> Iterator[dict[str, int]]:
    """The files of ours whose functions are called in this thread, once `body` was read, with the
    number of calls."""
    calls: dict[str, int] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and body.was_read and name.startswith(SERVER):
            file = name.removeprefix(SERVER)
            calls[file] = calls.get(file, 0) + 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def test_frame_walks_through_few_files(colors: Path, tmp_path: Path) -> None:
    """A camera's second frame: the options of its first are remembered."""
    app = create_app(Settings(models=str(colors), data=str(tmp_path)))
    wsgi: Wsgi = app.wsgi_app
    client = Client(app.wsgi_app)
    await_that(lambda: client.get("/readyz").status_code == 200, "a loaded model")
    data = encode(plain((255, 0, 0)), "JPEG")
    assert client.post("/v1/recognize", data=data, content_type="image/jpeg").status_code == 200
    body = Body(data)
    environ = EnvironBuilder("/v1/recognize", method="POST", data=data).get_environ()
    environ |= {"wsgi.input": body, "CONTENT_TYPE": "image/jpeg", "REMOTE_ADDR": "127.0.0.1"}
    statuses: list[str] = []
    with profiled(body) as calls:
        wsgi(environ, lambda status, _headers: statuses.append(status))
    assert statuses == ["200 OK"]
    assert len(calls) <= FILES_MAX, sorted(calls)
