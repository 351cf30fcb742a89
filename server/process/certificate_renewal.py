"""Certificates read anew when their files change, without a lost request.

The HTTP server reads its certificate once. So a second worker with the new one is started on the
same listening socket; the first gets no more connections, its answers ask their clients to close
theirs, and it is stopped when they have.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Protocol

from server.errors import SettingsError
from server.process.certificates import CertificateFiles
from server.process.drain import LEAVING_S
from server.system.process import own_sockets, seconds_silent

logger = logging.getLogger(__name__)

# Seconds between two looks at the files, and the most that clients have to leave.
LOOK_S, LEAVING_MAX_S, STEP_S = 1.0, 60.0, 0.05


class HttpWorker(Protocol):
    """A worker of the HTTP server; once `closing` is set its answers ask clients to leave."""

    closing: threading.Event

    def stop(self) -> None:
        """Return when the requests in hand are answered."""


StartWorker = Callable[[socket.socket, dict[str, Any]], HttpWorker]


class CertificateRenewal:
    """The HTTP server's worker with the newest certificate, and the thread that replaces it."""

    def __init__(self, sock: socket.socket, files: CertificateFiles, start: StartWorker) -> None:
        """sock: listens; it is kept open. start: starts a worker on a duplicate of it.

        Raises SettingsError if the files can't be used.
        """
        self._sock, self._files, self._start = sock, files, start
        self._state = self._tried = files.state()
        files.check()
        self._worker = start(_duplicate(sock), files.arguments())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="certificates", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Return when the requests in hand are answered."""
        self._ended.set()
        self._thread.join()
        self._worker.stop()
        self._sock.close()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_S):
            try:
                self._look()
            except Exception:
                # The certificate in force goes on; the next change is tried again.
                logger.exception("certificate could not be replaced")

    def _look(self) -> None:
        """Take the files into use if they have changed, and are the same at two looks: certificate
        and key are seldom written at once."""
        try:
            state = self._files.state()
        except OSError:
            return  # it is being replaced
        before, self._tried = self._tried, state
        if state == self._state or state != before:
            return
        fields = {"certificate": str(self._files.certificate)}
        try:
            self._files.check()
        except SettingsError as error:
            self._state = state
            fields["reason"] = str(error)
            logger.error("new certificate refused; the old one serves", extra={"fields": fields})
            return
        self._replace()
        self._state = state
        logger.info("certificate replaced", extra={"fields": fields})

    def _replace(self) -> None:
        """Start a worker with the new certificate, and stop the one before without loss."""
        before = _open_sockets(self._sock.getsockname()[1])
        worker = self._start(_duplicate(self._sock), self._files.arguments())
        old, self._worker = self._worker, worker
        for number, inode in before.items():
            if inode is LISTENS and number != self._sock.fileno():
                _stop_accepting(number)
        old.closing.set()
        connections = {inode for inode in before.values() if inode is not LISTENS}
        give_up = time.monotonic() + LEAVING_MAX_S
        while _in_use(connections) and time.monotonic() < give_up:
            if self._ended.wait(STEP_S):
                break
        # A client that does not read its answers would hold up the certificates after this one.
        threading.Thread(target=old.stop, name="old-certificate", daemon=True).start()


# In place of an inode, for a socket that listens.
LISTENS = None


def _duplicate(sock: socket.socket) -> socket.socket:
    # Not sock.dup(), which makes the one socket behind both wait in accept().
    return socket.socket(fileno=os.dup(sock.fileno()))


def _open_sockets(port: int) -> dict[int, int | None]:
    """Return this process's TCP sockets at `port` by descriptor: the inode of a connection, LISTENS
    for a listening socket."""
    sockets: dict[int, int | None] = {}
    for number, sock in own_sockets():
        with suppress(OSError):
            if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getsockname()[1] == port:
                listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                sockets[number] = LISTENS if listens else os.fstat(number).st_ino
    return sockets


def _stop_accepting(number: int) -> None:
    """Put a socket to which nobody connects in place of the listening one with the descriptor
    `number`. The connections that wait stay with the duplicates of the listening one."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        nobody.listen(0)
        nobody.setblocking(False)
        os.dup2(nobody.fileno(), number, inheritable=False)


def _in_use(connections: Collection[int | None]) -> bool:
    """Return whether something came on one of `connections` within LEAVING_S."""
    for number, sock in own_sockets():
        with suppress(OSError):
            if os.fstat(number).st_ino in connections and seconds_silent(sock) < LEAVING_S:
                return True
    return False
