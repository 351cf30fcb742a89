"""The jobs of a server: it takes them, reports on them, and dispatches them in a thread.

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
from typing import IO, TYPE_CHECKING, Any

import msgspec

from server.config.settings import Settings
from server.errors import (
    BrokerUnavailableError,
    InvalidFieldError,
    JobNotFoundError,
    JobsUnavailableError,
)
from server.jobs.events import JobEvents
from server.observe.logs import ProblemLog
from server.store.jobs.records import FILE, JobError, JobRecord, NewJob, OpenFrame, State
from server.system.files import set_aside

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from server.jobs.dispatcher import Dispatcher, JobSuspects
    from server.recognition.manifest import PolicySource
    from server.recognition.tasks.task import Reader
    from server.recognition.tensor_model import Model
    from server.store.bundles.repository import BundleRepository
    from server.store.crashes import CrashGuard
    from server.store.jobs.table import JobTable

logger = logging.getLogger(__name__)

LOCK = "jobs.lock"
# Seconds for which a request waits until the table has been opened.
OPEN_TIMEOUT_S = 2.0
# Seconds before the thread tries again to open the table, or to become the folder's dispatcher.
RETRY_S = 1.0
# Seconds that a ping of the broker may take.
PING_TIMEOUT_S = 2


class Jobs:
    """The jobs of one server. `_opening` guards the opening of `_table` and `_lock_file`, and the
    start of the threads."""

    def __init__(
        self,
        settings: Settings,
        store: BundleRepository,
        events: JobEvents,
        reader: Callable[[str, Model], Reader[Any]],
        guard: CrashGuard | None = None,
    ) -> None:
        """Set up without a table or a thread. reader: returns what reads a model's outputs by a
        product's policy. guard: refuses frames that end their reader."""
        self._settings = settings
        self._store = store
        self._events = events
        self._reader = reader
        self._guard = guard
        self._folder = Path(settings.data)
        self._opening = threading.Lock()
        self._table: JobTable | None = None
        self._lock_file: IO[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._dispatcher: Dispatcher | None = None
        self._suspects: JobSuspects | None = None
        self._cancelled: deque[str] = deque()
        self._redis: Redis | None = None
        events.pending(lambda: self._table.unfinished() if self._table else 0)

    def resume(self) -> None:
        """Go on with the jobs of this server's predecessor as soon as their table can be used, even
        if nobody asks for jobs."""
        if self._had_jobs() or not self._folder_is_usable():
            with self._opening:
                self._start_thread()

    def _folder_is_usable(self) -> bool:
        """Return True if it can be seen now if there were jobs: the folder is there, or can be
        made."""
        folder = self._folder.absolute()
        existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        return existing.is_dir() and os.access(existing, os.R_OK | os.W_OK | os.X_OK)

    def _had_jobs(self) -> bool:
        """Return True if this server, or one before it, has had jobs."""
        return any(os.path.lexists(self._folder / name) for name in (FILE, LOCK))

    def check_webhook(self, url: str) -> None:
        """Raise InvalidFieldError if no webhook may go to `url`."""
        client = self._events.webhook_client()
        if client is None:
            raise InvalidFieldError(
                "webhook is switched off on this server: its setting webhook_hosts lists no host"
            )
        client.check(url)

    def submit(self, job: NewJob) -> None:
        """Store the job and have it run. Once this returns, the job outlives any crash.

        Raises JobsFullError, JobsUnavailableError, and BrokerUnavailableError if workers can't be
        reached.
        """
        self._check_broker()
        table = self._opened()
        if self._thread is None or not self._thread.is_alive():
            raise JobsUnavailableError("this server dispatches no jobs any more", retry_after=5)
        table.add(job)
        self._events.count("pending")
        self._wake.set()

    def get(self, job: str) -> JobRecord:
        """Return the job of that id. Raises JobNotFoundError."""
        table = self._existing()
        if table is None:
            raise JobNotFoundError(f"there is no job {job}, or its results have expired")
        return table.get(job)

    def page(
        self, owner: str | None, state: State | None, before: int | None, limit: int
    ) -> list[JobRecord]:
        table = self._existing()
        return table.page(owner, state, before, limit) if table else []

    def cancel(self, job: str) -> JobRecord:
        """End the job: no worker begins another frame of it.

        Raises JobNotFoundError, and JobFinishedError if it has ended in another way.
        """
        self.get(job)  # opens nothing if there are no jobs
        fault = JobError("CANCELLED", "the job was cancelled")
        ended, newly = self._opened().stop(job, "cancelled", fault, time.time())
        if newly:
            self._events.finished([ended])
        self._cancelled.append(job)
        self._wake.set()
        return ended

    def stage(self, job: str, number: int) -> str | None:
        """Return the stage that a frame is in at a worker; None if no worker has it."""
        return self._dispatcher.stage(job, number) if self._dispatcher else None

    def close(self) -> None:
        """End the threads and the workers, and close the files; jobs go on at the next start."""
        self._stopping.set()
        self._wake.set()
        self._events.close()
        if self._thread is not None:
            self._thread.join()
        if self._table is not None:
            self._table.close()
        if self._redis is not None:
            self._redis.close()

    def _check_broker(self) -> None:
        """Raise BrokerUnavailableError if Redis does not answer. A client of our own pings it:
        Celery's connections belong to the dispatcher's thread, and importing it takes long."""
        if not self._settings.broker_url:
            return
        from redis import Redis
        from redis.exceptions import RedisError

        try:
            if self._redis is None:
                self._redis = Redis.from_url(
                    self._settings.broker_url,
                    socket_timeout=PING_TIMEOUT_S,
                    socket_connect_timeout=PING_TIMEOUT_S,
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
        # A thread that waits here is one that frames and probes need.
        if not self._opening.acquire(timeout=OPEN_TIMEOUT_S):
            raise JobsUnavailableError(f"{FILE} is being opened", retry_after=5)
        try:
            table = self._open()
            self._start_thread()
            return table
        finally:
            self._opening.release()

    def _open(self) -> JobTable:
        """Return the table, opened by the first call that can. The caller holds `_opening`."""
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
            self._events.start(table)
        return self._table

    def _start_thread(self) -> None:
        """Start the thread, once. The caller holds `_opening`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        """Dispatch, as the only process for this data folder, as long as this server lives."""
        try:
            table = self._await_table()
            if table is None or not self._await_lock():
                return
            from server.jobs.dispatch_loop import DispatchLoop

            DispatchLoop(
                self._settings, table, self._wake, self._stopping, self._take_over, self._cancelled
            ).run()
        except Exception:
            logger.exception("jobs are dispatched no more until the next start")
        finally:
            if self._lock_file is not None:
                self._lock_file.close()

    def _await_table(self) -> JobTable | None:
        """Return the table, once it can be used; None if this server ends before."""
        problem = ProblemLog("jobs can't go on", "jobs go on")
        while not self._stopping.is_set():
            if self._table is None and not self._had_jobs():
                self._stopping.wait(RETRY_S)
                continue
            try:
                with self._opening:
                    table = self._open()
            except JobsUnavailableError as error:
                problem.failed(error.message)
                self._stopping.wait(RETRY_S)
            else:
                problem.went_well()
                return table
        return None

    def _await_lock(self) -> bool:
        """Return True once no other process dispatches from the folder; False if this server ends
        before."""
        assert self._lock_file is not None
        while not _try_lock(self._lock_file.fileno()):
            if self._stopping.wait(RETRY_S):
                return False
        return True

    def _take_over(self, table: JobTable) -> Dispatcher:
        """Make a dispatcher, after the first job or a lost broker. Raises BrokerLostError."""
        from server.jobs.dispatcher import Dispatcher, JobSuspects
        from server.jobs.queue import Broker

        if self._suspects is None and self._guard is not None:
            self._suspects = JobSuspects(self._guard)
        self._dispatcher = Dispatcher(
            table,
            Broker(self._settings),
            self._choose,
            self._events,
            self._cancelled,
            self._suspects,
        )
        return self._dispatcher

    def _choose(
        self, frame: OpenFrame
    ) -> tuple[str, int, str, dict[str, Any] | None, PolicySource]:
        model = self._store.get(frame.ask.model, frame.ask.version)
        product = frame.ask.product
        reader = self._reader(product, model) if product else model.reader
        manifest, source = model.manifest, reader.policy_source
        policy = None if source == "bundle" else msgspec.to_builtins(reader.policy)
        return manifest.name, manifest.version, manifest.model_sha256, policy, source


def _open_lock(path: Path) -> IO[bytes]:
    """Open the file that the dispatcher of a folder locks. Raises OSError."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            set_aside(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "r+b")


def _try_lock(descriptor: int) -> bool:
    """Lock the file; return False if another process dispatches from the folder."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
