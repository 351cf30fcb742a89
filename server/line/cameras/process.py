"""A reader process as the server has it: started, asked for frames, ended."""

import json
import math
import os
import selectors
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from server.config.cameras import CameraTable
from server.line.cameras.reader import ENDED, ERROR, FRAME, HEADER
from server.line.cameras.sources import FRAME_BYTES_MAX, Shot, SourceEndedError, SourceError

ROOT = Path(__file__).parents[3]
# Seconds that a process has to end by itself.
CLOSE_TIMEOUT_S = 2.0


class ReaderProcess:
    """Reads the camera of `table`, in a process that ends with this context, and with the thread
    that made it (prctl(2), PR_SET_PDEATHSIG)."""

    def __init__(self, table: CameraTable) -> None:
        # The server's secrets are in its environment, and the camera's go by standard input, since
        # arguments and environment can be read in /proc.
        environ = {k: v for k, v in os.environ.items() if not k.startswith("LINESIDE_")}
        # By its path, since the paths of cameras are relative to the server's folder.
        environ["PYTHONPATH"] = str(ROOT)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "server.line.cameras.reader"],
            bufsize=0,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin = self._process.stdin
        self._stdout = self._process.stdout
        # When the camera last gave something (time.monotonic()); -inf if it never did.
        self.seen = -math.inf
        self._send(json.dumps(msgspec.to_builtins(table)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(BrokenPipeError):
            self._stdin.close()
        self._stdout.close()
        try:
            # It ends with its input, and closes the camera's session, unless a read hangs.
            self._process.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def is_there(self, timeout_s: float) -> None:
        """Ask for no frame. Raises SourceError if the camera can't be read, or if the process does
        not answer within `timeout_s`."""
        self.take(math.inf, 0.0, timeout_s)

    def take(self, after: float, wait_s: float, timeout_s: float) -> Shot | None:
        """Return the newest frame captured after `after` (seconds of time.monotonic(); -inf, if the
        camera is triggered by motion: the next with which a movement has settled); None if
        none comes within `wait_s`. Raises SourceError as `is_there` does, SourceEndedError if there
        will be no more."""
        until = time.monotonic() + wait_s + timeout_s
        self._send(f"{after} {wait_s}")
        kind, at, earliest, *lengths = HEADER.unpack(self._receive(HEADER.size, until))
        if max(lengths) > FRAME_BYTES_MAX:
            raise SourceError("a frame is larger than a reader may send")
        named, data, whole = (self._receive(length, until) for length in lengths)
        name = named.decode("utf-8", "replace")
        if kind in (ERROR, ENDED):
            raise (SourceEndedError if kind == ENDED else SourceError)(data.decode())
        # A frame may have waited in the process.
        self.seen = max(self.seen, at)
        return Shot(at, data, earliest, name, whole) if kind == FRAME else None

    def _send(self, line: str) -> None:
        # If it has ended, perhaps an answer says why.
        with suppress(BrokenPipeError):
            self._stdin.write(line.encode() + b"\n")

    def _receive(self, length: int, until: float) -> bytes:
        data = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while len(data) < length:
                if not selector.select(max(0.0, until - time.monotonic())):
                    raise SourceError("the camera's reader hangs")
                piece = self._stdout.read(length - len(data))
                if not piece:
                    raise SourceError("the camera's reader has ended")
                data += piece
        return bytes(data)
