"""Cameras that the server reads, which vanish and come back."""

import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, camera: "SnapshotCamera", port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.camera = camera


class _Handler(BaseHTTPRequestHandler):
    server: _Listener

    def do_GET(self) -> None:
        picture = self.server.camera.picture
        with suppress(ConnectionError):  # the reader was killed while the camera hung
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(picture)))
            self.end_headers()
            self.server.camera.back.wait()
            self.wfile.write(picture)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


class SnapshotCamera:
    """Answers each GET with `picture`, a JPEG. back: cleared while it sends its header only."""

    def __init__(self, picture: bytes, port: int) -> None:
        self.picture, self.port = picture, port
        self.back = threading.Event()
        self._listener: _Listener | None = None
        self.come_back()

    @property
    def url(self) -> str:
        """The address of its picture."""
        return f"http://127.0.0.1:{self.port}/snapshot.jpg"

    def vanish(self, *, hang: bool) -> None:
        """Send no pictures any more (hang), or refuse connections."""
        if hang:
            self.back.clear()
        else:
            self.close()

    def come_back(self) -> None:
        """Answer again."""
        self.back.set()
        if self._listener is None:
            self._listener = _Listener(self, self.port)
            threading.Thread(target=self._listener.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Let go of the port."""
        self.back.set()
        if self._listener is not None:
            self._listener.shutdown()
            self._listener.server_close()
            self._listener = None
