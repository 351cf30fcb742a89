"""Files and folders that a cut of power leaves whole.

A file is renamed into place once it is written, so that whoever reads it finds all of the old
content or all of the new; its name is on the disk once its folder is synced (rename(2), fsync(2)).
"""

import os
from contextlib import suppress
from pathlib import Path


def sync(path: Path) -> None:
    """Has the kernel write a file, or a folder's list of files, to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Makes `folder` and those above it that are missing, each synced into the one above it.

    Raises OSError.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def beside(path: Path) -> Path:
    """Where `write_whole` writes what becomes `path`."""
    return path.with_name(f".{path.name}.new")


def write_whole(path: Path, data: bytes, *, synced: bool = True, private: bool = False) -> None:
    """Gives the file `path` the content `data`, whole or not at all.

    synced: once this returns, a cut of power can't undo it. private: the file is readable by its
    owner alone, who stays the owner of the file that was there. For one writer of a file at a
    time. Raises OSError.
    """
    fresh = beside(path)
    try:
        with open(fresh, "wb", opener=_open_private if private else None) as file:
            if private:
                _keep_owner(file.fileno(), path)
            file.write(data)
            file.flush()
            if synced:
                os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
    if synced:
        sync(path.parent)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _keep_owner(descriptor: int, path: Path) -> None:
    os.fchmod(descriptor, 0o600)  # of a file that a cut left there too
    with suppress(FileNotFoundError):
        status = path.stat()
        os.fchown(descriptor, status.st_uid, status.st_gid)
