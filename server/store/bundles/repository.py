"""The live model repository: versions verified, loaded, warmed up, checked, then swapped in.

It decides when a version of a model is loaded or unloaded; `Load` decides what it must pass before
it serves.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeAlias

from server.errors import (
    BundleError,
    LinesideError,
    ModelNotFoundError,
    NothingToRollBackError,
    NotReadyError,
    StartError,
    VersionPinnedError,
    VersionRefusedError,
)
from server.recognition.manifest import DevicePolicy
from server.recognition.tasks import TaskName, load_task
from server.store.bundles.folder import ModelsFolder
from server.store.bundles.layout import Fingerprint, fingerprint, task_of, versions
from server.store.bundles.loader import Load, Loaded, OnDemandLoader, VersionLoader
from server.store.bundles.policies import (
    PolicyState,
    keep_policy,
    load_policy,
    make_policy,
    policy_state,
    remove_policy,
)
from server.store.bundles.serving_models import LOAD_TIMEOUT_S, Limit, ServingModels, Unloaded
from server.store.bundles.version_history import Failure, VersionHistory

if TYPE_CHECKING:
    from server.recognition.manifest import Bundle, Manifest, VerdictPolicy
    from server.recognition.tensor_model import Model

logger = logging.getLogger(__name__)

# The files of each version, by model.
Fingerprints: TypeAlias = Mapping[str, Mapping[int, Fingerprint]]


class BundleRepository:
    """Loaded models by name.

    `_loading` is held by the one thread that loads: a request for a model that serves never waits
    for it.
    """

    def __init__(
        self,
        models: ModelsFolder,
        load: Load,
        *,
        limit: Limit | None = None,
        on_loaded: Callable[[Loaded], None] = lambda _: None,
        on_unloaded: Callable[[Unloaded], None] = lambda _: None,
        on_taken_over: Callable[[str, int | None, int], None] = lambda *_: None,
        import_engine: Callable[[Bundle], object] = lambda _: None,
    ) -> None:
        """import_engine: as of VersionLoader. on_taken_over: called with the model and the version
        before and after, when a look finds one that takes over."""
        self.folder = models.path
        self.default = models.default
        self._models = models
        self._on_taken_over = on_taken_over
        self._serving = ServingModels(self.default, limit or Limit(), on_unloaded)
        self._loader = VersionLoader(models, load, self._serving, on_loaded, import_engine)
        self._loading = threading.Lock()
        self._on_demand = OnDemandLoader(self.load)

    def ready(self) -> tuple[bool, str]:
        """Says whether the default model serves and may answer, and if not, why."""
        model = self._serving.all().get(self.default)
        if model is not None:
            return not model.unfit, model.unfit
        failures = self.failures(self.default)
        if failures:
            return False, failures[0].reason
        return False, f"the model {self.default} is being loaded"

    def memory(self) -> dict[str, int]:
        """Returns the bytes in memory by model, versions included that only finish their last
        frames."""
        return self._serving.residents.by_name()

    def get(
        self, name: str | None = None, version: int | None = None, until: float | None = None
    ) -> Model:
        """Returns the model that serves `name` (the default if None), loaded now if need be.

        It stays in memory for as long as the caller holds it, whatever serves meanwhile. until:
        when a wait for it ends, in seconds of time.monotonic; LOAD_TIMEOUT_S from now if None.
        Raises ModelNotFoundError for an unknown name or a version that does not serve,
        NotReadyError while the default or, for longer than that, another is being loaded, if no
        version of the model may serve, and while the one that does misses its golden checks.
        """
        name = name or self.default
        model = self._serving.get(name)
        if model is None:
            if name == self.default:
                raise NotReadyError(self.ready()[1], retry_after=1)
            self._models.history(name)
            seconds = LOAD_TIMEOUT_S
            if until is not None:
                seconds = min(seconds, until - time.monotonic())
            model = self._on_demand.wait(name, seconds)
        if model.unfit:
            raise NotReadyError(model.unfit, retry_after=10)
        if version is not None and model.manifest.version != version:
            raise ModelNotFoundError(
                f"version {version} of {name} is not served; {model.manifest.version} is"
            )
        return model

    def load(self, name: str) -> Model:
        """Loads the first version of `name` that may serve and verifies, unless one serves already.

        Raises ModelNotFoundError for an unknown name, NotReadyError with the first version's
        reason if none does, or if the memory budget has no room.
        """
        history = self._models.history(name)
        with self._turn_to_load():
            serving = self._serving.get(name) or self._adopt(history, history.order())
            if serving is not None:
                return serving
        failures = history.failures()
        reason = failures[0].reason if failures else self._none_of(history)
        raise NotReadyError(reason, retry_after=10)

    def _none_of(self, history: VersionHistory) -> str:
        """Says that no version of the model may serve, as one that is not pinned would."""
        present = history.present()
        if history.pinned is None or not present:
            return f"{history.folder} holds no version"
        numbers = ", ".join(map(str, present))
        return f"{history.folder} holds no version {history.pinned}; it holds {numbers}"

    def on_trial(self, name: str, version: int) -> Model:
        """Returns a version that may not serve, verified and loaded beside the one that does, and
        out of memory once the caller lets it go. Raises ModelNotFoundError, VersionRefusedError
        with its fault, which is not remembered, and NotReadyError if the memory budget has no
        room."""
        if model := self._model_of(name, version):
            return model
        history = self._models.history(name)
        with self._turn_to_load():
            if version not in history.present():
                raise ModelNotFoundError(f"{history.folder} holds no version {version}")
            content = fingerprint(history.folder / str(version))
            return self._loader.make_beside(name, version, content)

    def refresh(self, name: str) -> Model:
        """Looks at models/NAME again and swaps in the newest version that may serve.

        Raises ModelNotFoundError, or VersionRefusedError if a newer one failed and the old one
        goes on.
        """
        history = self._models.history(name)
        with self._turn_to_load():
            order = history.order()
            fresh = self._adopt(history, order)
            serving = self._serving.get(name)
            failed = bool(order) and history.is_refused(order[0])
        if serving is None or (fresh is None and failed):
            raise VersionRefusedError(_first_reason(history))
        return serving

    def unload(self, name: str) -> None:
        """Frees the memory of `name` once its last frame is answered; the next request for it loads
        it again. Raises ModelNeededError for one that stays loaded, and NotReadyError."""
        with self._turn_to_load():
            self._serving.unload(name)

    def activate(self, name: str, version: int) -> Model:
        """Serves `version` of `name` from now on, and keeps that choice for the next start.

        Raises ModelNotFoundError, VersionPinnedError, or VersionRefusedError with its fault, in
        which case the version before goes on.
        """
        history = self._models.history(name)
        if history.pinned not in (None, version):
            raise VersionPinnedError(
                f"the setting `version` pins {name} to {history.pinned}: change it there"
            )
        with self._turn_to_load():
            if version not in history.present():
                raise ModelNotFoundError(f"{history.folder} holds no version {version}")
            return self._activate(history, version)

    def rollback(self, name: str) -> Model:
        """Serves the version that served before this one (or else the next lower that verifies and
        was not passed over), and keeps that choice. Of a model that is not in memory, this one is
        the one that would serve.

        Raises ModelNotFoundError, VersionPinnedError, NothingToRollBackError.
        """
        history = self._models.history(name)
        if history.pinned is not None:
            raise VersionPinnedError(f"the setting `version` pins {name} to {history.pinned}")
        with self._turn_to_load():
            serving = self._serving.version(name)
            if serving is None:
                serving = history.first()
            for version in history.rollback_order(serving):
                try:
                    return self._activate(history, version, back=True)
                except VersionRefusedError:
                    continue  # recorded among the failures; the one before may be well
            raise NothingToRollBackError(f"{name} has no other version that served or verifies")

    def look(self, before: Fingerprints) -> Fingerprints:
        """Looks once at the folders of loaded models: newer versions are swapped in. A folder that
        can't be looked at is logged, and looked at again the next time.

        before: the result of the last look. A version is tried when its files are as they were
        then, so that one being copied is left alone, and not again until they change.
        """
        now = dict(before)
        for name in dict.fromkeys((*self.served(), self.default)):
            try:
                with suppress(NotReadyError), self._turn_to_load():
                    now[name] = self._look_at(name, before.get(name, {}))
            except (LinesideError, StartError, OSError) as error:
                fields = {"model": name, "reason": str(error)}
                logger.warning("model can't be looked at", extra={"fields": fields})
        return now

    def _look_at(self, name: str, before: Mapping[int, Fingerprint]) -> dict[int, Fingerprint]:
        """Returns the versions of `name` that may serve; a newer one that `before` had as well is
        swapped in. To be called with the turn to load, since a rollback passes over what it
        leaves."""
        history = self._models.history(name)
        order = history.order()
        now = {n: fingerprint(history.folder / str(n)) for n in order}
        serving = self._serving.version(name)
        newer = [n for n in order if serving is None or n > serving]
        fresh = self._adopt(history, [n for n in newer if before.get(n) == now[n]])
        if fresh is not None:
            self._on_taken_over(name, serving, fresh.manifest.version)
        return now

    def served(self) -> dict[str, Model]:
        return self._serving.all()

    def manifest_of(self, name: str, version: int) -> Manifest | None:
        """Returns the manifest of this version, None if it does not serve."""
        model = self._model_of(name, version)
        return model.manifest if model else None

    def _model_of(self, name: str, version: int) -> Model | None:
        model = self._serving.all().get(name)
        return model if model and model.manifest.version == version else None

    def policy_of(self, name: str, version: int) -> VerdictPolicy | None:
        """Returns the verdict policy in force, None if there is none or this version does not
        serve."""
        model = self._model_of(name, version)
        return model.reader.policy if model else None

    def policy(self, name: str, version: int | None = None) -> PolicyState:
        """Returns the state of the verdict policy of a version, by default of the one that serves.

        Raises what `get` raises, and VersionRefusedError if the version or its policy is damaged.
        """
        if version is None:
            version = self.get(name).manifest.version
        if model := self._model_of(name, version):
            return policy_state(model.bundle, model.device_policy)
        bundle = self._open(name, version)
        try:
            return policy_state(bundle, load_policy(bundle))
        except BundleError as error:
            raise _refused(name, version, error) from None

    def set_policy(
        self, name: str, version: int, policy: object, at: str = "", caller: str = ""
    ) -> None:
        """Judges by `policy`, of plain values, from the next frame of `version` on, also after a
        restart; by the bundle's if it is None. at, caller: as in DevicePolicy. A version that its
        damaged policy kept from serving may serve again.

        Raises ModelNotFoundError, InvalidFieldError that names the field, VersionRefusedError for a
        damaged version, StorageError and NotReadyError, and then changes nothing.
        """
        history = self._models.history(name)
        with self._turn_to_load():
            if version not in history.present():
                raise ModelNotFoundError(f"{history.folder} holds no version {version}")
            model, device = self._model_of(name, version), None
            if policy is None:
                remove_policy(history.folder / str(version))
            else:
                bundle = model.bundle if model else self._open(name, version)
                device = DevicePolicy(make_policy(policy, bundle), at, caller)
                keep_policy(bundle, device)
            if model:
                model.use_policy(device)
            elif history.is_refused(version) and self._serving.version(name) is None:
                with suppress(NotReadyError):
                    self._adopt(history, history.order())

    def _open(self, name: str, version: int) -> Bundle:
        """Returns a bundle that may not be loaded. Raises ModelNotFoundError and
        VersionRefusedError."""
        history = self._models.history(name)
        if version not in history.present():
            raise ModelNotFoundError(f"{history.folder} holds no version {version}")
        try:
            return self._models.open(name, version, fingerprint(history.folder / str(version)))
        except BundleError as error:
            raise _refused(name, version, error) from None

    def bundle(self, name: str, version: int | None = None) -> Bundle:
        """Returns the bundle of a version, loaded or not; by default of the one that serves or is
        tried first. Raises ModelNotFoundError, and VersionRefusedError for a damaged one."""
        if version is None:
            order = self._models.history(name).order()
            version = self._serving.version(name) or next(iter(order), 0)
        model = self._model_of(name, version)
        return model.bundle if model else self._open(name, version)

    def need(self, name: str) -> None:
        """Keeps the model `name` in memory beside the default one, in place of that of the call
        before."""
        self._serving.needed = name

    def tensor_models(self) -> tuple[str, ...]:
        """Returns the names, in their order, of the models that take only tensors, loaded or
        not."""
        return tuple(
            name
            for name, numbers in versions(self.folder).items()
            if not load_task(self.task(name, numbers[0])).takes_images
        )

    def task(self, name: str, newest: int) -> TaskName:
        """Returns the task of the version that serves, else of the version `newest`."""
        model = self._serving.all().get(name)
        return model.manifest.task if model else task_of(self.folder / name / str(newest))

    def passed_over(self, name: str) -> tuple[int, ...]:
        """Returns the versions on disk that are newer than the one that serves, and that a person
        passed over, newest first."""
        serving = self._serving.version(name)
        return () if serving is None else self._models.history(name).passed_over(serving)

    def failures(self, name: str) -> tuple[Failure, ...]:
        """Returns the versions of `name` on disk that were refused when last tried, newest
        first."""
        with suppress(ModelNotFoundError):
            return self._models.history(name).failures()
        return ()

    @contextmanager
    def _turn_to_load(self) -> Iterator[None]:
        if not self._loading.acquire(timeout=LOAD_TIMEOUT_S):
            raise NotReadyError("other models are being loaded", retry_after=5)
        try:
            yield
        finally:
            self._loading.release()

    def _adopt(self, history: VersionHistory, order: Sequence[int]) -> Model | None:
        """Swaps in the first of `order` that verifies, up to the one that serves; a version that
        failed with the same files is not tried again. Returns None if there was no swap."""
        before = self._serving.version(history.name)
        for version in order:
            if version == before:
                return None
            content = fingerprint(history.folder / str(version))
            if history.is_refused(version, content):
                continue
            try:
                fresh = self._loader.swap_in(history, version, content)
            except VersionRefusedError:
                continue  # recorded among the failures
            if before is None:
                history.recall(version)
            else:
                history.keep_successor(version)
            return fresh
        return None

    def _activate(self, history: VersionHistory, version: int, *, back: bool = False) -> Model:
        """Serves `version`, loaded again if its files changed or it is unfit, and keeps the choice.
        On the way `back`, the version that was left is forgotten, so that the next step goes
        further back."""
        content = fingerprint(history.folder / str(version))
        serving = self._serving.get(history.name)
        if serving is None:
            history.recall(version)
        same, served = history.content == content, history.served_before(version)
        if serving and (serving.manifest.version != version or not same or serving.unfit):
            serving = None
        if serving is None:
            serving = self._loader.swap_in(history, version, content)
        history.keep_chosen(version, served if back else None)
        return serving


def _refused(name: str, version: int, reason: object) -> VersionRefusedError:
    return VersionRefusedError(f"version {version} of {name} is refused: {reason}")


def _first_reason(history: VersionHistory) -> str:
    failures = history.failures()
    if not failures:
        return f"{history.folder} holds no version that may serve"
    return str(_refused(history.name, failures[0].version, failures[0].reason))
