"""One version of a model, verified, loaded and swapped in, or refused."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from server.errors import BundleError, NotReadyError, VersionRefusedError
from server.recognition.manifest import MODEL, Bundle, Recipe
from server.store.bundles.layout import Fingerprint, open_bundle
from server.store.bundles.records import Loaded, ModelRecord
from server.store.bundles.serving_models import ServingModels
from server.system.process import resident, trim_heap

if TYPE_CHECKING:
    from server.recognition.tensor_model import Model

logger = logging.getLogger(__name__)

Load: TypeAlias = "Callable[[Bundle], Model]"


class VersionLoader:
    """Loads versions in `folder` onto `shelf`; to be used by whoever has the turn to load."""

    def __init__(
        self,
        folder: Path,
        load: Load,
        recipe: Recipe | None,
        shelf: ServingModels,
        on_loaded: Callable[[Loaded], None],
    ) -> None:
        """`recipe` feeds a bare model.tflite."""
        self._folder, self._load, self._recipe = folder, load, recipe
        self._shelf, self._on_loaded = shelf, on_loaded
        # One thread does all loading: glibc gives each thread an arena of its own, and every arena
        # that models were in keeps some of their memory.
        self._thread = ThreadPoolExecutor(1, "model-load")

    def swap_in(self, name: str, record: ModelRecord, version: int, content: Fingerprint) -> Model:
        """Verifies, loads and swaps `version` in. Raises VersionRefusedError, remembered among the
        failures, or NotReadyError where the memory budget has no room."""
        fields: dict[str, object] = {"model": f"{name}/{version}"}
        try:
            loaded = self._made(name, record, version)
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
            size = record.measured(content, loaded.bytes)
            old = self._shelf.swap(name, loaded.recognizer, size)
            record.serves(version, old)
            self._shelf.make_room(name, 0)
            self._on_loaded(loaded)
            return loaded.recognizer
        record.refuse(version, content, reason)
        logger.warning("version refused", extra={"fields": fields | {"reason": reason}})
        raise VersionRefusedError(f"version {version} of {name} is refused: {reason}")

    def _made(self, name: str, record: ModelRecord, version: int) -> Loaded:
        """`version`, verified and in memory, but not serving yet. Raises NotReadyError, BundleError
        and what else opening and loading it may."""
        folder = self._folder / name / str(version)
        bundle = open_bundle(folder, self._recipe)
        file = (folder / MODEL).stat().st_size
        self._make_room(name, record, file * self._shelf.limit.copies)
        trim_heap()
        started, before = time.perf_counter(), resident()
        recognizer = self._thread.submit(self._load, bundle).result()
        seconds, size = time.perf_counter() - started, max(file, resident() - before)
        return Loaded(recognizer, size, seconds)

    def _make_room(self, name: str, record: ModelRecord, guess: int) -> None:
        """Makes room for what the model took before, or for `guess` where that is not sure enough
        to refuse it. Raises NotReadyError where there is none."""
        try:
            self._shelf.make_room(name, max(record.size, guess))
        except NotReadyError:
            if record.sure:
                raise
            self._shelf.make_room(name, guess)
