"""The model repository: models/NAME/VERSION, verified, loaded, warmed up, checked, then served."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from server.errors import BundleError, ModelNotFoundError, NotReadyError
from server.recognition.manifest import (
    LABELS,
    MANIFEST,
    MODEL,
    NAME,
    Bundle,
    Manifest,
    Recipe,
    read_bundle,
    read_labels,
)

if TYPE_CHECKING:
    from server.recognition.tensors import Model

VERSION = re.compile(r"[1-9][0-9]{0,8}")
Load: TypeAlias = "Callable[[Bundle], Model]"


def versions(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and their versions, newest first, in a folder of bundles. Raises BundleError where it
    is not a folder, or holds nothing that could be a bundle."""
    if not folder.is_dir():
        raise BundleError(f"the models folder {folder} does not exist")
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or not NAME.fullmatch(path.name):
            continue
        numbers = [int(v.name) for v in path.iterdir() if v.is_dir() and VERSION.fullmatch(v.name)]
        if numbers:
            found[path.name] = tuple(sorted(numbers, reverse=True))
    if not found:
        raise BundleError(
            f"the models folder {folder} holds no bundle: expected NAME/VERSION/{MODEL} in it"
        )
    return found


def open_bundle(folder: Path, recipe: Recipe | None = None) -> Bundle:
    """The bundle in `folder`, or a bare model.tflite there, fed by `recipe`.

    Raises BundleError where it is incomplete or damaged.
    """
    if (folder / MANIFEST).exists() or not (folder / MODEL).is_file():
        bundle = read_bundle(folder)
        said = f"{bundle.manifest.name}/{bundle.manifest.version}"
        lies = "/".join(folder.parts[-2:])
        if said != lies:
            raise BundleError(f"{folder / MANIFEST} is of {said}, but lies in {lies}")
        return bundle
    if recipe is None:
        raise BundleError(
            f"{folder} has no {MANIFEST}: set `recipe` to say how an image is fed to its {MODEL}"
        )
    manifest = Manifest(
        name=folder.parent.name,
        version=int(folder.name),
        sha256={},
        recipe=recipe,
        quantization="float32" if recipe.dtype == "float32" else "int8",
    )
    labels = folder / LABELS
    return Bundle(folder, manifest, read_labels(labels) if labels.exists() else ())


def pick_default(names: Mapping[str, object], wanted: str, folder: Path) -> str:
    """The model for requests that name none: `wanted`, or the only one there is.

    Raises BundleError where there are several and `wanted` is not among them.
    """
    if wanted in names:
        return wanted
    if len(names) == 1:
        return next(iter(names))
    raise BundleError(f"{folder} holds {', '.join(names)}, but not {wanted}: set `model` to one")


def newest_intact(
    folder: Path, name: str, numbers: Sequence[int], recipe: Recipe | None = None
) -> Bundle:
    """The highest of the versions `numbers` (newest first) whose files are intact.

    Raises BundleError with the newest one's fault where none is.
    """
    faults = []
    for version in numbers:
        try:
            return open_bundle(folder / name / str(version), recipe)
        except BundleError as error:
            faults.append(error)
    raise faults[0]


class _Task(msgspec.Struct):
    task: str = "classify"


def _task(folder: Path) -> str:
    """What an unverified bundle says its task is; '' where it can't be read."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=_Task).task
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return ""


class Failure(msgspec.Struct, frozen=True):
    """A version that may not serve, and why."""

    version: int
    reason: str


class BundleStore:
    """Loaded models by name.

    `_lock` guards `_serving` and `_failures`; `_loading` holds one lock a name, so that a model is
    loaded once, and no request for another model waits for it.
    """

    def __init__(
        self, folder: Path, default: str, load: Load, recipe: Recipe | None = None
    ) -> None:
        """`default` is the model for requests that name none. Raises BundleError where the folder
        holds several models and `default` is not among them."""
        self.folder, self._load, self._recipe = folder, load, recipe
        names = versions(folder)
        self.default = pick_default(names, default, folder)
        self._lock = threading.Lock()
        self._serving: dict[str, Model] = {}
        self._failures: dict[str, list[Failure]] = {}
        self._loading: dict[str, threading.Lock] = {name: threading.Lock() for name in names}

    def ready(self) -> tuple[bool, str]:
        """Whether the default model serves, and if not, why."""
        with self._lock:
            if self.default in self._serving:
                return True, ""
            failures = self._failures.get(self.default)
        if failures:
            return False, failures[0].reason
        return False, f"the model {self.default} is being loaded"

    def get(self, name: str | None = None, version: int | None = None) -> Model:
        """The recognizer that serves `name` (the default where None), loaded now if need be.

        Raises ModelNotFoundError for an unknown name or version, NotReadyError while the default
        is being loaded or where no version of the model may serve.
        """
        name = name or self.default
        with self._lock:
            recognizer = self._serving.get(name)
            known = name in self._loading
        if not known:
            raise ModelNotFoundError(f"there is no model {name}")
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
        """Loads the highest version of `name` that verifies, unless it serves already.

        Raises NotReadyError with the newest version's reason where none does.
        """
        with self._loading[name]:
            with self._lock:
                if name in self._serving:
                    return self._serving[name]
            failures: list[Failure] = []
            for version in versions(self.folder)[name]:
                try:
                    recognizer = self._load(
                        open_bundle(self.folder / name / str(version), self._recipe)
                    )
                except BundleError as error:
                    failures.append(Failure(version, str(error)))
                else:
                    self._serve(name, recognizer, failures)
                    return recognizer
            self._serve(name, None, failures)
            raise NotReadyError(failures[0].reason, retry_after=10)

    def _serve(self, name: str, recognizer: Model | None, failures: list[Failure]) -> None:
        with self._lock:
            self._failures[name] = failures
            if recognizer is not None:
                self._serving[name] = recognizer

    def served(self) -> dict[str, Model]:
        """The loaded models by name."""
        with self._lock:
            return dict(self._serving)

    def tensor_models(self) -> tuple[str, ...]:
        """The names, in their order, of the models of `task: tensor`, loaded or not."""
        names = []
        for name, numbers in versions(self.folder).items():
            with self._lock:
                model = self._serving.get(name)
            task = model.manifest.task if model else _task(self.folder / name / str(numbers[0]))
            if task == "tensor":
                names.append(name)
        return tuple(names)

    def failures(self, name: str) -> tuple[Failure, ...]:
        """The versions of `name` that were refused when it was last loaded."""
        with self._lock:
            return tuple(self._failures.get(name, ()))
