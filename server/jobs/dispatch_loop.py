"""The thread that dispatches jobs, round after round, and keeps the workers running."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from server.config.settings import Settings
from server.errors import JobsUnavailableError
from server.jobs.dispatcher import ALL_SILENT_MAX_S, Dispatcher
from server.jobs.messages import BrokerLostError
from server.jobs.worker_processes import WorkerProcesses
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
