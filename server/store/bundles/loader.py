"""Versions verified, loaded and swapped in, or refused; and models loaded when a request asks."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from server.config.thread_budget import LOADING_REQUESTS_MAX
from server.errors import BundleError, NotReadyError, VersionRefusedError
from server.recognition.manifest import Bundle
from server.store.bundles.folder import ModelsFolder
from server.store.bundles.layout import Fingerprint
from server.store.bundles.policies import load_policy
from server.store.bundles.serving_models import ServingModels
from server.store.bundles.version_history import VersionHistory
from server.system.process import resident, trim_heap

if TYPE_CHECKING:
    from server.recognition.tensor_model import Model

logger = logging.getLogger(__name__)

# Measures of a model's size that are remembered, the least ones.
MEASURES_MAX = 3

Load: TypeAlias = "Callable[[Bundle], Model]"


class Loaded(msgspec.Struct, frozen=True):
    """A version that serves now: the bytes it takes, and the seconds it took to load, warm up and
    check."""

    recognizer: Model
    bytes: int
    seconds: float


class MeasuredSize:
    """The bytes that a model's files take in memory: the least of some measures, since what frames
    took meanwhile counts as the model's."""

    def __init__(self) -> None:
        self._content: Fingerprint = ()
        self._measures: list[int] = []

    @property
    def bytes(self) -> int:
        """The size, as far as known; 0 before the model was loaded."""
        return min(self._measures, default=0)

    @property
    def is_sure(self) -> bool:
        """True once it was measured often enough to refuse the model by it."""
        return len(self._measures) >= MEASURES_MAX

    def add(self, content: Fingerprint, size: int) -> None:
        if content != self._content:
            self._content = content
            self._measures = []
        self._measures = sorted([*self._measures, size])[:MEASURES_MAX]


class VersionLoader:
    """Loads versions of `folder` into `serving`; for the one thread that may load."""

    def __init__(
        self,
        folder: ModelsFolder,
        load: Load,
        serving: ServingModels,
        on_loaded: Callable[[Loaded], None],
        import_engine: Callable[[Bundle], object],
    ) -> None:
        """import_engine: imports the runtime that is to run a version."""
        self._import_engine = import_engine
        self._folder = folder
        self._load = load
        self._serving = serving
        self._on_loaded = on_loaded
        self._sizes: defaultdict[str, MeasuredSize] = defaultdict(MeasuredSize)
        # One thread does all loading: glibc gives each thread an arena of its own, and every arena
        # that models were in keeps some of their memory.
        self._thread = ThreadPoolExecutor(1, "model-load")

    def swap_in(self, history: VersionHistory, version: int, content: Fingerprint) -> Model:
        """Verifies, loads and swaps `version` in. Raises VersionRefusedError, remembered among the
        failures, or NotReadyError if the memory budget has no room."""
        name = history.name
        fields: dict[str, object] = {"model": f"{name}/{version}"}
        try:
            loaded = self._make(name, version, content)
        except NotReadyError:
            raise
        except (BundleError, OSError, ValueError, RuntimeError) as error:
            reason = str(error)
        except Exception as error:
            # One version's fault that nobody thought of must neither stop the loading of others
            # nor go unsaid.
            reason = f"it can't be loaded: {type(error).__name__}: {error}"
            logger.exception("version failed", extra={"fields": fields})
        else:
            size = self._sizes[name]
            size.add(content, loaded.bytes)
            before = self._serving.replace(name, loaded.recognizer, size.bytes)
            history.serves(version, content, before)
            self._serving.reserve(name, 0)
            self._on_loaded(loaded)
            return loaded.recognizer
        history.refuse(version, content, reason)
        logger.warning("version refused", extra={"fields": fields | {"reason": reason}})
        raise VersionRefusedError(f"version {version} of {name} is refused: {reason}")

    def make_beside(self, name: str, version: int, content: Fingerprint) -> Model:
        """Verifies and loads `version`, which does not serve. Raises VersionRefusedError, or
        NotReadyError if the memory budget has no room."""
        try:
            return self._make(name, version, content).recognizer
        except (BundleError, OSError, ValueError, RuntimeError) as error:
            reason = f"version {version} of {name} is refused: {error}"
            raise VersionRefusedError(reason) from None

    def _make(self, name: str, version: int, content: Fingerprint) -> Loaded:
        """Returns `version`, verified and in memory, but not serving yet. Raises NotReadyError,
        BundleError, and what else opening and loading it may."""
        bundle = self._folder.open(name, version, content)
        device = load_policy(bundle)
        file = bundle.model_path.stat().st_size
        self._reserve(name, file * self._serving.limit.copies)
        # Its memory would count as the first model's.
        self._import_engine(bundle)
        trim_heap()
        started, before = time.perf_counter(), resident()
        recognizer = self._thread.submit(self._load, bundle).result()
        recognizer.use_policy(device)
        seconds, size = time.perf_counter() - started, max(file, resident() - before)
        return Loaded(recognizer, size, seconds)

    def _reserve(self, name: str, guess: int) -> None:
        """Makes room for what the model took before, or for `guess` if that is not sure enough to
        refuse it. Raises NotReadyError if there is none."""
        size = self._sizes[name]
        try:
            self._serving.reserve(name, max(size.bytes, guess))
        except NotReadyError:
            if size.is_sure:
                raise
            self._serving.reserve(name, guess)


class OnDemandLoader:
    """Loads models in a thread of its own, so that a request waits for one no longer than its
    frame is worth, and the model is there for the next request.

    `_lock` guards `_loads`, those under way by name.
    """

    def __init__(self, load: Callable[[str], Model]) -> None:
        self._load = load
        self._places = threading.BoundedSemaphore(LOADING_REQUESTS_MAX)
        self._lock = threading.Lock()
        self._loads: dict[str, Future[Model]] = {}
        self._thread = ThreadPoolExecutor(1, "cold-load")

    def wait(self, name: str, seconds: float) -> Model:
        """Returns `name`, loaded. Raises NotReadyError if that takes more than `seconds` or if too
        many requests wait already, and what `load` raises."""
        if not self._places.acquire(blocking=False):
            raise NotReadyError(
                f"{LOADING_REQUESTS_MAX} requests wait for models already", retry_after=1
            )
        try:
            return self._start(name).result(max(0.0, seconds))
        except TimeoutError:
            raise NotReadyError(f"the model {name} is being loaded", retry_after=1) from None
        finally:
            self._places.release()

    def _start(self, name: str) -> Future[Model]:
        with self._lock:
            load = self._loads.get(name)
            if load is None:
                load = self._loads[name] = self._thread.submit(self._run, name)
            return load

    def _run(self, name: str) -> Model:
        try:
            return self._load(name)
        finally:
            with self._lock:
                del self._loads[name]
