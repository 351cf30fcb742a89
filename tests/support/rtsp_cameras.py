"""An RTSP camera for tests, and a wire to it that can fail."""

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np

SCRIPT = Path(__file__).with_name("rtsp_server.py")
SYSTEM_PYTHON = "/usr/bin/python3"
BITS = 32


def missing() -> str:
    """Why there can't be an RTSP camera on this machine; empty if there can."""
    code = "import gi; gi.require_version('GstRtspServer', '1.0')"
    with suppress(FileNotFoundError):
        if subprocess.run([SYSTEM_PYTHON, "-c", code], capture_output=True).returncode == 0:
            return ""
    return "needs Debian's gir1.2-gst-rtsp-server-1.0 and python3-gi"


def made_at(picture: bytes) -> float:
    """When the camera made a frame (time.monotonic()), as its stripes say. Fails if it is not
    whole."""
    pixels = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert pixels is not None
    height, width = pixels.shape
    stripe = width // BITS
    middles = np.arange(BITS) * stripe + stripe // 2
    bits = pixels[: height // 2 - 8, middles] > 128
    assert (bits == bits[0]).all()
    assert np.abs(pixels[height // 2 + 8 :].astype(int) - 128).max() < 32
    return int("".join("01"[int(bit)] for bit in bits[0]), 2) / 1000


@contextmanager
def rtsp_camera(
    width: int = 320, height: int = 240, rate: int = 10, codec: str = "h264"
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A camera at rtsp://127.0.0.1:PORT/line: its port and its process."""
    arguments = [str(each) for each in (width, height, rate, codec)]
    with subprocess.Popen(
        [SYSTEM_PYTHON, str(SCRIPT), *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline()), process
        finally:
            process.kill()


class Wire:
    """Passes bytes between a reader and the camera at the port `to`; `port` is the reader's end.

    held: nothing is passed on, and nothing is lost. spoil: random bytes go to the reader in place
    of the camera's.
    """

    def __init__(self, to: int = 0) -> None:
        self.to = to
        self.held, self.spoil = threading.Event(), threading.Event()
        self._free = threading.Condition()
        self._sockets: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break all connections off."""
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.held.clear()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                reader, _ = self._server.accept()
                self._sockets.append(reader)
                try:
                    camera = socket.create_connection(("127.0.0.1", self.to))
                except OSError:
                    reader.close()
                    continue
                self._sockets.append(camera)
                for ends in ((reader, camera), (camera, reader)):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        is_camera = source.getpeername()[1] == self.to
        with suppress(OSError):
            while data := source.recv(1 << 16):
                while is_camera and self.held.is_set():
                    with self._free:
                        self._free.wait(0.01)
                target.sendall(os.urandom(len(data)) if is_camera and self.spoil.is_set() else data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
