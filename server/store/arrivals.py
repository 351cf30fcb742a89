"""Versions that come over the network: unpacked beside the others, checked, then seen whole.

A version is a tar archive (POSIX.1-1988 ustar, or GNU's or PAX's extensions) of the files of
models/NAME/VERSION, without compression. Nothing of it is loaded here.
"""

import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO

from server.errors import BundleError, StorageError, VersionExistsError, VersionRefusedError
from server.recognition.manifest import MANIFEST, NAME, read_bundle
from server.store.files import make_folder, sync

# Folders that are being unpacked into; no version is named so.
ARRIVING = ".arriving-"
PLAIN = re.compile(r"[\w][\w .()+=-]{0,127}")
FOLDERS = frozenset({"golden", "samples"})
MOST_FILES = 1000
# Times that a model's folder is made, while other arrivals take it away.
ATTEMPTS = 100


def clean(models: Path) -> None:
    """Removes what arrivals that were cut off by the machine's end left in models/NAME."""
    for left in models.glob(f"*/{ARRIVING}*"):
        shutil.rmtree(left, ignore_errors=True)


def receive(models: Path, name: str, archive: IO[bytes], most: int) -> tuple[int, bool]:
    """Puts the version in `archive` at models/NAME/VERSION; returns its number, and whether it was
    not there before.

    most: bytes that all files together may have. Raises VersionRefusedError for an archive that is
    no intact bundle of `name`, VersionExistsError, or StorageError where it can't be written;
    whichever is raised, nothing of it stays.
    """
    if not NAME.fullmatch(name):
        raise VersionRefusedError(f"a model can't be named {name!r}")
    made = None
    try:
        made = _make_arriving(models / name)
        _unpack(archive, made, most)
        version = _checked(made, name)
        return version, _settle(made, models / name / str(version))
    except OSError as error:
        raise StorageError(
            f"the version can't be written to {models / name}: {error.strerror}"
        ) from None
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        with suppress(OSError):  # it is kept while there is anything in it
            (models / name).rmdir()


def _make_arriving(folder: Path) -> Path:
    """A new folder in `folder`. Raises OSError."""
    attempts = 0
    while True:
        try:
            make_folder(folder)
            return Path(tempfile.mkdtemp(prefix=ARRIVING, dir=folder))
        except (FileNotFoundError, FileExistsError):
            # Another arrival that was refused just now may have taken the empty folder away, also
            # between finding it there and looking what it is.
            attempts += 1
            if attempts == ATTEMPTS:
                raise


def _unpack(archive: IO[bytes], folder: Path, most: int) -> None:
    # Imported with the first archive, since most servers never see one.
    import tarfile

    left = most
    try:
        with tarfile.open(fileobj=archive, mode="r|") as members:
            for count, member in enumerate(members):
                if count >= MOST_FILES:
                    raise VersionRefusedError(f"the archive has more than {MOST_FILES} files")
                if member.isdir():
                    continue
                left -= member.size
                if left < 0:
                    raise VersionRefusedError(
                        f"the files of the archive have more than max_bundle_mb, {most / 1e6:g} MB"
                    )
                content = members.extractfile(member) if member.isreg() else None
                if content is None:
                    raise VersionRefusedError(f"{member.name!r} in the archive is no plain file")
                _write(content, folder / _plain(member.name))
    except FileExistsError:
        raise VersionRefusedError(
            f"{member.name!r} comes twice in the archive, or as a file and as a folder"
        ) from None
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
        raise VersionRefusedError(f"the body is no tar archive, or cut off: {error}") from None


def _plain(name: str) -> Path:
    """A name in an archive as a path in the bundle. Raises VersionRefusedError for one that could
    lead out of it."""
    path = PurePosixPath(name.removeprefix("./"))
    folder, last = path.parent, path.name
    if (
        path.is_absolute()
        or not PLAIN.fullmatch(last)
        or str(folder) not in (".", *FOLDERS)
        or "\\" in name
    ):
        raise VersionRefusedError(f"a bundle has no file named {name!r}")
    return Path(path)


def _write(content: IO[bytes], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("xb") as out:
        shutil.copyfileobj(content, out)
        out.flush()
        os.fsync(out.fileno())


def _checked(folder: Path, name: str) -> int:
    """The version in `folder`, every file checked against its sha256."""
    try:
        manifest = read_bundle(folder).manifest
    except BundleError as error:
        said = str(error).replace(f"{folder}/", "").replace(str(folder), "the archive")
        raise VersionRefusedError(f"the archive is no bundle: {said}") from None
    if manifest.name != name:
        raise VersionRefusedError(f"the archive is of {manifest.name}, not of {name}")
    return manifest.version


def _settle(folder: Path, target: Path) -> bool:
    """Gives the unpacked version its name, at once and whole; False where it was there already.
    Its bundle.json holds the sha256 of all else, so that it stands for the content."""
    if not target.exists():
        folder.chmod(0o755)
        for made in (folder, *filter(Path.is_dir, folder.iterdir())):
            sync(made)
        try:
            folder.rename(target)
        except OSError:
            if not target.exists():
                raise
            # Another arrival of this version was there first.
        else:
            sync(target.parent)
            return True
    there = target / MANIFEST
    if there.is_file() and there.read_bytes() == (folder / MANIFEST).read_bytes():
        return False
    raise VersionExistsError(
        f"{target} holds another bundle: give a changed one a new version number"
    )
