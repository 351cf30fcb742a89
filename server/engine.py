"""The engine of a server: its models, their admission, metrics and log lines."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from server.config.settings import Settings
from server.errors import LinesideError
from server.observe.device import DeviceCollector
from server.observe.metrics import Metrics, ModelsCollector
from server.recognition.admission import Admission
from server.recognition.engines.engine import find_engine
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import Bundle
from server.recognition.reader_guard import ReaderGuard
from server.recognition.tensor_model import Model, make_model
from server.store.audit import Audit
from server.store.bundles.engine_choice import engine_options
from server.store.bundles.folder import ModelsFolder, models_folder
from server.store.bundles.golden_checks import GoldenChecks, Result
from server.store.bundles.loader import Loaded
from server.store.bundles.repository import BundleRepository, Fingerprints
from server.store.bundles.serving_models import Limit, Unloaded
from server.store.crashes import CrashGuard
from server.system.background import BackgroundQueue, Task, in_order, make_task_queue
from server.system.resources import available_cores

logger = logging.getLogger(__name__)

# Seconds between looks whether the default model serves.
POLL_INTERVAL_S = 0.01


def make_store(
    settings: Settings,
    metrics: Metrics,
    admission: Admission,
    afterwards: BackgroundQueue[Task] | None = None,
    guard: ReaderGuard | None = None,
    audit: Audit | None = None,
    models: ModelsFolder | None = None,
) -> BundleRepository:
    """Returns the model repository of `settings`, whose models share `admission`.

    metrics: counts loads and stages, the latter by `afterwards`, if it is given. guard: protects
    the readers of images. audit: records which versions take over by themselves. models: the
    folder, if it was read already.
    """
    limits = settings.image_limits
    size = settings.pool_size
    cores = available_cores()
    wide = cores if settings.wide_interpreter and cores > 1 else 0

    on_stage = in_order(afterwards, metrics.worked) if afterwards else metrics.worked

    def load(bundle: Bundle) -> Model:
        pool = InterpreterPool(
            bundle.model_path,
            size,
            settings.threads_per_interpreter,
            wide,
            engine_options(bundle, settings.engine_options),
        )
        return make_model(
            bundle, pool, admission, limits, on_stage, guard, measures=settings.measures_images
        )

    def loaded(now: Loaded) -> None:
        manifest = now.recognizer.manifest
        metrics.loaded(manifest, now.seconds)
        fields = {
            "model": f"{manifest.name}/{manifest.version}",
            "seconds": round(now.seconds, 3),
            "interpreters": now.recognizer.pool.size,
            "mb": round(now.bytes / 1e6, 1),
        }
        logger.info("model loaded", extra={"fields": fields})

    def unloaded(gone: Unloaded) -> None:
        metrics.model_unloads.labels(gone.name, gone.reason).inc()
        fields = {
            "model": f"{gone.name}/{gone.version}",
            "reason": gone.reason,
            "mb": round(gone.bytes / 1e6, 1),
            "seconds": round(gone.seconds, 3),
        }
        logger.info("model unloaded", extra={"fields": fields})

    store = BundleRepository(
        models or models_folder(settings),
        load,
        limit=Limit(int(settings.models_memory_mb * 1e6), copies=1 + size + (wide > 0)),
        on_loaded=loaded,
        on_unloaded=unloaded,
        on_taken_over=audit.took_over if audit else lambda *_: None,
        import_engine=lambda bundle: find_engine(
            bundle.model_path, engine_options(bundle, settings.engine_options)
        ),
    )
    metrics.registry.register(ModelsCollector(store.served, store.memory))
    return store


def start_loading(
    store: BundleRepository,
    settings: Settings,
    stop: threading.Event | None = None,
    on_checked: Callable[[str, Result], None] = lambda *_: None,
) -> threading.Thread:
    """Loads the default model, then those to preload, then looks for newer versions and checks
    golden frames, until `stop` is set: in a thread of its own, so that /livez answers meanwhile.
    on_checked: as in GoldenChecks."""
    stopped = stop or threading.Event()
    checks = GoldenChecks(store.served, settings.golden_check_s, on_checked)
    fingerprints: Fingerprints = {}

    def look() -> None:
        nonlocal fingerprints
        fingerprints = store.look(fingerprints)

    def check() -> None:
        checks.run(time.monotonic(), stopped)

    def run() -> None:
        for name in dict.fromkeys((store.default, *settings.preload)):
            if stopped.is_set():
                return
            try:
                store.load(name)
            except LinesideError as error:
                fields = {"model": name, "reason": error.message}
                logger.error("no version may serve", extra={"fields": fields})
            except Exception:
                # Else the models after this one would not be loaded, nor newer versions looked for.
                logger.exception("a model can't be loaded", extra={"fields": {"model": name}})
        repeat([(settings.watch_models_s, look), (checks.period_s, check)], stopped)

    thread = threading.Thread(target=run, name="models", daemon=True)
    thread.start()
    return thread


def repeat(tasks: Sequence[tuple[float, Callable[[], None]]], stop: threading.Event) -> None:
    """Call each task every so many seconds, unless that is 0, until `stop` is set."""
    start = time.monotonic()
    due = {task: (start + seconds, seconds) for seconds, task in tasks if seconds}
    while due:
        task, (at, seconds) = min(due.items(), key=lambda item: item[1])
        if stop.wait(max(0.0, at - time.monotonic())):
            return
        task()
        due[task] = (time.monotonic() + seconds, seconds)


# Least time for which all slots may be held by the same frames before the recognizer counts as
# stuck; longer if frames may wait longer.
STUCK_MIN_S = 10.0


class Engine:
    """Recognition without the HTTP around it: the models of `store`, which share `admission` and
    report to `metrics`, by `afterwards`.

    It may begin to load while the rest of a server is still being imported. root: the folder of the
    machine's `sys` and `proc`. guard: of the frames that must not be read. Raises StartError if the
    models folder is unusable.
    """

    def __init__(
        self,
        settings: Settings,
        root: Path = Path("/"),
        guard: CrashGuard | None = None,
        models: ModelsFolder | None = None,
    ) -> None:
        self.guard = guard or CrashGuard(settings)
        self.audit = Audit(Path(settings.data))
        self.metrics = Metrics(settings.max_cameras, settings.fail_run)
        folders = {"data": Path(settings.data), "models": Path(settings.models)}
        self.metrics.registry.register(DeviceCollector(folders, root))
        self.metrics.watch_crashes(self.guard.crash_count, lambda: len(self.guard.frames))
        self.admission = Admission(settings.slots, settings.max_waiting)
        self.metrics.watch(self.admission)
        self.afterwards = make_task_queue("afterwards")
        self.store = make_store(
            settings, self.metrics, self.admission, self.afterwards, self.guard, self.audit, models
        )
        # What must hold for frames to be judged; each returns whether it does, and why not.
        self.conditions: list[Callable[[], tuple[bool, str]]] = [
            self.store.ready,
            self._not_stuck,
        ]
        self.stuck_after_s = max(STUCK_MIN_S, 2 * settings.max_wait_ms / 1000)
        self.metrics.ready.set_function(lambda: self.ready()[0])
        self._settings = settings
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def ready(self) -> tuple[bool, str]:
        """Says whether frames are judged now, and if not, why."""
        for condition in self.conditions:
            holds, reason = condition()
            if not holds:
                return False, reason
        return True, ""

    def _not_stuck(self) -> tuple[bool, str]:
        seconds = self.admission.stuck_s
        if seconds <= self.stuck_after_s:
            return True, ""
        return False, f"the recognizer is stuck: no frame has ended for {seconds:.0f} s"

    def start(self) -> None:
        """Begins to load, as `start_loading` has it, unless that was begun."""
        if self._thread is None:
            count = self.metrics.checked_golden
            self._thread = start_loading(self.store, self._settings, self._stop, count)

    def await_model(self, seconds: float) -> None:
        """Returns once the default model serves or was refused, or after `seconds`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.store.ready()[0] or self.store.failures(self.store.default):
                return
            time.sleep(POLL_INTERVAL_S)

    def stop(self) -> None:
        """Returns once nothing is being loaded any more, nor ever will be."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
