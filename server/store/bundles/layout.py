"""The model repository on disk: which names and versions there are, and whether they are intact."""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from server.errors import BundleError
from server.recognition.engines.engine import pick_engine
from server.recognition.manifest import (
    GOLDEN,
    LABELS,
    MANIFEST,
    MODEL,
    MODEL_FILES,
    NAME,
    Bundle,
    Manifest,
    Recipe,
    read_bundle,
    read_labels,
    read_task,
)
from server.recognition.tasks import TaskName
from server.store.bundles.signatures import Signers
from server.system.files import read_plain_file

VERSION = re.compile(r"[1-9][0-9]{0,8}")
Fingerprint: TypeAlias = tuple[tuple[str, int, int], ...]


def versions_of(folder: Path, name: str) -> tuple[int, ...]:
    """Return the versions of `name` in a folder of bundles, newest first; none for an unknown
    name."""
    path = folder / name
    if not NAME.fullmatch(name) or not path.is_dir():
        return ()
    numbers = [int(v.name) for v in path.iterdir() if v.is_dir() and VERSION.fullmatch(v.name)]
    return tuple(sorted(numbers, reverse=True))


def versions(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the names and their versions, newest first, in a folder of bundles. Raises BundleError
    if it is not a folder, or holds nothing that could be a bundle."""
    if not folder.is_dir():
        raise BundleError(f"the models folder {folder} does not exist")
    all_numbers = {path.name: versions_of(folder, path.name) for path in sorted(folder.iterdir())}
    models = {name: numbers for name, numbers in all_numbers.items() if numbers}
    if not models:
        raise BundleError(
            f"the models folder {folder} holds no bundle: expected NAME/VERSION/{MODEL} in it"
        )
    return models


def open_bundle(
    folder: Path, recipe: Recipe | None = None, signers: Signers | None = None
) -> Bundle:
    """Return the bundle in `folder`, or a bare model there (the first of MODEL_FILES), fed by
    `recipe`.

    Raises BundleError if it is incomplete or damaged, if what lies around a bare model says that it
    is a bundle whose copy is under way, if none of `signers` signed it, or if the engine of its
    model is not installed.
    """
    bundle = _read_any(folder, recipe)
    if signers:
        signers.check(folder)
    pick_engine(bundle.model_path, bundle.manifest.engine)
    return bundle


def _read_any(folder: Path, recipe: Recipe | None) -> Bundle:
    bare = next((name for name in MODEL_FILES if (folder / name).is_file()), None)
    if (folder / MANIFEST).exists() or bare is None:
        bundle = read_bundle(folder)
        said = f"{bundle.manifest.name}/{bundle.manifest.version}"
        lies = "/".join(folder.parts[-2:])
        if said != lies:
            raise BundleError(f"{folder / MANIFEST} is of {said}, but lies in {lies}")
        return bundle
    if recipe is None:
        raise BundleError(
            f"{folder} has no {MANIFEST}: set `recipe` to say how an image is fed to its {bare}"
        )
    if (folder / GOLDEN).exists() or _has_bundles(folder.parent):
        raise BundleError(
            f"{folder} has no {MANIFEST}, and is no bare {bare} either: a {GOLDEN} folder in it or"
            f" a {MANIFEST} in another version says that its copy was cut off, or is under way"
        )
    manifest = Manifest(
        name=folder.parent.name,
        version=int(folder.name),
        sha256={},
        recipe=recipe,
        quantization="float32" if recipe.dtype == "float32" else "int8",
    )
    labels = folder / LABELS
    return Bundle(folder, manifest, read_labels(labels) if labels.exists() else (), bare)


def _has_bundles(model: Path) -> bool:
    """Return whether a version in models/NAME has a bundle.json."""
    return any((model / str(n) / MANIFEST).exists() for n in versions_of(model.parent, model.name))


def task_of(folder: Path) -> TaskName:
    """Return the task that an unverified bundle names; `classify` without a known one."""
    try:
        return read_task(read_plain_file(folder / MANIFEST)) or "classify"
    except OSError:
        return "classify"


def policy_path(folder: Path) -> Path:
    """Return the file that keeps the verdict policy which was set on this device for the version in
    `folder`."""
    return folder.parent / f"policy-{folder.name}.json"


def engine_path(folder: Path) -> Path:
    """Return the file that keeps which engine `bench` found the quickest on this device for the
    version in `folder`."""
    return folder.parent / f"engine-{folder.name}.json"


def fingerprint(folder: Path) -> Fingerprint:
    """Return path, size and time of change (ns) of every file in `folder`, and of the version's
    policy: shows, without reading them, whether a version has changed."""
    files = []
    for path in (*sorted(folder.rglob("*")), policy_path(folder)):
        with suppress(OSError):  # a file that goes while a copy is under way is another fingerprint
            status = path.stat()
            files.append((os.path.relpath(path, folder), status.st_size, status.st_mtime_ns))
    return tuple(files)
