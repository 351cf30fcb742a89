"""Open consoles, as the tab Now is one: each reads the events, fetches the picture of a camera once
a second if there is a newer frame, and asks now and then if the server is ready.

All are read by one thread over epoll and raw sockets, so that they cost the machine little.
"""

import json
import selectors
import socket
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

# Seconds, as server/console/now.js and app.js have them.
PICTURE_EVERY_S, READY_EVERY_S = 1.0, 5.0
STEP_S = 0.1


@dataclass
class _Connection:
    """A kept connection, and the bytes of its answer so far."""

    socket: socket.socket
    buffer: bytearray = field(default_factory=bytearray)
    waits: bool = False


@dataclass
class _Console:
    """One console. frame: the newest that was heard of; shown: when its picture was fetched."""

    events: _Connection
    others: _Connection
    newer: bool = False
    fetched: float = 0.0
    ready_asked: float = 0.0


class Consoles:
    """`count` consoles of the server at `url` that watch `camera`, until the end of the `with`
    block. `events` and `pictures` count what came."""

    def __init__(self, url: str, count: int, camera: str) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname or "", parts.port or 80
        self._camera = camera
        self._selector = selectors.DefaultSelector()
        self._consoles = [self._open() for _ in range(count)]
        self.events = self.pictures = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _connect(self) -> _Connection:
        made = _Connection(socket.create_connection(self._address, timeout=30))
        made.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def _open(self) -> _Console:
        console = _Console(self._connect(), self._connect())
        for connection in (console.events, console.others):
            self._selector.register(connection.socket, selectors.EVENT_READ, (console, connection))
        self._ask(console.events, "/v1/events")
        return console

    def _ask(self, connection: _Connection, path: str) -> None:
        host = f"{self._address[0]}:{self._address[1]}"
        head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nSec-Fetch-Site: same-origin\r\n\r\n"
        connection.socket.sendall(head.encode())
        connection.waits = True

    def _run(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(STEP_S):
                console, connection = key.data
                data = connection.socket.recv(1 << 18)
                if connection is console.events:
                    self._hear(console, data)
                else:
                    self._take(connection, data)
            for console in self._consoles:
                self._fetch(console)

    def _hear(self, console: _Console, data: bytes) -> None:
        """Count the events in a piece of the stream; connect again if it has ended."""
        heard = data.count(b"\nevent: ") + data.startswith(b"event: ")
        self.events += heard
        console.newer |= b'"request_id"' in data
        if data.endswith(b"0\r\n\r\n"):
            self._ask(console.events, "/v1/events")
        elif not data:
            raise ConnectionError("the server closed a stream of events")

    def _take(self, connection: _Connection, data: bytes) -> None:
        """Take a piece of an answer whose length its head says."""
        if not data:
            raise ConnectionError("the server closed a console's connection")
        connection.buffer += data
        head, end, body = connection.buffer.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) >= length:
            self.pictures += b"image/jpeg" in head
            connection.buffer.clear()
            connection.waits = False

    def _fetch(self, console: _Console) -> None:
        """Ask for what is due, if no answer is awaited."""
        now = time.monotonic()
        if console.others.waits:
            return
        if now - console.ready_asked >= READY_EVERY_S:
            console.ready_asked = now
            self._ask(console.others, "/readyz")
        elif console.newer and now - console.fetched >= PICTURE_EVERY_S:
            console.newer, console.fetched = False, now
            self._ask(console.others, f"/v1/now/picture?camera={self._camera}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        for console in self._consoles:
            for connection in (console.events, console.others):
                connection.socket.close()
        self._selector.close()


def main() -> None:
    """`URL COUNT CAMERA` in the arguments: open consoles until standard input ends, then print the
    counts as JSON."""
    import sys

    url, count, camera = sys.argv[1:]
    with Consoles(url, int(count), camera) as consoles:
        print("open", flush=True)
        sys.stdin.read()
    print(json.dumps({"events": consoles.events, "pictures": consoles.pictures}))


if __name__ == "__main__":
    main()
