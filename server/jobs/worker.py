"""python -m server worker: takes frames from the queue, one at a time, and reports on them."""

import logging
import os
import signal
import socket
import threading
import time
import warnings
from collections import OrderedDict
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
from server.errors import (
    InvalidFieldError,
    JobsUnavailableError,
    LinesideError,
    ModelNotFoundError,
    StartError,
    StorageError,
)
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
from server.jobs.queue import broker_errors, make_celery, set_value
from server.observe import logs
from server.recognition import tensor_model as tensors
from server.recognition.admission import Admission
from server.recognition.answers import Options
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import DevicePolicy
from server.recognition.recognizer import OnStage, Recognizer
from server.recognition.tasks.task import read_policy
from server.recognition.tensor_model import Model, make_model
from server.recognition.tensor_values import model_inputs, named_arrays, real_outputs
from server.store.bundles.engine_choice import engine_options
from server.store.bundles.layout import open_bundle
from server.store.bundles.signatures import Signers
from server.store.jobs.database import FrameReader
from server.store.jobs.records import FILE, FrameOutcome, JobError, NumbersAnswer
from server.system import process
from server.system.process import end_with_parent
from server.values.validation import InvalidValueError

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Seconds between beats: a worker that misses several counts as dead.
BEAT_INTERVAL_S = 1.0
# Seconds between reports of stages.
STAGE_INTERVAL_S = 0.02
# Versions that a worker keeps loaded: the one that serves and one that is named beside it.
LOADED_MAX = 2
# Added to the niceness of workers that the server starts: the line's own frames go first.
NICENESS = 5
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class WorkerModels:
    """The models of a worker: those versions that the server names, loaded when first needed. They
    may not be the newest on this machine: an answer is that of the version that served."""

    def __init__(self, settings: Settings, on_stage: OnStage) -> None:
        self._settings = settings
        self._on_stage = on_stage
        self._limits = settings.image_limits
        self._signers = Signers(settings.bundle_keys)
        # A worker has one frame in work.
        self._admission = Admission(1, 0)
        self._loaded: OrderedDict[tuple[str, int, str], Model] = OrderedDict()

    def get(self, name: str, version: int, sha256: str) -> Model:
        """Return the model. Raises ModelNotFoundError if this machine has no such version, or
        another file under its number."""
        key = name, version, sha256
        if key not in self._loaded:
            while len(self._loaded) >= LOADED_MAX:
                self._loaded.popitem(last=False)[1].pool.close()
            self._loaded[key] = self._load(name, version, sha256)
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def _load(self, name: str, version: int, sha256: str) -> Model:
        folder = Path(self._settings.models) / name / str(version)
        try:
            bundle = open_bundle(folder, self._settings.recipe, self._signers)
            if bundle.manifest.model_sha256 != sha256:
                raise ModelNotFoundError(
                    f"the worker's {folder} is not the version {version} of {name} that serves:"
                    " copy the server's"
                )
            settings = self._settings
            pool = InterpreterPool(
                bundle.model_path,
                1,
                settings.threads_per_interpreter,
                options=engine_options(bundle, settings.engine_options),
            )
            return make_model(
                bundle,
                pool,
                self._admission,
                self._limits,
                self._on_stage,
                measures=self._settings.measures_images,
            )
        except (StartError, OSError, ValueError, RuntimeError) as error:
            raise ModelNotFoundError(
                f"the worker can't load version {version} of {name}: {error}"
            ) from None

    def answer(self, task: FrameTask, data: bytes) -> FrameOutcome:
        """Return the outcome of one frame: the answer of the synchronous route, or its error."""
        try:
            model = self.get(task.model, task.version, task.sha256)
            _use_policy(model, task)
            options = Options(
                top_k=task.ask.top_k,
                threshold=task.ask.threshold,
                camera=task.ask.camera or "",
                part=task.ask.part or "",
                product=task.ask.product or "",
                batch=task.ask.batch or "",
            )
            if task.kind == "numbers":
                return FrameOutcome(numbers=_answer_numbers(model, data, options))
            if not isinstance(model, Recognizer):
                raise InvalidFieldError(f"the model {task.model} takes numbers, not an image")
            return FrameOutcome(answer=model.recognize(data, options))
        except LinesideError as error:
            return FrameOutcome(fault=JobError(error.code, error.message))


def _use_policy(model: Model, task: FrameTask) -> None:
    """Judge by the server's policy, whatever this machine's models folder has. Raises
    ModelNotFoundError if this program can't."""
    device = None
    if task.policy is not None:
        try:
            device = DevicePolicy(read_policy(task.policy, model.bundle), source=task.policy_source)
        except InvalidValueError as error:
            raise ModelNotFoundError(
                f"the worker can't judge by the server's policy of {task.model}: {error}"
            ) from None
    model.use_policy(device)


def _answer_numbers(model: Model, data: bytes, options: Options) -> NumbersAnswer:
    arrays = named_arrays(msgspec.json.decode(data), model.pool.inputs)
    outcome = tensors.run_tensors(model, model_inputs(model, arrays), options)
    manifest = model.manifest
    return NumbersAnswer(
        manifest.name, manifest.version, real_outputs(model, outcome), outcome.answers
    )


class FrameReporter:
    """Takes one frame after the other from the broker, and reports on it.

    Reports are values of our own beside Celery's task states, which can only be read one at a time,
    and which its Redis backend publishes to subscribers as well.

    `_lock` guards `_report`, the report on the frame in work, or None between frames, and `_sent`,
    when it was last sent.
    """

    def __init__(self, app: Celery, settings: Settings) -> None:
        self._backend: Any = app.backend
        self._errors = broker_errors(settings)
        self._frames = None if settings.broker_url else FrameReader(Path(settings.data) / FILE)
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._lock = threading.Lock()
        self._problem = logs.ProblemLog(
            "the broker can't be reached", "the broker can be reached again"
        )
        self._task = ""
        self._report: FrameReport | None = None
        self._sent = 0.0
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    @property
    def idle(self) -> bool:
        """True if no frame is in work."""
        return self._report is None

    def open(self, task: FrameTask) -> bytes | None:
        """Return the frame, and report that work on it began; None if there is nothing to do."""
        keys = [report_key(task.task), cancel_key(task.job), frame_key(task.job, task.number)]
        values: list[bytes | None] = self._retry(lambda: list(self._backend.mget(keys)))
        report, cancelled, data = values
        last = read_report(report) if report else None
        if last is not None and last.state == "done":
            return None  # a message that came twice
        self._task = task.task
        self._report_now(FrameReport("running", self.name, "decode"))
        if cancelled:
            self.close(FrameReport("dropped", self.name))
            return None
        if self._frames is not None:
            try:
                data = self._frames.data(task.job, task.number)
            except JobsUnavailableError as error:
                fields = {"job": task.job, "reason": error.message}
                logger.error("a frame can't be read", extra={"fields": fields})
            except StorageError as error:
                fault = FrameOutcome(fault=JobError(error.code, error.message))
                self.close(FrameReport("done", self.name, outcome=fault))
                return None
        if data is None:
            self.close(FrameReport("missing", self.name))
        return data

    def stage_ended(self, stage: str, _: float) -> None:
        """Report the stage after `stage`; the recognizer calls this.

        If the last report was sent a moment ago, it is left to the next beat: nobody could see
        both.
        """
        last = self._report
        coming = {"wait": "decode", "decode": "preprocess", "preprocess": "inference"}.get(stage)
        if last is None or not coming or coming == last.stage:
            return
        with self._lock:
            self._report = msgspec.structs.replace(last, stage=coming)
            if time.monotonic() - self._sent > STAGE_INTERVAL_S:
                self._send(self._report)

    def close(self, report: FrameReport) -> None:
        """Report how the frame ended."""
        self._report_now(report)
        with self._lock:
            self._report = None

    def _report_now(self, report: FrameReport) -> None:
        with self._lock:
            self._report = report
            self._send(report)

    def _send(self, report: FrameReport) -> None:
        """Send the report. The caller holds `_lock`."""
        self._sent = time.monotonic()
        data = msgspec.json.encode(report)
        self._retry(lambda: set_value(self._backend, report_key(self._task), data))

    def _beat(self) -> None:
        pause = threading.Event()
        while not pause.wait(BEAT_INTERVAL_S):
            with self._lock:
                report = self._report
                if report is not None and report.state == "running":
                    self._report = msgspec.structs.replace(report, beat=report.beat + 1)
                    self._send(self._report)

    def _retry(self, ask: Callable[[], T]) -> T:
        """Return what the broker answers, however long it is away: Celery's backend would give up,
        and the frame's answer be lost."""
        pause = threading.Event()
        while True:
            try:
                value = ask()
            except self._errors as error:
                self._problem.failed(str(error) or repr(error), task=self._task)
                pause.wait(BEAT_INTERVAL_S)
            else:
                self._problem.went_well()
                return value


def make_task(app: Celery, reporter: FrameReporter, models: WorkerModels) -> None:
    """Make `app` answer frames."""

    @app.task(name=TASK)
    def frame(text: str) -> None:
        task = msgspec.json.decode(text, type=FrameTask)
        data = reporter.open(task)
        if data is None:
            return
        # Reported if the line below raises an error that nobody foresaw, which Celery logs.
        outcome = FrameOutcome(fault=JobError("INTERNAL", "the worker failed; its log says why"))
        try:
            outcome = models.answer(task, data)
        finally:
            reporter.close(FrameReport("done", reporter.name, outcome=outcome))


class WorkerShutdown:
    """Ends this process at a signal: at once if no frame is in work, else when it is done, or after
    `timeout` seconds. It replaces Celery's handlers, which leave an idle worker running for
    seconds. requested: True once a signal came."""

    def __init__(self, reporter: FrameReporter, log: logs.LogWriter, timeout: float) -> None:
        self.requested = False
        self._reporter = reporter
        self._log = log
        self._timeout = timeout
        self._read_end, self._write_end = os.pipe()
        threading.Thread(target=self._end_after_signal, name="stop", daemon=True).start()

    def on_signal(self, _: int, __: FrameType | None) -> None:
        """Handler of signals. It takes no lock and starts no thread: a second signal runs it within
        the first, and when a server dies the kernel sends one for each of its threads."""
        self.requested = True
        state.should_stop = 0
        os.write(self._write_end, b"x")

    def _end_after_signal(self) -> None:
        os.read(self._read_end, 1)
        if not self._reporter.idle:
            time.sleep(self._timeout)
        self.end()

    def end(self) -> NoReturn:
        """Write what is left of the log and end the process: with 0, or without a signal with 1."""
        try:
            self._log.stop()
        finally:
            os._exit(0 if self.requested else 1)


def run(settings: Settings) -> NoReturn:
    """Work until SIGTERM or SIGINT, which let the frame in work finish; then end the process.

    Raises StartError if the queue can't be used.
    """
    parent = int(os.environ.pop(WORKER_OF, "0"))
    if parent:
        _end_with(parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    log = _start_log(settings)
    process.configure_process()
    # It is about messages that could carry programs; ours are JSON of known shape.
    warnings.simplefilter("ignore", SecurityWarning)
    app = make_celery(settings)
    reporter = FrameReporter(app, settings)
    make_task(app, reporter, WorkerModels(settings, reporter.stage_ended))
    # One frame in this process, since the model's threads take the cores. Messages between workers
    # are off: a dispatcher reads their reports, and each exchange costs a small device.
    worker = app.Worker(
        pool_cls="solo",
        concurrency=1,
        hostname=f"lineside@{reporter.name}",
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    shutdown = WorkerShutdown(reporter, log, settings.stop_timeout)

    def ready(**_: object) -> None:
        # Celery has set its own handlers by now.
        for number in STOP_SIGNALS:
            signal.signal(number, shutdown.on_signal)
        logger.info("worker ready", extra={"fields": {"pid": os.getpid()}})

    signals.worker_ready.connect(ready)
    try:
        worker.start()
    except BaseException:
        log.stop()
        raise
    if not shutdown.requested:
        # Celery returns if the broker answers with an error; the starter of this worker starts
        # another.
        logger.error("worker ended by itself", extra={"fields": {"pid": os.getpid()}})
    shutdown.end()


def _start_log(settings: Settings) -> logs.LogWriter:
    """Start our log, with the warnings of Celery and its libraries in it."""
    log = logs.start(settings.log_level, settings.log_format)
    for library in ("celery", "kombu"):
        other = logging.getLogger(library)
        other.handlers[:] = [log]
        other.propagate = False
        other.setLevel(logging.WARNING)
    return log


def _end_with(parent: int) -> None:
    """Have the kernel send SIGTERM when the server that started this worker ends (prctl(2))."""
    end_with_parent(signal.SIGTERM)
    if os.getppid() != parent:
        raise StartError("the server that started this worker has ended")
    # A sandbox may forbid it; jobs then share the cores evenly with the line.
    with suppress(PermissionError):
        os.nice(NICENESS)
