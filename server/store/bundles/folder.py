"""The models folder of a server: its models and versions, and what was verified of them."""

from collections.abc import Collection
from pathlib import Path
from threading import Lock

from server.config.settings import Settings
from server.errors import BundleError, ModelNotFoundError
from server.recognition.manifest import Bundle, Recipe
from server.store.bundles.layout import Fingerprint, fingerprint, open_bundle, versions, versions_of
from server.store.bundles.signatures import Signers
from server.store.bundles.version_history import VersionHistory


class ModelsFolder:
    """The models in the folder `path`, each with its history.

    `default` is the model for requests that name none, and `pinned` the only version of it that may
    serve. `recipe` feeds a bare model.tflite; only what one of `signers` signed may serve. `_lock`
    guards `_histories` and `_verified`, which holds bundles that were verified and are not loaded
    yet.
    """

    def __init__(
        self,
        path: Path,
        default: str,
        recipe: Recipe | None = None,
        pinned: int | None = None,
        signers: Signers | None = None,
    ) -> None:
        """Raise BundleError if the folder holds no bundle, or several models and `default` is not
        among them."""
        self.path = path
        self._recipe = recipe
        self._pinned = pinned
        self._signers = signers
        self._names = tuple(versions(path))
        self.default = _pick_default(self._names, default, path)
        self._lock = Lock()
        self._histories: dict[str, VersionHistory] = {}
        self._verified: dict[Path, tuple[Fingerprint, Bundle]] = {}

    def history(self, name: str) -> VersionHistory:
        """Return the history of `name`. Raises ModelNotFoundError."""
        with self._lock:
            history = self._histories.get(name)
        if history is None:
            if name not in self._names and not versions_of(self.path, name):
                raise ModelNotFoundError(f"there is no model {name}")
            pinned = self._pinned if name == self.default else None
            with self._lock:
                history = self._histories.setdefault(name, VersionHistory(self.path / name, pinned))
        return history

    def verify_default(self) -> Bundle:
        """Return the first bundle of the default model that may serve and is intact, which `open`
        does not verify again. Raises BundleError with the first one's fault if none is."""
        faults = []
        for version in self.history(self.default).order():
            folder = self.path / self.default / str(version)
            content = fingerprint(folder)
            try:
                bundle = open_bundle(folder, self._recipe, self._signers)
            except BundleError as error:
                faults.append(error)
                continue
            with self._lock:
                self._verified[folder] = content, bundle
            return bundle
        if faults:
            raise faults[0]
        raise BundleError(f"{self.path / self.default} holds no version that may serve")

    def open(self, name: str, version: int, content: Fingerprint) -> Bundle:
        """Return a version whose files, which are `content`, are verified. Raises BundleError."""
        folder = self.path / name / str(version)
        with self._lock:
            verified = self._verified.pop(folder, None)
        if verified is not None and verified[0] == content:
            return verified[1]
        return open_bundle(folder, self._recipe, self._signers)


def models_folder(settings: Settings) -> ModelsFolder:
    """Return the models folder of `settings`. Raises BundleError, and SettingsError for a key of
    `bundle_keys` that can't be used."""
    return ModelsFolder(
        Path(settings.models),
        settings.model,
        settings.recipe,
        settings.version or None,
        Signers(settings.bundle_keys),
    )


def _pick_default(names: Collection[str], wanted: str, folder: Path) -> str:
    """Return the model for requests that name none: `wanted`, or the only one there is.

    Raises BundleError if there are several and `wanted` is not among them.
    """
    if wanted in names:
        return wanted
    if len(names) == 1:
        return next(iter(names))
    raise BundleError(f"{folder} holds {', '.join(names)}, but not {wanted}: set `model` to one")
