"""The workers that the server starts itself, replaces when they die, and ends with itself."""

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
SOON, LATE = 0.1, 10.0
# One that lived for longer had started well.
STEADY = 2.0
# Seconds that workers are given to finish the frame in hand.
PATIENCE = 3.0


class WorkerProcesses:
    """Up to `settings.job_workers` worker processes. To be used from one thread, whose end, as well
    as the server's, ends them."""

    def __init__(self, settings: Settings) -> None:
        self._wanted = settings.job_workers
        # Their log lines go where the server's go; of its secrets they need none.
        kept = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}
        settings = msgspec.structs.replace(settings, webhook_secret="")
        self._env = {**kept, **to_environ(settings), WORKER_OF: str(os.getpid())}
        self._running: dict[int, tuple[subprocess.Popen[bytes], float]] = {}
        self._pause, self._not_before = SOON, 0.0

    def look(self) -> list[str]:
        """Starts what is missing; returns the names, HOST:PID, of those that died since."""
        now, gone = time.monotonic(), []
        for pid, (process, since) in list(self._running.items()):
            code = process.poll()
            if code is not None:
                del self._running[pid]
                gone.append(f"{socket.gethostname()}:{pid}")
                steady = now - since > STEADY
                self._pause = SOON if steady else min(LATE, self._pause * 2)
                self._not_before = now + self._pause
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

    def kill(self, names: Collection[str], older: float | None = None) -> None:
        """Ends those of `names`, HOST:PID, and where `older` is given, all that have lived for that
        many seconds; `look` finds them dead and replaces them."""
        now, host = time.monotonic(), socket.gethostname()
        for pid, (process, since) in self._running.items():
            if f"{host}:{pid}" in names or (older is not None and now - since > older):
                logger.error("worker hangs, and is ended", extra={"fields": {"pid": pid}})
                process.kill()

    def close(self) -> None:
        """Ends all, after the frame that each has in hand."""
        processes = [process for process, _ in self._running.values()]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + PATIENCE
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()
