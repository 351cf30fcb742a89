"""The thread that dispatches jobs, round after round, and the workers that it keeps running.

Workers are processes of our own, not Celery's prefork pool: a model must not be forked after it was
loaded, a worker that hangs must be noticed and killed, and none may outlive its server.
"""

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress

import msgspec

from server.config.load import PREFIX, to_environ
from server.config.settings import Settings
from server.errors import JobsUnavailableError
from server.jobs.dispatcher import ALL_SILENT_MAX_S, Dispatcher
from server.jobs.messages import WORKER_OF, BrokerLostError
from server.observe.logs import ProblemLog
from server.store.jobs.table import REMOVE_AT_ONCE_MAX, JobTable

logger = logging.getLogger(__name__)

# Seconds between rounds while workers have frames: after the first, after one in which something
# happened, and at most.
PAUSE_MIN_S = 0.02
PAUSE_ACTIVE_S = 0.05
PAUSE_MAX_S = 0.5
# Seconds between looks for jobs that have expired.
SWEEP_INTERVAL_S = 60.0
# Seconds before another round after one that failed.
RETRY_S = 1.0
# Seconds without a job after which the workers are stopped.
IDLE_MAX_S = 600.0
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
        settings = msgspec.structs.replace(settings, webhook_secret="", camera=(), output=())
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
                [sys.executable, "-m", "server", "worker"], env=self._env, stdin=subprocess.DEVNULL
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


class DispatchLoop:
    """Runs the rounds of a dispatcher, and makes a new one if the broker is lost."""

    def __init__(
        self,
        settings: Settings,
        table: JobTable,
        wake: threading.Event,
        stopping: threading.Event,
        take_over: Callable[[JobTable], Dispatcher],
        cancelled: deque[str],
    ) -> None:
        """Set up without a worker.

        Args:
            wake: set when there is something to do before the next round is due.
            stopping: set when `run` is to return.
            take_over: makes a dispatcher; raises BrokerLostError.
            cancelled: jobs that the workers must skip, and have not been notified of.
        """
        self._settings = settings
        self._table = table
        self._wake = wake
        self._stopping = stopping
        self._take_over = take_over
        self._cancelled = cancelled
        self._workers = WorkerProcesses(settings)
        self._dispatcher: Dispatcher | None = None
        self._last_sweep = self._last_open_job = time.monotonic()
        self._problem = ProblemLog("jobs wait", "jobs go on")
        self._too_many = ProblemLog(
            "results of jobs are removed before job_result_ttl, they are too many",
            "results of jobs stay for job_result_ttl again",
        )

    def run(self) -> None:
        """Dispatch until `stopping` is set."""
        pause = 0.0
        while not self._stopping.is_set():
            self._wake.wait(pause)
            self._wake.clear()
            pause = self._round(pause)
        self._workers.close()
        self._release_broker()

    def _round(self, pause: float) -> float:
        """Do one round; return the seconds until the next, should nothing happen before."""
        now = time.monotonic()
        try:
            more = self.sweep(now, time.time())
            unfinished = self._table.unfinished()
            # The last open job may have been cancelled with frames still queued for workers.
            if not unfinished and not self._cancelled:
                if now - self._last_open_job > IDLE_MAX_S:
                    self._workers.close()
                return PAUSE_MIN_S if more else self._sweep_interval
            gone: Iterable[str] = ()
            if unfinished:
                self._last_open_job = now
                gone = self._workers.ensure_running()
            if self._dispatcher is None:
                self._dispatcher = self._take_over(self._table)
            moved = self._dispatcher.step(now, time.time(), gone)
            self._end_hanging(self._dispatcher, now)
        except (BrokerLostError, JobsUnavailableError, OSError) as error:
            self._release_broker()
            self._problem.failed(str(error) or repr(error))
            return RETRY_S
        except Exception as error:
            # Otherwise jobs would be taken and wait for ever, and nothing would be logged.
            if not self._problem.failing:
                logger.exception("a round of jobs failed")
            self._release_broker()
            self._problem.failed(f"{type(error).__name__}: {error}")
            return RETRY_S
        self._problem.went_well()
        if moved:
            return PAUSE_MIN_S if pause > PAUSE_MAX_S else PAUSE_ACTIVE_S
        return min(PAUSE_MAX_S, max(PAUSE_MIN_S, pause * 1.3))

    def _end_hanging(self, dispatcher: Dispatcher, now: float) -> None:
        """Kill the workers of this server that are alive and do nothing."""
        silent, all_silent = dispatcher.hanging(now)
        # Through a broker that others use, the workers may be at others' frames.
        all_hang = all_silent and not self._settings.broker_url
        if silent or all_hang:
            self._workers.kill(silent, ALL_SILENT_MAX_S if all_hang else None)

    def _release_broker(self) -> None:
        """Close the dispatcher; the next round makes a new one, which finds what the broker
        holds."""
        if self._dispatcher is not None:
            with suppress(BrokerLostError):
                self._dispatcher.close()
        self._dispatcher = None

    @property
    def _sweep_interval(self) -> float:
        return min(SWEEP_INTERVAL_S, self._settings.job_result_ttl)

    def sweep(self, now: float, wall: float) -> bool:
        """Remove some of the expired jobs, if a sweep is due and the clock has not jumped, and jobs
        for which there is no room. Return True if the next round should go on with it.

        now: seconds of time.monotonic(). wall: Unix seconds.
        """
        settled = self._table.settled(wall, now)
        if now - self._last_sweep < self._sweep_interval:
            return False
        expired = self._table.expire(wall - self._settings.job_result_ttl) if settled else 0
        early = self._table.make_room()
        if early:
            self._too_many.failed("the file of jobs is full")
        else:
            self._too_many.went_well()
        if REMOVE_AT_ONCE_MAX in (expired, early):
            return True
        self._last_sweep = now
        if self._dispatcher is not None:
            self._dispatcher.tidy()
        return False
