"""The workers that the server starts, replaces when they die, and ends with itself.

They are processes of our own, not Celery's prefork pool: a model must not be forked after it was
loaded, a worker that hangs must be seen and killed, and none may outlive its server.
"""

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Collection

import msgspec

from server.config.load import PREFIX, to_environ
from server.config.settings import Settings
from server.jobs.messages import WORKER_OF

logger = logging.getLogger(__name__)

# Seconds after which a worker that died is replaced, doubled while they keep dying at once.
RESTART_DELAY_MIN_S = 0.1
RESTART_DELAY_MAX_S = 10.0
# Seconds after which a worker counts as started well.
STEADY_AFTER_S = 2.0
# Seconds that workers have to finish the frame in work when the server stops.
STOP_TIMEOUT_S = 3.0


class WorkerProcesses:
    """Up to `settings.job_workers` worker processes. To be used from one thread; they end with
    that thread, and with the server."""

    def __init__(self, settings: Settings) -> None:
        self._wanted = settings.job_workers
        self._host = socket.gethostname()
        # Their log lines go where the server's go; they need none of its secrets.
        environ = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}
        settings = msgspec.structs.replace(settings, webhook_secret="")
        self._env = {**environ, **to_environ(settings), WORKER_OF: str(os.getpid())}
        self._running: dict[int, tuple[subprocess.Popen[bytes], float]] = {}
        self._restart_delay = RESTART_DELAY_MIN_S
        self._not_before = 0.0

    def ensure_running(self) -> list[str]:
        """Start what is missing; return the names, HOST:PID, of those that died since."""
        now = time.monotonic()
        gone = []
        for pid, (process, since) in list(self._running.items()):
            code = process.poll()
            if code is not None:
                del self._running[pid]
                gone.append(f"{self._host}:{pid}")
                steady = now - since > STEADY_AFTER_S
                doubled = min(RESTART_DELAY_MAX_S, self._restart_delay * 2)
                self._restart_delay = RESTART_DELAY_MIN_S if steady else doubled
                self._not_before = now + self._restart_delay
                logger.warning("worker died", extra={"fields": {"pid": pid, "code": code}})
        while len(self._running) < self._wanted and now >= self._not_before:
            process = subprocess.Popen(
                [sys.executable, "-m", "server", "worker"],
                env=self._env,
                stdin=subprocess.DEVNULL,
            )
            self._running[process.pid] = (process, now)
            logger.info("worker started", extra={"fields": {"pid": process.pid}})
        return gone

    def kill(self, names: Collection[str], older_than: float | None = None) -> None:
        """Kill those of `names`, HOST:PID, and those older than so many seconds, if given;
        `ensure_running` replaces them."""
        now = time.monotonic()
        for pid, (process, since) in self._running.items():
            is_old = older_than is not None and now - since > older_than
            if is_old or f"{self._host}:{pid}" in names:
                logger.error("worker hangs, and is ended", extra={"fields": {"pid": pid}})
                process.kill()

    def close(self) -> None:
        """End all, after the frame that each has in work."""
        processes = [process for process, _ in self._running.values()]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()
