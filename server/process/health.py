"""A server asked from its own machine: by `python -m server health`, and for systemd's watchdog."""

import http.client
import json
import logging
import os
import socket
import threading
from collections.abc import Mapping
from typing import Self

from server.config.settings import Settings
from server.process.certificates import probe_context

logger = logging.getLogger(__name__)

ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
# Seconds between the questions until the first answer, and the patience without WATCHDOG_USEC.
STARTING_S, UNWATCHED_S = 0.05, 60.0


class Probe:
    """Asks the server of `settings` on a connection that it keeps, so that it is answered even if
    no new connection is let in. `timeout_s` bounds each step of an exchange."""

    def __init__(self, settings: Settings, timeout_s: float) -> None:
        host = ANYWHERE.get(settings.host, settings.host)
        self._connection: http.client.HTTPConnection
        if settings.tls_certificate:
            self._connection = http.client.HTTPSConnection(
                host, settings.port, timeout=timeout_s, context=probe_context(settings)
            )
        else:
            self._connection = http.client.HTTPConnection(host, settings.port, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(self, path: str) -> tuple[int, bytes]:
        """Return status and body of GET `path`. Raises OSError or HTTPException if no answer
        came."""
        try:
            self._connection.request("GET", path)
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise


def health(settings: Settings, timeout_s: float = 5.0) -> tuple[bool, str]:
    """Return whether the server of `settings` is ready for frames, and a sentence that says so or
    why not. For the health checks of containers, which have no curl."""
    address = f"{settings.host}:{settings.port}"
    with Probe(settings, timeout_s) as probe:
        try:
            status, body = probe.ask("/readyz")
        except (OSError, http.client.HTTPException) as error:
            return False, f"no answer from {address}: {error}"
    if status == 200:
        return True, f"{address} is ready{_crashes(body)}"
    try:
        reason = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        reason = "it is no Lineside server"
    return False, f"{address} answers {status}: {reason}"


def _crashes(body: bytes) -> str:
    """Return what the answer of /readyz says of workers that crashed, as the end of a sentence."""
    try:
        answer = json.loads(body)
        count, last = answer["worker_crashes"], answer["last_worker_crash"]
        return f"; its worker crashed {count} times, last at {last['at']} by {last['signal']}"
    except (ValueError, KeyError, TypeError):
        return ""


# systemd's watchdog takes one datagram of VARIABLE=VALUE lines at the socket that NOTIFY_SOCKET
# names (sd_notify(3)). WATCHDOG_USEC says within how many microseconds the next WATCHDOG=1 is due,
# and WATCHDOG_PID whose it is (sd_watchdog_enabled(3)). A thread of the worker asks its own server
# over HTTP: a process that runs while nobody gets an answer is not alive.


def notify(address: str, message: str) -> None:
    """Send `message` to the service manager's socket at `address`: a path, or a name in the
    abstract namespace that begins with @. Raises OSError if nobody listens there."""
    name = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        manager.sendto(message.encode(), name)


def due_s(environ: Mapping[str, str]) -> float | None:
    """Return the seconds within which a sign of life is due; None if this server is not watched."""
    watched = environ.get("WATCHDOG_PID", "")
    if watched and watched not in (str(os.getpid()), str(os.getppid())):
        return None
    microseconds = environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdigit() and int(microseconds) else None


def watch(settings: Settings, address: str, due: float | None, ended: threading.Event) -> None:
    """Send READY=1 with the first answer of /livez, and WATCHDOG=1 with every later one, twice as
    often as is `due` (seconds; None: no more than READY=1), until `ended`. Without an answer,
    send nothing, so that the manager restarts the service."""
    pause = (due or UNWATCHED_S) / 2
    message, step = "READY=1", STARTING_S
    with Probe(settings, timeout_s=pause) as probe:
        while not ended.wait(step):
            try:
                alive = probe.ask("/livez")[0] == 200
            except (OSError, http.client.HTTPException):
                continue  # asked again, while the manager's patience lasts
            if not alive:
                continue
            step = pause
            try:
                notify(address, message)
            except OSError as error:
                # The manager may be starting anew itself (systemctl daemon-reexec).
                fields = {"socket": address, "reason": str(error)}
                logger.warning("service manager not reached", extra={"fields": fields})
                continue
            message = "WATCHDOG=1"
            if due is None:
                return


def start(settings: Settings, environ: Mapping[str, str]) -> None:
    """Start the watch in a thread of its own, for the life of the process, if a service manager
    asked for it."""
    address = environ.get("NOTIFY_SOCKET")
    if address:
        arguments = (settings, address, due_s(environ), threading.Event())
        threading.Thread(target=watch, args=arguments, name="watchdog", daemon=True).start()
