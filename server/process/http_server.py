"""Granian in front of the application: one worker with threads, in this process."""

import logging
import os
import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from granian.constants import HTTPModes, Interfaces, RuntimeModes
from granian.log import LogLevels
from granian.net import SocketHolder
from granian.server import mp
from granian.wsgi import ResponseIterWrap

from server import __version__
from server.config.settings import Settings
from server.config.thread_budget import threads
from server.errors import StartError
from server.http.protocol import FEATURES, PROTOCOL
from server.process.drain import Wsgi, accept_again, drain_before_stop
from server.store.data_lock import lock_data
from server.system.handover import PORT, Handover

logger = logging.getLogger(__name__)

# Granian's back-pressure counts open connections, idle ones too; cameras keep theirs open, and
# whoever opens this many keeps all others out until it ends those that are idle.
MAX_CONNECTIONS, BACKLOG = 4096, 1024
# File descriptors beside those of connections.
OTHER_FILES = 512
# What the environment of every request has beside what Granian tells of it (PEP 3333).
ALWAYS: dict[str, Any] = {
    "SCRIPT_NAME": "",
    "SERVER_SOFTWARE": "Granian",
    "wsgi.version": (1, 0),
    "wsgi.errors": sys.stderr,
    "wsgi.multithread": True,
    "wsgi.multiprocess": False,
    "wsgi.run_once": False,
    # Not of the standard: a body ends by itself, which Werkzeug has to be told.
    "wsgi.input_terminated": True,
}


def listening_socket(host: str, port: int, handover: Handover | None = None) -> socket.socket:
    """What listens on `host`:`port`, so that frames wait while the rest starts, and a second server
    is refused at once: with sockets of Granian's own both would get the port, and each a part of
    the frames.

    With `handover`, the socket outlives this worker: what a worker before this one left there is
    taken if it has this address, and else a new one is left. Connections that came in between wait
    in its queue. Raises StartError where the port can't be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        if sock := _inherited_socket(address, handover):
            return sock
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Connections take this over.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise StartError(f"can't listen on {host}:{port}: {reason}") from None
    if handover:
        handover.leave(PORT, sock.fileno())
    return sock


def _inherited_socket(address: Any, handover: Handover | None) -> socket.socket | None:
    """The listening socket that a worker before this one left, if it is bound to `address`."""
    number = handover.inherited(PORT) if handover else None
    if number is None:
        return None
    # A duplicate, since the HTTP server closes its own.
    sock = socket.socket(fileno=os.dup(number))
    if sock.getsockname()[:2] != tuple(address[:2]):
        sock.close()
        return None
    accept_again(sock, BACKLOG)
    return sock


def most_connections() -> int:
    """How many connections may be open at once, with as many files as this process may open."""
    wanted, (soft, hard) = MAX_CONNECTIONS + OTHER_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(soft - OTHER_FILES, soft // 2)
    return MAX_CONNECTIONS


def wsgi_adapter(callback: Wsgi, scope_opts: dict[str, Any], access_log_fmt: Any = None) -> Any:
    """What Granian calls with each request, to have it answered by the WSGI application `callback`:
    a function of what answers, which the environment has as PROTOCOL, and of what is known of the
    request.

    In place of Granian's own, which copies the process's environment for each request.
    """

    def call(protocol: Any, scope: dict[str, Any]) -> int:
        environ = {**ALWAYS, **scope, PROTOCOL: protocol}
        said: list[tuple[int, list[tuple[str, str]]]] = []

        def start_response(status: str, headers: list[tuple[str, str]], _: Any = None) -> None:
            said.append((int(status.split(" ", 1)[0]), headers))

        body = callback(environ, start_response)
        status, headers = said[-1]
        if isinstance(body, list):
            protocol.response_bytes(status, headers, b"".join(body))
        else:
            protocol.response_iter(status, headers, ResponseIterWrap(body))
        return status

    return call


def run(
    settings: Settings,
    make_app: Callable[[Settings], Any],
    slots: int,
    handover: Handover | None = None,
) -> None:
    """Serves `make_app(settings)` until SIGTERM or SIGINT, then lets frames in hand finish; where
    they need longer than `stop_timeout`, SIGALRM ends the process.

    handover: what this worker leaves to the one that replaces it if it dies. Granian's own parent
    process is left out, since it takes 20 MB only to watch: `supervise` does that. Raises
    StartError where the address can't be had, or where another server uses the folder `data`.
    """
    lock = lock_data(Path(settings.data), handover)
    sock = listening_socket(settings.host, settings.port, handover)
    address = sock.getsockname()[0]
    mp._wsgi_call_wrap = wsgi_adapter
    server = mp.MPServer(
        "server.app:create_app",
        address=address,
        port=settings.port,
        interface=Interfaces.WSGI,
        runtime_mode=RuntimeModes.mt,
        workers=1,
        blocking_threads=threads(slots, settings.max_waiting),
        backpressure=most_connections(),
        http=HTTPModes.http1,
        websockets=False,
        backlog=BACKLOG,
        log_level=LogLevels.error,
        log_access=False,
    )
    holder: Any = SocketHolder
    server._shd, server._sso = holder(sock.detach(), False, BACKLOG), None

    def load() -> Wsgi:
        features: dict[str, object] = {}

        def make() -> Any:
            app = make_app(settings)
            features.update(getattr(app, "extensions", {}).get(FEATURES, {}))
            return app

        app = drain_before_stop(make, settings.port, settings.stop_timeout)
        url = f"http://{f'[{address}]' if ':' in address else address}:{settings.port}"
        if lock.fault:
            fields = {"data": settings.data, "reason": lock.fault}
            logger.warning("data folder can't be locked", extra={"fields": fields})
        _log("listening", url=url, version=__version__, **features)
        return app

    server._spawn_worker(0, server._spawn_wsgi_worker, load).inner.run()
    _log("stopped")


def _log(event: str, **fields: object) -> None:
    logger.info(event, extra={"fields": fields})
