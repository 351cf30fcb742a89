"""The live model repository: versions verified, loaded, warmed up, checked, then swapped in.

What a version must pass before it serves is `Load`'s business; here it is decided which version
of which model is loaded when, and which one is let go.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from server.errors import (
    ModelNotFoundError,
    NothingToRollBackError,
    NotReadyError,
    VersionPinnedError,
    VersionRefusedError,
)
from server.recognition.manifest import Recipe
from server.store.bundles.choices import read_choice
from server.store.bundles.layout import (
    Fingerprint,
    fingerprint,
    pick_default,
    task_of,
    versions,
    versions_of,
)
from server.store.bundles.loader import Load, VersionLoader
from server.store.bundles.on_demand import OnDemandLoader
from server.store.bundles.records import Failure, Loaded, ModelRecord
from server.store.bundles.residents import Unloaded
from server.store.bundles.serving_models import LONGEST_WAIT, Limit, ServingModels
from server.store.bundles.version_history import VersionHistory

if TYPE_CHECKING:
    from server.recognition.tensor_model import Model

logger = logging.getLogger(__name__)

Seen: TypeAlias = Mapping[str, Mapping[int, Fingerprint]]


class BundleRepository:
    """Loaded models by name.

    `_lock` guards `_records`. `_loading` is held by the one thread that loads: a request for a
    model that serves never waits for it.
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
        on_taken_over: Callable[[str, int | None, int], None] = lambda *_: None,
    ) -> None:
        """`default` is the model for requests that name none, and `pinned` the only version of it
        that may serve. Raises BundleError where the folder holds several models and `default` is
        not among them. on_taken_over: called with the model and the version before and after,
        when a look finds one that takes over."""
        self.folder, self._on_taken_over = folder, on_taken_over
        names = versions(folder)
        self.default = pick_default(names, default, folder)
        self._shelf = ServingModels(self.default, limit or Limit(), on_unloaded)
        self._loader = VersionLoader(folder, load, recipe, self._shelf, on_loaded)
        self._succession = VersionHistory(folder, self.default, pinned)
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._cold = OnDemandLoader(self.load)
        self._records = {name: ModelRecord() for name in names}

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

    def get(
        self, name: str | None = None, version: int | None = None, until: float | None = None
    ) -> Model:
        """The recognizer that serves `name` (the default where None), loaded now if need be.

        It stays in memory for as long as the caller holds it, whatever serves meanwhile. until:
        when a wait for it ends, in seconds of time.monotonic; LONGEST_WAIT from now where None.
        Raises ModelNotFoundError for an unknown name or a version that does not serve,
        NotReadyError while the default or, for longer than that, another is being loaded, and
        where no version of the model may serve.
        """
        name = name or self.default
        recognizer = self._shelf.use(name)
        if recognizer is None:
            if name == self.default:
                raise NotReadyError(self.ready()[1], retry_after=1)
            self._known(name)
            left = LONGEST_WAIT if until is None else min(LONGEST_WAIT, until - time.monotonic())
            recognizer = self._cold.wait(name, left)
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
        record = self._known(name)
        with self._turn_to_load():
            serving = self._shelf.use(name)
            if serving is None:
                serving = self._adopt(name, record, self._succession.order(name))
            if serving is not None:
                return serving
        failures = self.failures(name)
        reason = failures[0].reason if failures else self._none_of(name)
        raise NotReadyError(reason, retry_after=10)

    def _none_of(self, name: str) -> str:
        """That no version of `name` may serve, as one that is not pinned would."""
        pinned, there = self._succession.pinned(name), versions_of(self.folder, name)
        if pinned is None or not there:
            return f"{self.folder / name} holds no version"
        held = ", ".join(map(str, there))
        return f"{self.folder / name} holds no version {pinned}; it holds {held}"

    def refresh(self, name: str) -> Model:
        """Looks at models/NAME again and swaps in the newest version that may serve.

        Raises ModelNotFoundError, or VersionRefusedError where a newer one failed and the old one
        goes on.
        """
        record = self._known(name)
        with self._turn_to_load():
            numbers = self._succession.order(name)
            fresh = self._adopt(name, record, numbers)
            serving = self._shelf.use(name)
            failed = bool(numbers) and record.refused(numbers[0])
        if serving is None or (fresh is None and failed):
            raise VersionRefusedError(self._first_reason(name))
        return serving

    def activate(self, name: str, version: int) -> Model:
        """Serves `version` of `name` from now on, and keeps that choice for the next start.

        Raises ModelNotFoundError, VersionPinnedError, or VersionRefusedError with its fault, in
        which case what served goes on.
        """
        record = self._known(name)
        pinned = self._succession.pinned(name)
        if pinned not in (None, version):
            raise VersionPinnedError(
                f"the setting `version` pins {name} to {pinned}: change it there"
            )
        with self._turn_to_load():
            if version not in versions_of(self.folder, name):
                raise ModelNotFoundError(f"{self.folder / name} holds no version {version}")
            return self._activate(name, record, version)

    def rollback(self, name: str) -> Model:
        """Serves the version that served before this one (or else the next lower that verifies and
        was not passed over), and keeps that choice. Of a model that is not in memory, this one is
        the one that would serve.

        Raises ModelNotFoundError, VersionPinnedError, NothingToRollBackError.
        """
        record = self._known(name)
        pinned = self._succession.pinned(name)
        if pinned is not None:
            raise VersionPinnedError(f"the setting `version` pins {name} to {pinned}")
        with self._turn_to_load():
            now = self._shelf.version(name)
            if now is None:
                now = self._succession.first(name, record)
            for version in self._succession.before(name, record, now):
                try:
                    return self._activate(name, record, version, back=True)
                except VersionRefusedError:
                    continue  # recorded among the failures; the one before may be well
            raise NothingToRollBackError(f"{name} has no other version that served or verifies")

    def look(self, seen: Seen) -> Seen:
        """One look at the folders of loaded models: newer versions are swapped in.

        seen: what the look before returned. A version is tried when its files are as they were
        then, so that one being copied is left alone, and not again until they change.
        """
        found = dict(seen)
        for name in (*self.served(), *(() if self.ready()[0] else (self.default,))):
            try:
                with suppress(NotReadyError), self._turn_to_load():
                    found[name] = self._look_at(name, seen.get(name, {}))
            except OSError as error:
                # The versions of the others are looked at all the same.
                fields = {"model": name, "reason": str(error)}
                logger.warning("model can't be looked at", extra={"fields": fields})
        return found

    def _look_at(self, name: str, seen: Mapping[int, Fingerprint]) -> dict[int, Fingerprint]:
        """The versions of `name` that may serve; a newer one that `seen` had as well is swapped
        in. To be called with the turn to load, since a rollback passes over what it leaves."""
        record, order = self._known(name), self._succession.order(name)
        now = {n: fingerprint(self.folder / name / str(n)) for n in order}
        serving = self._shelf.version(name)
        newer = [n for n in order if serving is None or n > serving]
        fresh = self._adopt(name, record, [n for n in newer if seen.get(n) == now[n]])
        if fresh is not None:
            self._on_taken_over(name, serving, fresh.manifest.version)
        return now

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

    def passed_over(self, name: str) -> tuple[int, ...]:
        """The versions on disk that are newer than the one that serves, and that a person passed
        over, newest first."""
        choice, serving = read_choice(self.folder / name), self._shelf.version(name)
        if choice is None or serving is None:
            return ()
        present = versions_of(self.folder, name)
        return tuple(n for n in present if n > serving and n in choice.skip)

    def failures(self, name: str) -> tuple[Failure, ...]:
        """The versions of `name` on disk that were refused when last tried, newest first."""
        present = versions_of(self.folder, name)
        with self._lock:
            record = self._records.get(name)
        return record.failures(present) if record else ()

    def _known(self, name: str) -> ModelRecord:
        with self._lock:
            record = self._records.get(name)
        if record is None:
            if not versions_of(self.folder, name):
                raise ModelNotFoundError(f"there is no model {name}")
            with self._lock:
                record = self._records.setdefault(name, ModelRecord())
        return record

    def _first_reason(self, name: str) -> str:
        failures = self.failures(name)
        if not failures:
            return f"{self.folder / name} holds no version that may serve"
        return f"version {failures[0].version} of {name} is refused: {failures[0].reason}"

    @contextmanager
    def _turn_to_load(self) -> Iterator[None]:
        if not self._loading.acquire(timeout=LONGEST_WAIT):
            raise NotReadyError("other models are being loaded", retry_after=5)
        try:
            yield
        finally:
            self._loading.release()

    def _adopt(self, name: str, record: ModelRecord, order: Sequence[int]) -> Model | None:
        """Swaps in the first of `order` that verifies, up to the one that serves; a version that
        failed with the same files is not tried again. None where there was no swap."""
        for version in order:
            if version == self._shelf.version(name):
                return None
            content = fingerprint(self.folder / name / str(version))
            if not record.refused(version, content):
                before = self._shelf.version(name)
                try:
                    fresh = self._loader.swap_in(name, record, version, content)
                except VersionRefusedError:
                    continue  # recorded among the failures
                if before is None:
                    self._succession.recall(name, record, version)
                else:
                    self._succession.took_over(name, record, version)
                return fresh
        return None

    def _activate(
        self, name: str, record: ModelRecord, version: int, *, back: bool = False
    ) -> Model:
        """Serves `version`, anew where its files changed, and keeps the choice. On the way `back`,
        what was left is forgotten, so that the next step goes further back."""
        content = fingerprint(self.folder / name / str(version))
        serving = self._shelf.use(name)
        if serving is None:
            self._succession.recall(name, record, version)
        same, before = record.content == content, record.history_before(version)
        if serving is None or serving.manifest.version != version or not same:
            serving = self._loader.swap_in(name, record, version, content)
        if back:
            record.history = before
        self._succession.choose(name, record, version)
        return serving
