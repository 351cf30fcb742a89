"""Cameras that the server reads, for tests: an HTTP server that can misbehave, and a video file."""

import base64
import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np

USER, PASSWORD = "viewer", "c4mera-p@ss:word"
REALM, NONCE = "camera", "5f2d"


def _md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


class HttpCamera(ThreadingHTTPServer):
    """Answers /basic and /digest with `picture`, /stream with an endless stream of it, and /moving
    with one of `moving`."""

    daemon_threads = True

    def __init__(self, picture: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.picture = picture
        self.moving = picture
        self.ended = threading.Event()
        self.port = self.server_port
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Lets go of all that hangs, and of the port."""
        self.ended.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: HttpCamera

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "")
        if self.path == "/digest":
            allowed = self._is_digest(given)
            challenge = f'Digest realm="{REALM}", nonce="{NONCE}", qop="auth", algorithm=MD5'
        else:
            token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            allowed, challenge = given == f"Basic {token}", f'Basic realm="{REALM}"'
        if not allowed:
            self.send_response(401)
            self.send_header("WWW-Authenticate", challenge)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path in ("/stream", "/moving"):
            self._stream()
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.picture)))
            self.end_headers()
            self.wfile.write(self.server.picture)

    def _is_digest(self, given: str) -> bool:
        fields = dict(re.findall(r'(\w+)="?([^",]+)"?', given))
        if not given.startswith("Digest ") or fields.get("username") != USER:
            return False
        secret, request = _md5(f"{USER}:{REALM}:{PASSWORD}"), _md5(f"GET:{fields['uri']}")
        middle = ":".join((NONCE, fields["nc"], fields["cnonce"], "auth"))
        return str(fields["response"]) == _md5(f"{secret}:{middle}:{request}")

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        self.end_headers()
        with suppress(ConnectionError):
            while not self.server.ended.wait(0.05):
                picture = self.server.moving if self.path == "/moving" else self.server.picture
                head = f"--next\r\nContent-Length: {len(picture)}\r\n\r\n"
                self.wfile.write(head.encode() + picture + b"\r\n")

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextmanager
def http_camera(picture: bytes) -> Iterator[HttpCamera]:
    camera = HttpCamera(picture)
    try:
        yield camera
    finally:
        camera.close()


def write_video(path: Path, colors: list[tuple[int, int, int]]) -> None:
    """Writes a video of one frame for each of `colors` (RGB)."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    assert writer.isOpened()
    for color in colors:
        writer.write(np.full((64, 64, 3), color[::-1], np.uint8))
    writer.release()
