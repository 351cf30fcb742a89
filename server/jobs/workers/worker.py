"""python -m server worker: takes frames from the queue, one at a time, and reports on them."""

import logging
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import msgspec
from celery import Celery, signals
from celery.platforms import SecurityWarning
from celery.worker import state

from server.config.settings import Settings
from server.errors import JobsUnavailableError, StartError, StorageError
from server.jobs.messages import (
    TASK,
    WORKER_OF,
    FrameReport,
    FrameTask,
    cancel_key,
    frame_key,
    read_report,
    report_key,
)
from server.jobs.queue import broker_errors, keep, make_celery
from server.jobs.workers.models import WorkerModels
from server.observe import logs
from server.store.jobs.database import FrameReader
from server.store.jobs.records import FILE, FrameOutcome, JobError
from server.system import process
from server.system.process import end_with_parent

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Seconds between beats: a worker that misses several counts as dead.
BEAT = 1.0
# Seconds between reports of stages.
MOMENT = 0.02
# Added to the niceness of workers that the server starts: the line's own frames go first.
NICE = 5
STOPPING = (signal.SIGTERM, signal.SIGINT)


class FrameReporter:
    """One frame's reports to the broker, and the frame from it.

    `_lock` guards `_report`, where the frame in hand is, or None between frames, and `_sent`, when
    that was last told.
    """

    def __init__(self, app: Celery, settings: Settings) -> None:
        self._backend: Any = app.backend
        self._errors = broker_errors(settings)
        self._frames = None if settings.broker_url else FrameReader(Path(settings.data) / FILE)
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._lock = threading.Lock()
        self._task = ""
        self._report: FrameReport | None = None
        self._sent = 0.0
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    @property
    def idle(self) -> bool:
        """Whether no frame is in hand."""
        return self._report is None

    def open(self, work: FrameTask) -> bytes | None:
        """The frame, with its work begun; None where there is nothing to do."""
        keys = [report_key(work.task), cancel_key(work.job), frame_key(work.job, work.number)]
        found: list[bytes | None] = self._patiently(lambda: list(self._backend.mget(keys)))
        told, cancelled, data = found
        last = read_report(told) if told else None
        if last is not None and last.state == "done":
            return None  # a message that came twice
        self._task = work.task
        self._tell(FrameReport("running", self.name, "decode"))
        if cancelled:
            self.close(FrameReport("dropped", self.name))
            return None
        if self._frames is not None:
            try:
                data = self._frames.data(work.job, work.number)
            except JobsUnavailableError as error:
                fields = {"job": work.job, "reason": error.message}
                logger.error("a frame can't be read", extra={"fields": fields})
            except StorageError as error:
                fault = FrameOutcome(fault=JobError(error.code, error.message))
                self.close(FrameReport("done", self.name, outcome=fault))
                return None
        if data is None:
            self.close(FrameReport("missing", self.name))
        return data

    def stage_ended(self, stage: str, _: float) -> None:
        """Tells of the stage after `stage`, as the recognizer calls it."""
        last = self._report
        coming = {"wait": "decode", "decode": "preprocess", "preprocess": "inference"}.get(stage)
        if last is not None and coming and coming != last.stage:
            self._tell(msgspec.structs.replace(last, stage=coming), soon=True)

    def close(self, report: FrameReport) -> None:
        """Tells how the frame ended."""
        self._tell(report)
        with self._lock:
            self._report = None

    def _tell(self, report: FrameReport, *, soon: bool = False) -> None:
        """Sends `report`; one that is wanted `soon` only with the next beat, where the last was
        sent a moment ago: nobody could see both."""
        with self._lock:
            self._report = report
            if not soon or time.monotonic() - self._sent > MOMENT:
                self._send(report)

    def _send(self, report: FrameReport) -> None:
        self._sent = time.monotonic()
        data = msgspec.json.encode(report)
        self._patiently(lambda: keep(self._backend, report_key(self._task), data))

    def _beat(self) -> None:
        pause = threading.Event()
        while not pause.wait(BEAT):
            with self._lock:
                report = self._report
                if report is not None and report.state == "running":
                    self._report = msgspec.structs.replace(report, beat=report.beat + 1)
                    self._send(self._report)

    def _patiently(self, ask: Callable[[], T]) -> T:
        """What the broker answers, however long it is away: a frame's answer is worth waiting."""
        pause = threading.Event()
        while True:
            try:
                return ask()
            except self._errors as error:
                fields = {"reason": str(error), "task": self._task}
                logger.warning("the broker can't be reached", extra={"fields": fields})
                pause.wait(BEAT)


def make_task(app: Celery, desk: FrameReporter, models: WorkerModels) -> None:
    """Makes `app` answer frames."""

    @app.task(name=TASK)
    def frame(text: str) -> None:
        work = msgspec.json.decode(text, type=FrameTask)
        data = desk.open(work)
        if data is None:
            return
        # Told where the line below raises what nobody foresaw, which Celery logs.
        outcome = FrameOutcome(fault=JobError("INTERNAL", "the worker failed; its log says why"))
        try:
            outcome = models.answer(work, data)
        finally:
            desk.close(FrameReport("done", desk.name, outcome=outcome))


class WorkerShutdown:
    """The end of this process: when it is asked to, at once without a frame in hand, else after
    `longest` seconds if the frame is not done before. `asked`: whether it was."""

    def __init__(self, desk: FrameReporter, listener: logs.LogWriter, longest: float) -> None:
        self.asked = False
        self._desk, self._listener, self._longest = desk, listener, longest
        self._hears, self._tells = os.pipe()
        threading.Thread(target=self._in_time, name="stop", daemon=True).start()

    def ask(self, _: int, __: FrameType | None) -> None:
        """Handler of signals. It takes no lock and starts no thread: a second signal runs it within
        the first, and when a server dies the kernel sends one for each of its threads."""
        self.asked = True
        state.should_stop = 0
        os.write(self._tells, b"x")

    def _in_time(self) -> None:
        os.read(self._hears, 1)
        if not self._desk.idle:
            time.sleep(self._longest)
        self.leave()

    def leave(self) -> NoReturn:
        """Writes what is left of the log and ends the process: with 0, or unasked with 1."""
        try:
            self._listener.stop()
        finally:
            os._exit(0 if self.asked else 1)


def run(settings: Settings) -> NoReturn:
    """Works until SIGTERM or SIGINT, which let the frame in hand finish; then ends the process.

    Raises StartError where the queue can't be used.
    """
    parent = int(os.environ.pop(WORKER_OF, "0"))
    if parent:
        _end_with(parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    listener = _start_log(settings)
    process.configure_process()
    # It is about messages that could carry programs; ours are JSON of known shape.
    warnings.simplefilter("ignore", SecurityWarning)
    app = make_celery(settings)
    desk = FrameReporter(app, settings)
    make_task(app, desk, WorkerModels(settings, desk.stage_ended))
    worker = app.Worker(
        pool_cls="solo",
        concurrency=1,
        hostname=f"lineside@{desk.name}",
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )

    def ready(**_: object) -> None:
        # Celery has set its own handlers by now, under which an idle worker stays for seconds.
        for number in STOPPING:
            signal.signal(number, leaving.ask)
        logger.info("worker ready", extra={"fields": {"pid": os.getpid()}})

    leaving = WorkerShutdown(desk, listener, settings.stop_timeout)
    signals.worker_ready.connect(ready)
    try:
        worker.start()
    except BaseException:
        listener.stop()
        raise
    if not leaving.asked:
        # Celery ends well where the broker answers with an error; whoever started it begins anew.
        logger.error("worker ended by itself", extra={"fields": {"pid": os.getpid()}})
    leaving.leave()


def _start_log(settings: Settings) -> logs.LogWriter:
    """Our log, with the warnings of Celery and what it uses in it."""
    listener = logs.start(settings.log_level, settings.log_format)
    for library in ("celery", "kombu"):
        other = logging.getLogger(library)
        other.handlers[:], other.propagate = logger.handlers, False
        other.setLevel(logging.WARNING)
    return listener


def _end_with(parent: int) -> None:
    """Has the kernel send SIGTERM when the server that started this worker ends (prctl(2))."""
    end_with_parent(signal.SIGTERM)
    if os.getppid() != parent:
        raise StartError("the server that started this worker has ended")
    # A sandbox may forbid it; jobs then share the cores evenly with the line.
    with suppress(PermissionError):
        os.nice(NICE)
