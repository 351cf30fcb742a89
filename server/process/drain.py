"""Stopping without losing a request: drains connections before the HTTP server closes.

A server that closes at once loses two kinds of requests: those whose connection the kernel has
accepted and the server has not, and those that arrive on a kept-alive connection at the moment it
is closed. So answers first ask their clients to leave, then no new connection is let in, and only
when those let in before have been taken over does the server close.
"""

import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from ctypes import addressof, create_string_buffer
from multiprocessing import parent_process
from typing import Any

from server.http.wsgi import Wsgi, context_of
from server.system.process import end_with_parent, own_sockets, seconds_silent

# The clients have left if no request came for QUIET_S, and nobody is connected who sent something
# within LEAVING_S; LEAVING_S is also how long they are given.
QUIET_S, LEAVING_S, STEP_S = 0.1, 1.0, 0.01
STOPPING = (signal.SIGTERM, signal.SIGINT)
# setsockopt's numbers from Linux's asm-generic/socket.h, absent from Python's socket module.
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
# struct sock_filter {u16 code; u8 jt, jf; u32 k}, four of them: load byte 13 of the TCP header, its
# flags (RFC 9293, 3.1); if SYN, 0x02, is set, keep 0 bytes of the packet, else all of it.
DROP_SYN = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),
        (0x45, 0, 1, 0x02),
        (0x06, 0, 0, 0),
        (0x06, 0, 0, 1 << 31),
    )
)
# tcpi_unacked in struct tcp_info of linux/tcp.h; of a listening socket, the connections that wait
# to be accepted.
TCPI_UNACKED = 24

Start = Callable[..., Any]


class Draining:
    """A WSGI application around `app` that asks clients to leave once `leaving` is set.

    `last` is when the newest request arrived, in seconds of time.monotonic().
    """

    def __init__(self, app: Wsgi) -> None:
        self._app = app
        self.leaving = threading.Event()
        self.last = 0.0

    def __call__(self, environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        self.last = time.monotonic()
        context_of(environ).stopping = self.leaving

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            if self.leaving.is_set():
                headers = [*headers, ("Connection", "close")]
            return start_response(status, headers, *error)

        return self._app(environ, start)

    def drain(self, port: int) -> None:
        """Return when the server may close: clients were asked to leave, no connection is let in
        any more, and all that were let in have been taken over."""
        self.leaving.set()
        _until(lambda: self._quiet(port))
        listeners = listening_sockets(port)
        for listener in listeners:
            drop_new_connections(listener)
        _until(lambda: not any(map(not_yet_accepted, listeners)))
        # Connections that were taken over just now get the time to send their requests.
        _until(lambda: self._quiet(port))
        for listener in listeners:
            listener.close()

    def _quiet(self, port: int) -> bool:
        return time.monotonic() - self.last >= QUIET_S and not in_use(port)


def _until(done: Callable[[], bool]) -> None:
    give_up = time.monotonic() + LEAVING_S
    while not done() and time.monotonic() < give_up:
        time.sleep(STEP_S)


def in_use(port: int) -> bool:
    """Return whether a client that is connected to `port` came, or sent something, within
    LEAVING_S."""
    for _, sock in own_sockets():
        if seconds_silent(sock) < LEAVING_S:
            with suppress(OSError):
                if sock.getsockname()[1] == port:
                    return True
    return False


def listening_sockets(port: int) -> list[socket.socket]:
    """Return this process's sockets that listen on `port`, as duplicates to be closed by the
    caller."""
    listeners = []
    for _, candidate in own_sockets():
        with suppress(OSError):
            listens = candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if listens and candidate.getsockname()[1] == port:
                # Not candidate.dup(), which makes the one socket behind both wait in accept().
                listeners.append(socket.socket(fileno=os.dup(candidate.fileno())))
    return listeners


def drop_new_connections(listener: socket.socket) -> None:
    """Make the kernel drop what would open a new connection to `listener` (socket(7)).

    Connections that it has let in already stay as they are. A kernel built without socket filters
    goes on letting new ones in.
    """
    code = create_string_buffer(DROP_SYN, len(DROP_SYN))
    # struct sock_fprog {unsigned short len; struct sock_filter *filter;}
    program = struct.pack("HP", len(DROP_SYN) // 8, addressof(code))
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def accept_again(listener: socket.socket, backlog: int) -> None:
    """Make `listener` let new connections in, also if a worker that was about to stop had closed
    it to them. Raises OSError."""
    with suppress(OSError):  # there is no filter
        listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    listener.listen(backlog)


def not_yet_accepted(listener: socket.socket) -> int:
    """Return how many connections the kernel has let in and the server has not yet taken over; 0 if
    the kernel, or what emulates it, does not say."""
    try:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCPI_UNACKED + 4)
        return int(struct.unpack_from("I", info, TCPI_UNACKED)[0])
    except (OSError, struct.error):
        return 0


def stop_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent ends (prctl(2)), since a worker
    that nobody watches would keep the port from its successor. One whose parent has ended already,
    which the kernel does not report, exits."""
    end_with_parent(signal.SIGTERM)
    parent = parent_process()
    if parent is not None and os.getppid() != parent.pid:
        sys.exit("the server that started this worker has ended")
