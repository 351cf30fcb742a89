"""Granian in front of the application: one worker with threads, in this process.

Of Granian its worker is used, not its server: that would fork a process of 20 MB that only watches
(`supervise` does), listen with sockets of its own, and copy the process's environment for each
request. The worker and its two helpers are in a module that Granian calls private, so its version
is pinned.
"""

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from granian import _granian
from granian.log import LogLevels, configure_logging
from granian.wsgi import ResponseIterWrap

from server import __version__
from server.config.settings import Settings
from server.config.thread_budget import threads
from server.errors import StartError
from server.http.wsgi import FEATURES, GRPC, Wsgi, context_of
from server.process.certificate_renewal import CertificateRenewal
from server.process.certificates import certificate_files
from server.process.drain import STOPPING, Draining, accept_again, stop_with_parent
from server.store.data_lock import lock_data
from server.system.handover import PORT, Handover

logger = logging.getLogger(__name__)

native: Any = _granian  # whose type stubs are behind it
# Granian's back-pressure counts open connections, idle ones too; cameras keep theirs open, and
# whoever opens this many keeps all others out until it ends those that are idle.
MAX_CONNECTIONS, BACKLOG = 4096, 1024
# File descriptors beside those of connections.
OTHER_FILES = 512
# The environment of every request, beside what Granian says of it (PEP 3333).
ALWAYS: dict[str, Any] = {
    "SCRIPT_NAME": "",
    "SERVER_SOFTWARE": "Granian",
    "wsgi.version": (1, 0),
    "wsgi.errors": sys.stderr,
    "wsgi.multithread": True,
    "wsgi.multiprocess": False,
    "wsgi.run_once": False,
    # Not of the standard: a body ends by itself, which Werkzeug has to know.
    "wsgi.input_terminated": True,
}


def listening_socket(host: str, port: int, handover: Handover | None = None) -> socket.socket:
    """Return a socket that listens on `host`:`port`, so that frames wait while the rest starts, and
    a second server is refused at once: with sockets of Granian's own both would get the port, and
    each a part of the frames.

    With `handover`, the socket outlives this worker: what a worker before this one left there is
    taken if it has this address, and else a new one is left. Connections that came in between wait
    in its queue. Raises StartError if the port can't be had.
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
        raise StartError(f"can't listen on {host}:{port} (host, port): {reason}") from None
    if handover:
        handover.leave(PORT, sock.fileno())
    return sock


def _inherited_socket(address: Any, handover: Handover | None) -> socket.socket | None:
    """Return the listening socket that a worker before this one left, if it is bound to
    `address`."""
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
    """Return how many connections may be open at once, with as many files as this process may
    open."""
    wanted, (soft, hard) = MAX_CONNECTIONS + OTHER_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(soft - OTHER_FILES, soft // 2)
    return MAX_CONNECTIONS


def wsgi_adapter(app: Wsgi, closing: threading.Event) -> Callable[[Any, dict[str, Any]], None]:
    """Return what Granian calls with each request, to have `app` answer it: a function of what
    sends the answer, which the request's context keeps, and of what is known of the request. Once
    `closing` is set, each answer asks its client to close the connection."""

    def call(protocol: Any, scope: dict[str, Any]) -> None:
        environ = {**ALWAYS, **scope}
        context_of(environ).protocol = protocol
        status, headers = 0, list[tuple[str, str]]()

        def start_response(line: str, fields: list[tuple[str, str]], _: Any = None) -> None:
            nonlocal status, headers
            status, headers = int(line.split(" ", 1)[0]), fields

        body = app(environ, start_response)
        if closing.is_set():
            headers = [*headers, ("Connection", "close")]
        if isinstance(body, list):
            protocol.response_bytes(status, headers, b"".join(body))
        else:
            protocol.response_iter(status, headers, ResponseIterWrap(body))

    return call


def traced(call: Callable[[Any, dict[str, Any]], None]) -> Callable[[Any, dict[str, Any]], None]:
    """Return `call`, traced by what threading.settrace was given, if anything: Granian makes its
    threads itself, so debuggers and coverage would miss all that runs in them."""
    trace = threading.gettrace()
    if trace is None:
        return call

    def call_traced(protocol: Any, scope: dict[str, Any]) -> None:
        if sys.gettrace() is None:
            sys.settrace(trace)
        call(protocol, scope)

    return call_traced


class GranianWorker:
    """One worker of Granian, which takes connections from a listening socket and has `app` answer
    their requests. Raises RuntimeError if Granian can't use `tls`."""

    def __init__(
        self,
        app: Wsgi,
        sock: socket.socket,
        tls: Mapping[str, Any],
        *,
        py_threads: int,
        backpressure: int,
    ) -> None:
        """sock: is closed by the worker. tls: Granian's arguments of TLS, none for plain HTTP."""
        self.closing = threading.Event()
        self._stop, self._ended = native.WorkerSignal(), threading.Event()
        self._stop.add_cb(self._ended.set)
        worker = native.WSGIWorker(
            0,
            (None, native.SocketHolder(sock.detach(), False, BACKLOG)),
            None,
            py_threads=py_threads,
            backpressure=backpressure,
            http_mode="1",
            **tls,
        )
        # Granian asks for it, and a WSGI worker never runs it.
        self._loop = loop = asyncio.new_event_loop()
        call = traced(wsgi_adapter(app, self.closing))
        worker.serve_mtr(native.CallbackScheduler(loop, call, None, None, None), loop, self._stop)

    def stop(self) -> None:
        """Close idle connections, and return when the requests in hand are answered."""
        self._stop.set()
        self._ended.wait()
        self._loop.close()


def run(
    settings: Settings,
    make_app: Callable[[Settings], Any],
    handover: Handover | None = None,
) -> None:
    """Serve `make_app(settings)` until SIGTERM or SIGINT, then let frames in hand finish. If they
    need longer than `stop_timeout`, SIGALRM ends the process.

    handover: what this worker leaves to the one that replaces it if it dies. To be called in the
    main thread before any other thread is started, since threads inherit the blocked signals.
    Raises StartError if the address can't be had, or if another server uses the folder `data`.
    """
    lock = lock_data(Path(settings.data), handover)
    files = certificate_files(settings)
    sock = listening_socket(settings.host, settings.port, handover)
    address = sock.getsockname()[0]
    stop_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    configure_logging(LogLevels.error)
    app = make_app(settings)
    draining = Draining(app)
    start = partial(
        GranianWorker,
        draining,
        py_threads=threads(settings.slots, settings.max_waiting),
        backpressure=most_connections(),
    )
    grpc = getattr(app, "extensions", {}).get(GRPC)
    if grpc is not None:
        from server.process.grpc_credentials import credentials

        # First, so that a probe that is answered by HTTP tells that calls are taken too.
        grpc.listen(credentials(files))
    worker = CertificateRenewal(sock, files, start) if files else start(sock, {})
    if lock.fault:
        fields = {"data": settings.data, "reason": lock.fault}
        logger.warning("data folder can't be locked", extra={"fields": fields})
    scheme = "https" if files else "http"
    url = f"{scheme}://{f'[{address}]' if ':' in address else address}:{settings.port}"
    features = getattr(app, "extensions", {}).get(FEATURES, {})
    if grpc is not None:
        features = {"grpc_port": settings.grpc_port, **features}
    _log("listening", url=url, version=__version__, **features)

    number = signal.sigwait(STOPPING)
    signal.setitimer(signal.ITIMER_REAL, settings.stop_timeout)
    _log("stopping", signal=signal.Signals(number).name)
    if grpc is not None:
        grpc.begin_to_close()
    try:
        draining.drain(settings.port)
    except Exception:
        # It stops without: the frames in hand are finished all the same.
        logger.exception("clients could not be asked to leave")
    worker.stop()
    if grpc is not None:
        grpc.close()
    _log("stopped")


def _log(event: str, **fields: object) -> None:
    logger.info(event, extra={"fields": fields})
