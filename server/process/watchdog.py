"""systemd's watchdog, told of life only while the server answers.

The protocol is one datagram of VARIABLE=VALUE lines to the socket that NOTIFY_SOCKET names
(sd_notify(3)); WATCHDOG_USEC says within how many microseconds the next WATCHDOG=1 is due, and
WATCHDOG_PID whose it is (sd_watchdog_enabled(3)). What asks is a thread of the worker that asks its
own server over HTTP: a process that runs while nobody gets an answer is not alive.
"""

import http.client
import logging
import os
import socket
import threading
from collections.abc import Mapping

from server.config.settings import Settings
from server.process.health import Probe

logger = logging.getLogger(__name__)

# Seconds between the questions until the first answer, and the patience without WATCHDOG_USEC.
STARTING_S, UNWATCHED_S = 0.05, 60.0


def notify(address: str, message: str) -> None:
    """Sends `message` to the service manager's socket at `address`: a path, or a name in the
    abstract namespace that begins with @. Raises OSError where nobody listens there."""
    name = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        manager.sendto(message.encode(), name)


def due_s(environ: Mapping[str, str]) -> float | None:
    """Seconds within which a sign of life is due; None where this server is not watched."""
    watched = environ.get("WATCHDOG_PID", "")
    if watched and watched not in (str(os.getpid()), str(os.getppid())):
        return None
    microseconds = environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdigit() and int(microseconds) else None


def watch(settings: Settings, address: str, due: float | None, ended: threading.Event) -> None:
    """Says READY=1 with the first answer of /livez, and WATCHDOG=1 with every later one, twice as
    often as is `due` (seconds; None: no more than READY=1), until `ended`. Without an answer it
    says nothing, so that the manager restarts the service."""
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
    """Starts the watch in a thread of its own, for the life of the process, where a service manager
    asked for it."""
    address = environ.get("NOTIFY_SOCKET")
    if address:
        arguments = (settings, address, due_s(environ), threading.Event())
        threading.Thread(target=watch, args=arguments, name="watchdog", daemon=True).start()
