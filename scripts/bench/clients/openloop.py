"""Open-loop load: requests leave at their due times, whether or not earlier ones were answered.

One thread over epoll and raw sockets with prepared bytes, so that a thousand frames a second cost
the machine under test little.
"""

import heapq
import select
import socket
import time
from collections import deque
from dataclasses import dataclass, field

from bench.clients import answers

# An answer that has not come so long after the last request left is counted as lost.
PATIENCE = 5.0


@dataclass(frozen=True)
class Stream:
    """Requests (`wire`, the bytes of one) that leave `rate` times a second, evenly."""

    name: str
    wire: bytes
    rate: float


@dataclass
class Outcome:
    """One request: seconds after the start when it was due, sent (first byte) and answered whole
    (None: never), and the answer's status (0: none) and body."""

    stream: str
    due: float
    sent: float | None = None
    answered: float | None = None
    status: int = 0
    body: bytes = b""

    @property
    def milliseconds(self) -> float | None:
        """From the first byte sent to the last received."""
        if self.answered is None or self.sent is None:
            return None
        return (self.answered - self.sent) * 1000


@dataclass
class Connection:
    """A non-blocking connection, the bytes it has still to send, and whose answer it awaits."""

    socket: socket.socket
    left: memoryview = field(default_factory=lambda: memoryview(b""))
    blocked: bool = False
    outcome: Outcome | None = None
    buffer: bytearray = field(default_factory=bytearray)


class Driver:
    """Sends `streams` to `address` for `seconds` over at most `most` kept connections.

    Requests that find none free leave late, in turn; `Outcome.sent` tells how late.
    """

    def __init__(
        self, address: tuple[str, int], streams: list[Stream], seconds: float, most: int
    ) -> None:
        self._address, self._most = address, most
        self._wires = {stream.name: stream.wire for stream in streams}
        due = (
            [(number / stream.rate, stream.name) for number in range(int(stream.rate * seconds))]
            for stream in streams
        )
        self.outcomes = [Outcome(name, when) for when, name in heapq.merge(*due)]
        self._due = deque(self.outcomes)
        self._poll, self._open = select.epoll(), dict[int, Connection]()
        self._idle: list[Connection] = []
        self._start = 0.0

    def _now(self) -> float:
        return time.perf_counter() - self._start

    def _connect(self) -> Connection:
        plug = socket.create_connection(self._address)
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plug.setblocking(False)
        connection = self._open[plug.fileno()] = Connection(plug)
        self._poll.register(plug, select.EPOLLIN)
        return connection

    def _send(self, connection: Connection) -> None:
        """Hands the kernel what it takes; asks to be told when it takes more."""
        try:
            sent = connection.socket.send(connection.left)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(connection)
            return
        connection.left = connection.left[sent:]
        if bool(connection.left) != connection.blocked:
            connection.blocked = bool(connection.left)
            more = select.EPOLLOUT if connection.blocked else 0
            self._poll.modify(connection.socket, select.EPOLLIN | more)

    def _begin(self) -> None:
        """Sends what is due, as far as there are connections for it."""
        while self._due and self._due[0].due <= self._now():
            if not self._idle and len(self._open) >= self._most:
                return
            connection = self._idle.pop() if self._idle else self._connect()
            outcome = connection.outcome = self._due.popleft()
            connection.left = memoryview(self._wires[outcome.stream])
            outcome.sent = self._now()
            self._send(connection)

    def _receive(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(answers.CHUNK)
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        connection.buffer += data
        answer, outcome = answers.take(connection.buffer), connection.outcome
        if answer is None or outcome is None:
            return
        outcome.answered, outcome.status, outcome.body = self._now(), answer.status, answer.body
        connection.outcome = None
        if connection.left:  # answered before the body was all sent: of no further use
            self._drop(connection)
        else:
            self._idle.append(connection)

    def _drop(self, connection: Connection) -> None:
        """Forgets a connection; the request on it, if any, stays without an answer."""
        del self._open[connection.socket.fileno()]
        if connection in self._idle:
            self._idle.remove(connection)
        connection.socket.close()

    def run(self) -> list[Outcome]:
        """Sends it all; returns every request's outcome once the last is answered or lost."""
        self._start = time.perf_counter()
        until = self.outcomes[-1].due + PATIENCE if self.outcomes else 0.0
        while (self._due or len(self._idle) < len(self._open)) and self._now() < until:
            self._begin()
            # Full connections: nothing can leave before an answer comes.
            free = self._idle or len(self._open) < self._most
            wait = self._due[0].due - self._now() if self._due and free else 0.05
            for number, event in self._poll.poll(max(0.0, min(wait, 0.05))):
                if event & select.EPOLLOUT and number in self._open:
                    self._send(self._open[number])
                if event & ~select.EPOLLOUT and number in self._open:
                    self._receive(self._open[number])
        for connection in list(self._open.values()):
            self._drop(connection)
        self._poll.close()
        return self.outcomes
