"""The server's side of jobs: taken, dispatched by a thread of their own, and told of.

A server that never gets a job pays for none of this: the table is opened, and Celery imported, with
the first one.
"""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from server.config import Settings
from server.errors import (
    BrokerUnavailableError,
    InvalidFieldError,
    JobNotFoundError,
    JobsUnavailableError,
)
from server.jobs.messages import BrokerLostError
from server.jobs.telling import Telling
from server.observe.logs import LOGGER
from server.store.job_records import FILE, Fault, JobRecord, NewJob, OpenFrame, State

if TYPE_CHECKING:
    from redis import Redis

    from server.jobs.dispatcher import Dispatcher
    from server.store.bundles import BundleStore
    from server.store.jobs import JobTable

logger = logging.getLogger(LOGGER)

LOCK = "jobs.lock"
# Seconds between rounds while workers have frames: after the first, after one that found something,
# and at most.
SOONEST, USUAL, LATEST = 0.02, 0.05, 0.5
# Seconds between looks at what has expired, and before trying again what failed.
SWEEP, RETRY = 60.0, 1.0
# Seconds without a job after which the workers are let go.
IDLE = 600.0


class Jobs:
    """Jobs of one server. `_opening` guards the making of `_table` and of the threads."""

    def __init__(self, settings: Settings, store: BundleStore, telling: Telling) -> None:
        self._settings, self._store, self._telling = settings, store, telling
        self._folder = Path(settings.data)
        self._opening = threading.Lock()
        self._table: JobTable | None = None
        self._thread: threading.Thread | None = None
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._dispatcher: Dispatcher | None = None
        self._cancelled: deque[str] = deque()
        self._redis: Redis | None = None
        telling.pending(lambda: self._table.unfinished() if self._table else 0)

    def resume(self) -> None:
        """Goes on with the jobs of this server's predecessor, if there was one."""
        if not (self._folder / FILE).exists():
            return
        try:
            self._opened()
        except JobsUnavailableError as error:
            logger.error("jobs can't go on", extra={"fields": {"reason": error.message}})

    def check_webhook(self, url: str) -> None:
        """Raises InvalidFieldError where no webhook may go to `url`."""
        sender = self._telling.sender()
        if sender is None:
            raise InvalidFieldError(
                "webhook is switched off on this server: its setting webhook_hosts lists no host"
            )
        sender.check(url)

    def submit(self, job: NewJob) -> None:
        """Keeps the job and has it run; when this returns, it outlives whatever happens.

        Raises JobsFullError, JobsUnavailableError, and BrokerUnavailableError where workers can't
        be reached.
        """
        self._check_broker()
        self._opened().add(job)
        self._telling.count("pending")
        self._wake.set()

    def get(self, job: str) -> JobRecord:
        """Raises JobNotFoundError."""
        table = self._existing()
        if table is None:
            raise JobNotFoundError(f"there is no job {job}, or its results have expired")
        return table.get(job)

    def page(
        self, owner: str | None, state: State | None, before: int | None, limit: int
    ) -> list[JobRecord]:
        """As `JobTable.page`."""
        table = self._existing()
        return table.page(owner, state, before, limit) if table else []

    def cancel(self, job: str) -> JobRecord:
        """Ends the job: no worker begins another frame of it.

        Raises JobNotFoundError, and JobFinishedError where it has ended otherwise.
        """
        before = self.get(job)
        fault = Fault("CANCELLED", "the job was cancelled")
        ended = self._opened().stop(job, "cancelled", fault, time.time())
        if before.state != "cancelled":
            self._telling.finished([ended])
        self._cancelled.append(job)
        self._wake.set()
        return ended

    def stage(self, job: str, number: int) -> str | None:
        """The stage that a frame is in at a worker; None where none has it."""
        return self._dispatcher.stage(job, number) if self._dispatcher else None

    def close(self) -> None:
        """Ends the threads and the workers; jobs go on at the next start."""
        self._stopping.set()
        self._wake.set()
        self._telling.close()
        if self._thread is not None:
            self._thread.join()

    def _check_broker(self) -> None:
        if not self._settings.broker_url:
            return
        from redis import Redis
        from redis.exceptions import RedisError

        try:
            if self._redis is None:
                self._redis = Redis.from_url(
                    self._settings.broker_url, socket_timeout=2, socket_connect_timeout=2
                )
            self._redis.ping()
        except (RedisError, OSError) as error:
            raise BrokerUnavailableError(
                f"the broker of the jobs can't be reached: {error}", retry_after=2
            ) from None

    def _existing(self) -> JobTable | None:
        if self._table is None and not (self._folder / FILE).exists():
            return None
        return self._opened()

    def _opened(self) -> JobTable:
        with self._opening:
            if self._table is None:
                from server.store.jobs import JobTable

                settings = self._settings
                self._table = JobTable(
                    self._folder,
                    settings.job_max_pending,
                    int(settings.job_max_mb * 1e6),
                    settings.job_result_ttl,
                )
                self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
                self._thread.start()
                self._telling.start(self._table.webhooks)
            return self._table

    def _run(self) -> None:
        """The thread: one dispatcher a data folder, for as long as this server lives."""
        table = self._table
        assert table is not None
        with (self._folder / LOCK).open("a") as lock:
            while not _locked(lock.fileno()):
                if self._stopping.wait(RETRY):
                    return
            Rounds(
                self._settings, table, self._wake, self._stopping, self._take_over, self._cancelled
            ).run()

    def _take_over(self, table: JobTable) -> Dispatcher:
        """A new dispatcher, after the first job or a broken connection. Raises BrokerLostError."""
        from server.jobs.broker import Broker
        from server.jobs.dispatcher import Dispatcher

        self._dispatcher = Dispatcher(
            table, Broker(self._settings), self._choose, self._telling, self._cancelled
        )
        return self._dispatcher

    def _choose(self, frame: OpenFrame) -> tuple[str, int, str]:
        from server.recognition.manifest import MODEL

        manifest = self._store.get(frame.ask.model, frame.ask.version).manifest
        return manifest.name, manifest.version, manifest.sha256.get(MODEL, "")


def _locked(descriptor: int) -> bool:
    """Whether this process has the lock: no other dispatches from the folder."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Rounds:
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
        from server.jobs.children import Children

        self._settings, self._table = settings, table
        self._wake, self._stopping, self._take_over = wake, stopping, take_over
        self._cancelled = cancelled
        self._children = Children(settings)
        self._dispatcher: Dispatcher | None = None
        self._swept = self._busy = time.monotonic()
        self._trouble = ""

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
            self._sweep(now)
            unfinished = self._table.unfinished()
            # The last open job may have been cancelled with frames still queued for workers.
            if not unfinished and not self._cancelled:
                if now - self._busy > IDLE:
                    self._children.close()
                return min(SWEEP, self._settings.job_result_ttl)
            gone: Iterable[str] = ()
            if unfinished:
                self._busy = now
                gone = self._children.look()
            if self._dispatcher is None:
                self._dispatcher = self._take_over(self._table)
            moved = self._dispatcher.step(now, time.time(), gone)
        except (BrokerLostError, JobsUnavailableError, OSError) as error:
            self._leave()
            self._say(str(error))
            return RETRY
        self._say("")
        if moved:
            return SOONEST if pause > LATEST else USUAL
        return min(LATEST, max(SOONEST, pause * 1.3))

    def _leave(self) -> None:
        """Lets go of the broker; the next round finds it again, and what it holds."""
        if self._dispatcher is not None:
            with suppress(BrokerLostError):
                self._dispatcher.close()
        self._dispatcher = None

    def _sweep(self, now: float) -> None:
        if now - self._swept < min(SWEEP, self._settings.job_result_ttl):
            return
        self._swept = now
        self._table.expire(time.time() - self._settings.job_result_ttl)
        if self._dispatcher is not None:
            self._dispatcher.tidy()

    def _say(self, trouble: str) -> None:
        """Logs that dispatching stopped, and that it goes on, once each."""
        if trouble and not self._trouble:
            logger.error("jobs wait", extra={"fields": {"reason": trouble}})
        elif self._trouble and not trouble:
            logger.info("jobs go on", extra={"fields": {"after": self._trouble}})
        self._trouble = trouble
