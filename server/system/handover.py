"""Hands what outlives a worker to its successor: descriptors, and the crashes so far."""

import os
import socket
import sys
from contextlib import suppress
from typing import NamedTuple

# The name of the listening socket among the descriptors.
PORT = "port"
# Crashes that are remembered with time and signal; older ones are only counted.
CRASHES_MAX = 20


class Crash(NamedTuple):
    """A worker that a signal ended: when, in Unix seconds, by which signal, and its process id."""

    at: float
    signal: str
    pid: int


class Handover:
    """Holds what outlives a worker: descriptors that it left for its successor, and the crashes so
    far.

    A worker sends its descriptors through a socket pair and never waits; the supervisor takes them
    up when the worker has ended, and the next worker inherits them by the fork.
    """

    def __init__(self) -> None:
        self._take, self._send = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._descriptors: dict[str, int] = {}
        self.crashes: list[Crash] = []
        self.count = 0

    def leave(self, name: str, descriptor: int) -> None:
        """Called by a worker: its successor gets a duplicate of `descriptor` under `name`, in place
        of one that was left before. Raises OSError."""
        socket.send_fds(self._send, [name.encode()], [descriptor])

    def inherited(self, name: str) -> int | None:
        """Returns the descriptor that a worker before this one left under `name`, or None."""
        return self._descriptors.get(name)

    def collect(self) -> None:
        """Called by the supervisor: takes up what the worker left; nothing once it is closed."""
        if self._take.fileno() < 0:
            return
        # Not socket.recv_fds, which ignores its flags.
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        with suppress(BlockingIOError):
            while True:
                name, control, _, _ = self._take.recvmsg(64, socket.CMSG_LEN(4), flags)
                for _, _, data in control:
                    self._close(name.decode())
                    self._descriptors[name.decode()] = int.from_bytes(data, sys.byteorder)

    def close(self) -> None:
        """Called by the supervisor when the server stops: closes all descriptors. The worker
        has both ends of the pair too, so that it can go on sending."""
        self.collect()
        for name in list(self._descriptors):
            self._close(name)
        self._take.close()
        self._send.close()

    def _close(self, name: str) -> None:
        if name in self._descriptors:
            os.close(self._descriptors.pop(name))

    def crashed(self, crash: Crash) -> None:
        """Called by the supervisor: counts and remembers the end of a worker."""
        self.count += 1
        self.crashes = [*self.crashes, crash][-CRASHES_MAX:]

    @property
    def holds_port(self) -> bool:
        """True if a worker has listened, so that clients wait in the port's queue."""
        return PORT in self._descriptors
