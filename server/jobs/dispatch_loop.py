"""The thread that dispatches jobs: round after round, with the workers beside it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from server.config.settings import Settings
from server.errors import JobsUnavailableError
from server.jobs.messages import BrokerLostError

if TYPE_CHECKING:
    from server.jobs.dispatcher import Dispatcher
    from server.store.jobs.table import JobTable

logger = logging.getLogger(__name__)

# Seconds between rounds while workers have frames: after the first, after one that found something,
# and at most.
SOONEST, USUAL, LATEST = 0.02, 0.05, 0.5
# Seconds between looks at what has expired, and before trying again what failed.
SWEEP, RETRY = 60.0, 1.0
# Seconds without a job after which the workers are let go.
IDLE = 600.0


class DispatchLoop:
    """Round after round of dispatching, with the workers beside it."""

    def __init__(
        self,
        settings: Settings,
        table: JobTable,
        wake: threading.Event,
        stopping: threading.Event,
        take_over: Callable[[JobTable], Dispatcher],
        cancelled: deque[str],
    ) -> None:
        """cancelled: jobs of which the workers are still to be told."""
        from server.jobs.workers.processes import WorkerProcesses

        self._settings, self._table = settings, table
        self._wake, self._stopping, self._take_over = wake, stopping, take_over
        self._cancelled = cancelled
        self._children = WorkerProcesses(settings)
        self._dispatcher: Dispatcher | None = None
        self._swept = self._busy = time.monotonic()
        self._trouble, self._crowded = "", False

    def run(self) -> None:
        """Until `stopping` is set."""
        pause = 0.0
        while not self._stopping.is_set():
            self._wake.wait(pause)
            self._wake.clear()
            pause = self._round(pause)
        self._children.close()
        self._leave()

    def _round(self, pause: float) -> float:
        """One round; returns the seconds until the next, should nothing happen before."""
        now = time.monotonic()
        try:
            more = self.sweep(now, time.time())
            unfinished = self._table.unfinished()
            # The last open job may have been cancelled with frames still queued for workers.
            if not unfinished and not self._cancelled:
                if now - self._busy > IDLE:
                    self._children.close()
                return SOONEST if more else min(SWEEP, self._settings.job_result_ttl)
            gone: Iterable[str] = ()
            if unfinished:
                self._busy = now
                gone = self._children.look()
            if self._dispatcher is None:
                self._dispatcher = self._take_over(self._table)
            moved = self._dispatcher.step(now, time.time(), gone)
            self._end_hanging(self._dispatcher, now)
        except (BrokerLostError, JobsUnavailableError, OSError) as error:
            self._leave()
            self._say(str(error))
            return RETRY
        except Exception as error:
            # Else jobs would be taken and wait for ever, and nothing would tell.
            if not self._trouble:
                logger.exception("a round of jobs failed")
            self._leave()
            self._say(f"{type(error).__name__}: {error}")
            return RETRY
        self._say("")
        if moved:
            return SOONEST if pause > LATEST else USUAL
        return min(LATEST, max(SOONEST, pause * 1.3))

    def _end_hanging(self, dispatcher: Dispatcher, now: float) -> None:
        """Ends the workers of this server that are alive and do nothing."""
        from server.jobs.dispatcher import STALLED

        silent, stalled = dispatcher.hanging(now)
        # Through a broker that others use, the workers may be at others' frames.
        all_hang = stalled and not self._settings.broker_url
        if silent or all_hang:
            self._children.kill(silent, STALLED if all_hang else None)

    def _leave(self) -> None:
        """Lets go of the broker; the next round finds it again, and what it holds."""
        if self._dispatcher is not None:
            with suppress(BrokerLostError):
                self._dispatcher.close()
        self._dispatcher = None

    def sweep(self, now: float, wall: float) -> bool:
        """Removes some of what has expired, now and then, unless a jump of the clock may have made
        it so, and of what there is no room for. Returns whether the next round is to go on.

        now, wall: seconds of time.monotonic() and since 1970.
        """
        from server.store.jobs.table import REMOVED

        settled = self._table.settled(wall, now)
        if now - self._swept < min(SWEEP, self._settings.job_result_ttl):
            return False
        expired = self._table.expire(wall - self._settings.job_result_ttl) if settled else 0
        early = self._table.make_room()
        if early and not self._crowded:
            logger.warning("results of jobs go before their time, they are too many")
        self._crowded = early > 0
        if REMOVED in (expired, early):
            return True
        self._swept = now
        if self._dispatcher is not None:
            self._dispatcher.tidy()
        return False

    def _say(self, trouble: str) -> None:
        """Logs that dispatching stopped, and that it goes on, once each."""
        if trouble and not self._trouble:
            logger.error("jobs wait", extra={"fields": {"reason": trouble}})
        elif self._trouble and not trouble:
            logger.info("jobs go on", extra={"fields": {"after": self._trouble}})
        self._trouble = trouble
