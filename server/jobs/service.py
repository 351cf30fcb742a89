"""The server's side of jobs: taken, dispatched by a thread of their own, and told of.

A server that never gets a job pays for none of this: the table is opened, and Celery imported, with
the first one.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from server.config.settings import Settings
from server.errors import (
    BrokerUnavailableError,
    InvalidFieldError,
    JobNotFoundError,
    JobsUnavailableError,
)
from server.jobs.dispatch_loop import RETRY, DispatchLoop
from server.jobs.events import JobEvents
from server.jobs.suspects import JobSuspects
from server.observe.logs import ProblemLog
from server.store.jobs.records import FILE, JobError, JobRecord, NewJob, OpenFrame, State
from server.system.files import set_aside

if TYPE_CHECKING:
    from redis import Redis

    from server.jobs.dispatcher import Dispatcher
    from server.store.bundles.repository import BundleRepository
    from server.store.crashes import CrashGuard
    from server.store.jobs.table import JobTable

logger = logging.getLogger(__name__)

LOCK = "jobs.lock"
# Seconds for which a request waits until the table has been opened.
PATIENCE = 2.0


class Jobs:
    """Jobs of one server. `_opening` guards the making of `_table`, with its lock, and of the
    threads."""

    def __init__(
        self,
        settings: Settings,
        store: BundleRepository,
        telling: JobEvents,
        guard: CrashGuard | None = None,
    ) -> None:
        """guard: of the frames that must not be read."""
        self._settings, self._store, self._telling = settings, store, telling
        self._folder = Path(settings.data)
        self._opening = threading.Lock()
        self._table: JobTable | None = None
        self._lock_file: IO[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._dispatcher: Dispatcher | None = None
        self._suspects = JobSuspects(guard) if guard else None
        self._cancelled: deque[str] = deque()
        self._redis: Redis | None = None
        telling.pending(lambda: self._table.unfinished() if self._table else 0)

    def resume(self) -> None:
        """Goes on with the jobs of this server's predecessor, if there was one: as soon as their
        table can be used, whether anybody asks for jobs or not."""
        if self._had_jobs() or not self._usable():
            with self._opening:
                self._begin()

    def _usable(self) -> bool:
        """Whether it can be seen now if there were jobs: the folder is there, or can be made."""
        folder = self._folder.absolute()
        there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        return there.is_dir() and os.access(there, os.R_OK | os.W_OK | os.X_OK)

    def _had_jobs(self) -> bool:
        """Whether a server before this one, or this one, has had jobs."""
        return any(os.path.lexists(self._folder / name) for name in (FILE, LOCK))

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
        table = self._opened()
        if self._thread is None or not self._thread.is_alive():
            raise JobsUnavailableError("this server dispatches no jobs any more", retry_after=5)
        table.add(job)
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
        self.get(job)  # opens nothing where there are no jobs
        fault = JobError("CANCELLED", "the job was cancelled")
        ended, newly = self._opened().stop(job, "cancelled", fault, time.time())
        if newly:
            self._telling.finished([ended])
        self._cancelled.append(job)
        self._wake.set()
        return ended

    def stage(self, job: str, number: int) -> str | None:
        """The stage that a frame is in at a worker; None where none has it."""
        return self._dispatcher.stage(job, number) if self._dispatcher else None

    def close(self) -> None:
        """Ends the threads and the workers, and closes the files; jobs go on at the next start."""
        self._stopping.set()
        self._wake.set()
        self._telling.close()
        if self._thread is not None:
            self._thread.join()
        if self._table is not None:
            self._table.close()
        if self._redis is not None:
            self._redis.close()

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
        if self._table is None and not self._had_jobs():
            return None
        return self._opened()

    def _opened(self) -> JobTable:
        # Whoever waits keeps a thread that frames and probes need.
        if not self._opening.acquire(timeout=PATIENCE):
            raise JobsUnavailableError(f"{FILE} is being opened", retry_after=5)
        try:
            table = self._open()
            self._begin()
            return table
        finally:
            self._opening.release()

    def _open(self) -> JobTable:
        """The table, opened with the first call that can. The caller holds `_opening`."""
        if self._table is None:
            from server.store.jobs.recovery import is_gone
            from server.store.jobs.table import JobTable

            settings = self._settings
            file, had_jobs = self._folder / FILE, self._had_jobs()
            gone = had_jobs and is_gone(file)
            table = JobTable(
                self._folder,
                settings.job_max_pending,
                int(settings.job_max_mb * 1e6),
                settings.job_result_ttl,
            )
            if gone:
                fields = {"path": str(file), "jobs_lost": "unknown"}
                logger.error("jobs are lost, their file was deleted", extra={"fields": fields})
            try:
                self._lock_file = _open_lock(self._folder / LOCK)
            except OSError as error:
                table.close()
                raise JobsUnavailableError(f"{LOCK} can't be opened: {error}") from None
            self._table = table
            self._telling.start(table.webhooks)
        return self._table

    def _begin(self) -> None:
        """Starts the thread, once. The caller holds `_opening`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        """The thread: one dispatcher a data folder, for as long as this server lives."""
        try:
            table = self._await_table()
            if table is None or not self._await_turn():
                return
            DispatchLoop(
                self._settings,
                table,
                self._wake,
                self._stopping,
                self._take_over,
                self._cancelled,
            ).run()
        except Exception:
            logger.exception("jobs are dispatched no more until the next start")
        finally:
            if self._lock_file is not None:
                self._lock_file.close()

    def _await_table(self) -> JobTable | None:
        """The table, once it can be used; None if this server ends before."""
        problem = ProblemLog("jobs can't go on", "jobs go on")
        while not self._stopping.is_set():
            if self._table is None and not self._had_jobs():
                self._stopping.wait(RETRY)
                continue
            try:
                with self._opening:
                    table = self._open()
            except JobsUnavailableError as error:
                problem.failed(error.message)
                self._stopping.wait(RETRY)
            else:
                problem.went_well()
                return table
        return None

    def _await_turn(self) -> bool:
        """Returns once no other process dispatches from the folder; False if this server ends
        before."""
        assert self._lock_file is not None
        while not _locked(self._lock_file.fileno()):
            if self._stopping.wait(RETRY):
                return False
        return True

    def _take_over(self, table: JobTable) -> Dispatcher:
        """A new dispatcher, after the first job or a broken connection. Raises BrokerLostError."""
        from server.jobs.dispatcher import Dispatcher
        from server.jobs.queue import Broker

        self._dispatcher = Dispatcher(
            table,
            Broker(self._settings),
            self._choose,
            self._telling,
            self._cancelled,
            self._suspects,
        )
        return self._dispatcher

    def _choose(self, frame: OpenFrame) -> tuple[str, int, str]:
        from server.recognition.manifest import MODEL

        manifest = self._store.get(frame.ask.model, frame.ask.version).manifest
        return manifest.name, manifest.version, manifest.sha256.get(MODEL, "")


def _open_lock(path: Path) -> IO[bytes]:
    """The file that the dispatcher of a folder locks. Raises OSError."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            set_aside(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "r+b")


def _locked(descriptor: int) -> bool:
    """Whether this process has the lock: no other dispatches from the folder."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
