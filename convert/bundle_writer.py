"""Writes a bundle to models/NAME/VERSION: whole and checked, or not at all."""

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from convert.errors import ConvertError
from server.errors import BundleError
from server.recognition import frame
from server.recognition.admission import Admission
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import (
    LABELS,
    MANIFEST,
    MODEL,
    NAME,
    Bundle,
    Manifest,
    digest,
    read_bundle,
)
from server.recognition.recognizer import Recognizer
from server.recognition.tensor_model import make_model
from server.values.labels import Label

VERSION = re.compile(r"[1-9][0-9]{0,8}")
# Bundles that an error message lists.
MAX_LISTED = 10


def next_version(models: Path, name: str) -> int:
    """Return the next version of `name` in the folder of bundles; 1 if there is none."""
    folder = models / name
    taken = [int(p.name) for p in folder.glob("*") if VERSION.fullmatch(p.name)]
    return max(taken, default=0) + 1


def check_free(models: Path, name: str, version: int) -> Path:
    """Return the bundle's folder. Raises ConvertError if the name or version can't be used."""
    if not NAME.fullmatch(name):
        raise ConvertError(
            f"the name {name!r} is not usable in an address: letters, digits, dot, dash and"
            " underscore, at most 64"
        )
    if not VERSION.fullmatch(str(version)):
        raise ConvertError(f"the version {version} should be a whole number from 1")
    folder = models / name / str(version)
    if folder.exists():
        raise ConvertError(f"{folder} exists already: without --version the next one is written")
    return folder


def labels_text(labels: Sequence[Label]) -> str:
    """labels.txt: `LABEL` or `ID<TAB>LABEL` a line, in output order."""
    return "".join(f"{x.id}\t{x.name}\n" if x.id else f"{x.name}\n" for x in labels)


def write_bundle(
    models: Path,
    manifest: Manifest,
    model: bytes,
    labels: Sequence[Label],
    files: Mapping[str, bytes | Path],
    model_file: str = MODEL,
) -> Path:
    """Write models/NAME/VERSION and returns it; `manifest.sha256` is filled in here.

    model_file: the model's name in the bundle. files: what else goes in, by its path in the bundle,
    as bytes or a file to copy. Everything is written to a temporary folder beside, loaded and
    checked there by the server's own code (files, tensors, golden frames), and renamed at the end,
    so that a server never sees half a bundle.

    Raises ConvertError if the place is taken or the server would not serve the result.
    """
    target = check_free(models, manifest.name, manifest.version)
    made = [path for path in (target.parent, models) if not path.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # mkdtemp's folder is its owner's alone, and a server may run as another user.
        outer = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise ConvertError(f"{target} can't be written: {error.strerror}") from None
    folder = outer / target.name
    try:
        folder.mkdir()
        contents: dict[str, bytes | Path] = {
            **files,
            model_file: model,
            LABELS: labels_text(labels).encode(),
        }
        for name, content in contents.items():
            _put(folder / name, content)
        sha256 = {name: digest(folder / name) for name in sorted(contents)}
        manifest = msgspec.structs.replace(manifest, sha256=sha256)
        text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
        (folder / MANIFEST).write_bytes(text + b"\n")
        check(folder)
        folder.rename(target)
    except (BundleError, OSError) as error:
        raise ConvertError(f"no bundle was written to {target}: {error}") from None
    finally:
        shutil.rmtree(outer)
        for path in made:
            # One that holds the bundle, or another process's, is not empty.
            with suppress(OSError):
                path.rmdir()
    return target


def _put(path: Path, content: bytes | Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_bytes(content)


def check(folder: Path) -> None:
    """Raise BundleError if the server would not serve the bundle in `folder`."""
    bundle = read_bundle(folder)
    pool = InterpreterPool(bundle.model_path, 1, 1)
    make_model(bundle, pool, Admission(1, 1), frame.Limits())


def load(folder: Path) -> Recognizer:
    """Load a bundle as the server would, with one interpreter of one thread.

    Raises ConvertError if the folder is no bundle, and BundleError if the server would refuse it.
    """
    if not (folder / MANIFEST).is_file():
        raise ConvertError(f"{folder} is not a bundle (models/NAME/VERSION){_bundles_near(folder)}")
    bundle: Bundle = read_bundle(folder)
    pool = InterpreterPool(bundle.model_path, 1, 1)
    return Recognizer(bundle, pool, Admission(1, 1), frame.Limits())


def _bundles_near(folder: Path) -> str:
    """List the bundles in the nearest folder that exists, as the end of a message."""
    for root in (folder, folder.parent, folder.parent.parent):
        manifests = [*root.glob(f"*/{MANIFEST}"), *root.glob(f"*/*/{MANIFEST}")]
        bundles = sorted(
            str(path.parent) for path in manifests if VERSION.fullmatch(path.parent.name)
        )
        if bundles:
            more = ", ..." if len(bundles) > MAX_LISTED else ""
            return f"; there are {', '.join(bundles[:MAX_LISTED])}{more}"
    return ""
