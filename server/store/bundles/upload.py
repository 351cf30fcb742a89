"""Versions that come over the network: unpacked beside the others, checked, then seen whole.

A version is a tar archive of the files of models/NAME/VERSION, without compression, as
`server.store.bundles.archives` reads it. Nothing of it is loaded here.
"""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from server.errors import BundleError, StorageError, VersionExistsError, VersionRefusedError
from server.recognition.manifest import MANIFEST, NAME, SIGNATURE, Manifest, read_bundle
from server.store.bundles.archives import ArchiveReader, Stream
from server.store.bundles.signatures import Signers
from server.system.files import make_folder, read_plain_file, sync

# Folders that are being unpacked into; no version is named so.
PARTIAL_PREFIX = ".arriving-"
PLAIN = re.compile(r"[\w][\w .()+=-]{0,127}")
# Of a file, by any file system.
NAME_BYTES_MAX = 255
FOLDERS = frozenset({"golden", "samples"})
# Times that a folder is made, while other uploads take it away.
FOLDER_ATTEMPTS = 100


def remove_partial_uploads(models: Path) -> None:
    """Removes the folders in models/NAME of uploads that the end of their process cut off."""
    for model in _entries(models):
        for folder in _entries(model):
            if folder.name.startswith(PARTIAL_PREFIX):
                with suppress(OSError):  # one that another upload holds, or that is gone
                    lock = _lock(folder)
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(lock)


def _entries(folder: Path) -> list[Path]:
    """Returns the entries of `folder`; none if it is no folder, or gone."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _lock(folder: Path) -> int:
    """Locks a folder that is being unpacked into, and returns the descriptor that holds the lock
    until it is closed.

    Raises OSError: BlockingIOError if another upload, of this process or another, holds it;
    FileNotFoundError if one has removed it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.stat()
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def import_archive(
    models: Path, name: str, archive: Stream, most: int, signers: Signers | None = None
) -> tuple[int, bool]:
    """Puts the version in `archive` at models/NAME/VERSION; returns its number, and whether it was
    not there before.

    most: bytes that all files together may have. Raises VersionRefusedError for an archive that is
    no intact bundle of `name`, or that none of `signers` signed; VersionExistsError; StorageError
    if it can't be written; and what reading `archive` raises. Nothing of it stays after an error.
    """
    if not NAME.fullmatch(name):
        raise VersionRefusedError(f"a model can't be named {name!r}")
    remove_partial_uploads(models)
    try:
        with _partial_folder(models / name) as folder:
            manifest = _unpack_bundle(archive, folder, most, name, signers or Signers())
            target = models / name / str(manifest.version)
            return manifest.version, _settle(folder, target)
    except OSError as error:
        raise StorageError(
            f"the version can't be written to {models / name}: {error.strerror}"
        ) from None
    finally:
        with suppress(OSError):  # it is kept while there is anything in it
            (models / name).rmdir()


@contextmanager
def _partial_folder(model: Path) -> Iterator[Path]:
    """Makes a new folder in `model` for the length of the block, locked so that nobody takes it for
    a leftover. Raises OSError."""
    folder, lock = _make_partial_folder(model)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make_partial_folder(model: Path) -> tuple[Path, int]:
    attempts = 0
    while True:
        try:
            make_folder(model)
            folder = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=model))
            return folder, _lock(folder)
        except (FileNotFoundError, FileExistsError, BlockingIOError):
            # Another upload that was refused just now may have taken the empty folder away, also
            # between finding it there and looking what it is, or takes the new one for a leftover.
            attempts += 1
            if attempts == FOLDER_ATTEMPTS:
                raise


def _unpack_bundle(
    archive: Stream, folder: Path, most: int, name: str, signers: Signers
) -> Manifest:
    """Returns the manifest of the bundle of `name` that `archive` holds and nothing else, unpacked
    into `folder`, every file checked against its sha256."""
    unpacked = _unpack(archive, folder, most)
    try:
        manifest = read_bundle(folder).manifest
        signers.check(folder)
    except BundleError as error:
        said = str(error).replace(f"{folder}/", "").replace(str(folder), "the archive")
        raise VersionRefusedError(f"the archive is no bundle: {said}") from None
    if manifest.name != name:
        raise VersionRefusedError(f"the archive is of {manifest.name}, not of {name}")
    if unnamed := sorted(unpacked - {MANIFEST, SIGNATURE, *manifest.sha256}):
        raise VersionRefusedError(f"{MANIFEST} does not name {unnamed[0]}, which the archive has")
    return manifest


def _unpack(archive: Stream, folder: Path, most: int) -> set[str]:
    """Writes the archive's files into `folder`; returns their names."""
    names: set[str] = set()
    reader = ArchiveReader(archive, most)
    for member in reader:
        path = PurePosixPath(member.name)
        if member.is_folder:
            if str(path) not in (".", *FOLDERS):
                raise VersionRefusedError(f"a bundle has no folder named {member.name!r}")
            continue
        name = _plain(member.name)
        if name in names:
            raise VersionRefusedError(f"{name!r} comes twice in the archive")
        names.add(name)
        try:
            _write(reader, folder / name)
        except (FileExistsError, IsADirectoryError):
            raise VersionRefusedError(
                f"{name!r} comes in the archive as a file and as a folder"
            ) from None
    return names


def _plain(name: str) -> str:
    """Returns a file's name in an archive as its path in the bundle. Raises VersionRefusedError for
    one that could lead out of it."""
    path = PurePosixPath(name.removeprefix("./"))
    if (
        path.is_absolute()
        or not PLAIN.fullmatch(path.name)
        or len(path.name.encode()) > NAME_BYTES_MAX
        or str(path.parent) not in (".", *FOLDERS)
        or "\\" in name
        or name.endswith("/")
    ):
        raise VersionRefusedError(f"a bundle has no file named {name!r}")
    return str(path)


def _write(reader: ArchiveReader, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("xb") as out:
        while piece := reader.content():
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())


def _settle(folder: Path, target: Path) -> bool:
    """Gives the unpacked version its name, at once and whole; False if it was there already. Its
    bundle.json holds the sha256 of all else, so that it identifies the content."""
    if not target.exists():
        folder.chmod(0o755)
        for made in (folder, *filter(Path.is_dir, folder.iterdir())):
            sync(made)
        try:
            folder.rename(target)
        except OSError:
            if not target.exists():
                raise
            # Another upload of this version was there first.
        else:
            sync(target.parent)
            return True
    there = target / MANIFEST
    with suppress(OSError):
        if read_plain_file(there) == read_plain_file(folder / MANIFEST):
            return False
    raise VersionExistsError(
        f"{target} holds another bundle: give a changed one a new version number"
    )
