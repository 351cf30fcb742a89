"""The live model repository: versions verified, loaded, warmed up, checked, then swapped in.

What a version must pass before it serves is `Load`'s business; here it is decided which version
of which model is loaded when, and which one is let go.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from server.errors import (
    BundleError,
    ModelNotFoundError,
    NothingToRollBackError,
    NotReadyError,
    VersionPinnedError,
    VersionRefusedError,
)
from server.observe.logs import LOGGER
from server.recognition.manifest import MODEL, Bundle, Recipe
from server.recognition.memory import give_back, resident
from server.store.choices import Choice, candidates, history_before, read_choice, write_choice
from server.store.folders import (
    Fingerprint,
    fingerprint,
    newest_intact,
    open_bundle,
    pick_default,
    task_of,
    versions,
    versions_of,
)
from server.store.records import Failure, Loaded, Record
from server.store.residents import Unloaded
from server.store.shelf import LONGEST_WAIT, Limit, Shelf

if TYPE_CHECKING:
    from server.recognition.tensors import Model

__all__ = ["BundleStore", "Failure", "Loaded", "newest_intact", "open_bundle", "versions"]

logger = logging.getLogger(LOGGER)

Load: TypeAlias = "Callable[[Bundle], Model]"
Seen: TypeAlias = Mapping[str, Mapping[int, Fingerprint]]
# Versions that served before, as far back as rollback goes.
MOST_HISTORY = 16


class BundleStore:
    """Loaded models by name.

    `_lock` guards `_models` and what is in it. `_loading` is held by the one thread that loads: a
    request for a model that serves never waits for it.
    """

    def __init__(
        self,
        folder: Path,
        default: str,
        load: Load,
        recipe: Recipe | None = None,
        *,
        pinned: int | None = None,
        limit: Limit | None = None,
        on_loaded: Callable[[Loaded], None] = lambda _: None,
        on_unloaded: Callable[[Unloaded], None] = lambda _: None,
    ) -> None:
        """`default` is the model for requests that name none, and `pinned` the only version of it
        that may serve. Raises BundleError where the folder holds several models and `default` is
        not among them."""
        self.folder, self._load, self._recipe, self._pinned = folder, load, recipe, pinned
        names = versions(folder)
        self.default = pick_default(names, default, folder)
        self._on_loaded = on_loaded
        self._shelf = Shelf(self.default, limit or Limit(), on_unloaded)
        self._lock, self._loading = threading.Lock(), threading.Lock()
        # One thread does all loading: glibc gives each thread an arena of its own, and every arena
        # that models were in keeps some of their memory.
        self._loader = ThreadPoolExecutor(1, "model-load")
        self._models = {name: Record() for name in names}

    def ready(self) -> tuple[bool, str]:
        """Whether the default model serves, and if not, why."""
        if self._shelf.version(self.default) is not None:
            return True, ""
        failures = self.failures(self.default)
        if failures:
            return False, failures[0].reason
        return False, f"the model {self.default} is being loaded"

    def memory(self) -> dict[str, int]:
        """Bytes in memory by model, versions included that only finish their last frames."""
        return self._shelf.residents.by_name()

    def get(self, name: str | None = None, version: int | None = None) -> Model:
        """The recognizer that serves `name` (the default where None), loaded now if need be.

        It stays in memory for as long as the caller holds it, whatever serves meanwhile. Raises
        ModelNotFoundError for an unknown name or a version that does not serve, NotReadyError
        while the default is being loaded or where no version of the model may serve.
        """
        name = name or self.default
        recognizer = self._shelf.use(name)
        if recognizer is None:
            if name == self.default:
                raise NotReadyError(self.ready()[1], retry_after=1)
            recognizer = self.load(name)
        if version is not None and recognizer.manifest.version != version:
            raise ModelNotFoundError(
                f"version {version} of {name} is not served; {recognizer.manifest.version} is"
            )
        return recognizer

    def load(self, name: str) -> Model:
        """Loads the first version of `name` that may serve and verifies, unless one serves already.

        Raises ModelNotFoundError for an unknown name, NotReadyError with the first version's
        reason where none does, or where the memory budget has no room.
        """
        model = self._known(name)
        with self._turn_to_load():
            serving = self._shelf.use(name) or self._adopt(name, model, self._order(name))
            if serving is not None:
                return serving
        failures = self.failures(name)
        reason = failures[0].reason if failures else f"{self.folder / name} holds no version"
        raise NotReadyError(reason, retry_after=10)

    def refresh(self, name: str) -> Model:
        """Looks at models/NAME again and swaps in the newest version that may serve.

        Raises ModelNotFoundError, or VersionRefusedError where a newer one failed and the old one
        goes on.
        """
        model = self._known(name)
        with self._turn_to_load():
            numbers = self._order(name)
            fresh = self._adopt(name, model, numbers)
            serving = self._shelf.use(name)
            with self._lock:
                failed = bool(numbers) and numbers[0] in model.failures
        if serving is None or (fresh is None and failed):
            raise VersionRefusedError(self._first_reason(name))
        return serving

    def activate(self, name: str, version: int) -> Model:
        """Serves `version` of `name` from now on, and keeps that choice for the next start.

        Raises ModelNotFoundError, VersionPinnedError, or VersionRefusedError with its fault, in
        which case what served goes on.
        """
        model = self._known(name)
        if name == self.default and self._pinned not in (None, version):
            raise VersionPinnedError(
                f"the setting `version` pins {name} to {self._pinned}: change it there"
            )
        with self._turn_to_load():
            if version not in versions_of(self.folder, name):
                raise ModelNotFoundError(f"{self.folder / name} holds no version {version}")
            return self._activate(name, model, version)

    def rollback(self, name: str) -> Model:
        """Serves the version that served before this one (or else the next lower that verifies and
        was not passed over), and keeps that choice. Of a model that is not in memory, this one is
        the one that would serve.

        Raises ModelNotFoundError, VersionPinnedError, NothingToRollBackError.
        """
        model = self._known(name)
        if name == self.default and self._pinned is not None:
            raise VersionPinnedError(f"the setting `version` pins {name} to {self._pinned}")
        with self._turn_to_load():
            now, choice = self._now(name, model), read_choice(self.folder / name)
            with self._lock:
                served = [n for n in reversed(model.history) if n != now]
            present = versions_of(self.folder, name)
            passed = choice.skip if choice else ()
            lower = [n for n in present if now is not None and n < now and n not in passed]
            for version in dict.fromkeys(n for n in (*served, *lower) if n in present):
                try:
                    return self._activate(name, model, version, back=True)
                except VersionRefusedError:
                    continue  # recorded among the failures; the one before may be well
            raise NothingToRollBackError(f"{name} has no other version that served or verifies")

    def look(self, seen: Seen) -> Seen:
        """One look at the folders of loaded models: newer versions are swapped in.

        seen: what the look before returned. A version is tried when its files are as they were
        then, so that one being copied is left alone, and not again until they change.
        """
        found: dict[str, dict[int, Fingerprint]] = {}
        for name in (*self.served(), *(() if self.ready()[0] else (self.default,))):
            model = self._known(name)
            order = self._order(name)
            now = {n: fingerprint(self.folder / name / str(n)) for n in order}
            found[name] = now
            serving = self._shelf.version(name)
            newer = [n for n in order if serving is None or n > serving]
            settled = [n for n in newer if seen.get(name, {}).get(n) == now[n]]
            with suppress(NotReadyError), self._turn_to_load():
                self._adopt(name, model, settled)
        return found

    def served(self) -> dict[str, Model]:
        """The loaded models by name."""
        return self._shelf.served()

    def tensor_models(self) -> tuple[str, ...]:
        """The names, in their order, of the models of `task: tensor`, loaded or not."""
        serving, names = self._shelf.served(), []
        for name, numbers in versions(self.folder).items():
            model = serving.get(name)
            task = model.manifest.task if model else task_of(self.folder / name / str(numbers[0]))
            if task == "tensor":
                names.append(name)
        return tuple(names)

    def failures(self, name: str) -> tuple[Failure, ...]:
        """The versions of `name` on disk that were refused when last tried, newest first."""
        present = versions_of(self.folder, name)
        with self._lock:
            failed = self._models[name].failures if name in self._models else {}
            return tuple(Failure(n, failed[n][1]) for n in present if n in failed)

    def _known(self, name: str) -> Record:
        with self._lock:
            model = self._models.get(name)
        if model is None:
            if not versions_of(self.folder, name):
                raise ModelNotFoundError(f"there is no model {name}")
            with self._lock:
                model = self._models.setdefault(name, Record())
        return model

    def _first_reason(self, name: str) -> str:
        failures = self.failures(name)
        if not failures:
            return f"{self.folder / name} holds no version that may serve"
        return f"version {failures[0].version} of {name} is refused: {failures[0].reason}"

    def _order(self, name: str) -> tuple[int, ...]:
        pinned = self._pinned if name == self.default else None
        choice = read_choice(self.folder / name)
        return candidates(versions_of(self.folder, name), choice, pinned)

    def _now(self, name: str, model: Record) -> int | None:
        """The version that serves, or would once the model is loaded; None where none may."""
        now = self._shelf.version(name)
        if now is None:
            order = self._order(name)
            with self._lock:
                now = next((n for n in order if n not in model.failures), None)
            if now is not None:
                self._recall(name, model, now)
        return now

    def _recall(self, name: str, model: Record, version: int) -> None:
        """Takes up, once after a start, the history that was kept of a model of which `version` is
        the first to serve."""
        choice = read_choice(self.folder / name)
        present = versions_of(self.folder, name)
        with self._lock:
            if choice is not None and not model.recalled:
                model.recalled = True
                model.history = history_before(version, choice, present)[-MOST_HISTORY:]

    def _keep_history(self, name: str, model: Record, version: int) -> None:
        """Keeps that `version` took over by itself, so that a rollback after a restart knows what
        served before; what a person passed over stays so."""
        choice = read_choice(self.folder / name)
        with self._lock:
            history = tuple(model.history)
            # It is kept from now on, so there is nothing to be taken up.
            model.recalled = True
        write_choice(self.folder / name, Choice(version, choice.skip if choice else (), history))

    @contextmanager
    def _turn_to_load(self) -> Iterator[None]:
        if not self._loading.acquire(timeout=LONGEST_WAIT):
            raise NotReadyError("other models are being loaded", retry_after=5)
        try:
            yield
        finally:
            self._loading.release()

    def _adopt(self, name: str, model: Record, order: Sequence[int]) -> Model | None:
        """Swaps in the first of `order` that verifies, up to the one that serves; a version that
        failed with the same files is not tried again. None where there was no swap."""
        for version in order:
            if version == self._shelf.version(name):
                return None
            content = fingerprint(self.folder / name / str(version))
            with self._lock:
                failed = model.failures.get(version)
            if failed is None or failed[0] != content:
                before = self._shelf.version(name)
                try:
                    fresh = self._try(name, model, version, content)
                except VersionRefusedError:
                    continue  # recorded among the failures
                if before is None:
                    self._recall(name, model, version)
                else:
                    self._keep_history(name, model, version)
                return fresh
        return None

    def _activate(self, name: str, model: Record, version: int, *, back: bool = False) -> Model:
        """Serves `version`, anew where its files changed, and keeps the choice. On the way `back`,
        what was left is forgotten, so that the next step goes further back."""
        content = fingerprint(self.folder / name / str(version))
        serving = self._shelf.use(name)
        if serving is None:
            self._recall(name, model, version)
        with self._lock:
            same = model.content == content
            before = model.history_before(version)
        if serving is None or serving.manifest.version != version or not same:
            serving = self._try(name, model, version, content)
        present = versions_of(self.folder, name)
        with self._lock:
            if back:
                model.history = before
            passed = tuple(n for n in present if n > version and n not in model.failures)
            choice = Choice(version, passed, tuple(model.history))
        write_choice(self.folder / name, choice)
        return serving

    def _try(self, name: str, model: Record, version: int, content: Fingerprint) -> Model:
        """Verifies, loads and swaps `version` in. Raises VersionRefusedError, remembered among the
        failures, or NotReadyError where the memory budget has no room."""
        fields: dict[str, object] = {"model": f"{name}/{version}"}
        try:
            loaded = self._made(name, model, version)
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
            old = self._shelf.swap(name, loaded.recognizer, loaded.bytes)
            with self._lock:
                model.content, model.size = content, max(model.size, loaded.bytes)
                model.failures.pop(version, None)
                if old not in (None, version):
                    model.history = [*model.history, old][-MOST_HISTORY:]
            self._shelf.make_room(name, 0)
            self._on_loaded(loaded)
            return loaded.recognizer
        with self._lock:
            model.failures[version] = (content, reason)
        logger.warning("version refused", extra={"fields": fields | {"reason": reason}})
        raise VersionRefusedError(f"version {version} of {name} is refused: {reason}")

    def _made(self, name: str, model: Record, version: int) -> Loaded:
        """`version`, verified and in memory, but not serving yet. Raises NotReadyError, BundleError
        and what else opening and loading it may."""
        folder = self.folder / name / str(version)
        bundle = open_bundle(folder, self._recipe)
        file = (folder / MODEL).stat().st_size
        self._shelf.make_room(name, max(model.size, file * self._shelf.limit.copies))
        give_back()
        started, before = time.perf_counter(), resident()
        recognizer = self._loader.submit(self._load, bundle).result()
        seconds, size = time.perf_counter() - started, max(file, resident() - before)
        return Loaded(recognizer, size, seconds)
