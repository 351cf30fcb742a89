"""Files and folders that a cut of power leaves whole, and the one way to open files for reading.

A file is renamed into place once it is written, so that a reader finds all of the old content or
all of the new; its name is on the disk once its folder is synced (rename(2), fsync(2)).

Files of the models and data folders are read by `read_plain_file`: a FIFO under the name of a file
would block its reader until somebody writes into it, a device may never end, and a file that is too
large fills the memory.
"""

import errno
import os
import re
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

# Damaged files of one name that are kept.
SET_ASIDE_MAX = 2


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
    """Returns the path under which `write_whole` writes what becomes `path`."""
    return path.with_name(f".{path.name}.new")


def write_whole(path: Path, data: bytes, *, synced: bool = True, private: bool = False) -> None:
    """Gives the file `path` the content `data`, whole or not at all.

    synced: once this returns, a cut of power can't undo it. private: the file is readable by its
    owner alone, who stays the owner of the file that was there. For one writer of a file at a
    time. Raises OSError.
    """
    fresh = beside(path)
    try:
        _remove_other_kind(fresh)
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


def _remove_other_kind(path: Path) -> None:
    """Removes anything but a plain file from the path of one to be written: a FIFO would block."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            path.unlink()


def set_aside(path: Path, companions: Sequence[str] = ()) -> Path | None:
    """Renames the file or folder at `path` to NAME.damaged-TIME, with the files beside it whose
    names end in one of `companions` more; returns the new path, None if nothing was there.

    Of one name SET_ASIDE_MAX are kept; what was set aside before those is removed, but for folders
    that hold something. Raises OSError.
    """
    name = f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    aside, number = path.with_name(name), 1
    while any(os.path.lexists(f"{aside}{end}") for end in ("", *companions)):
        number += 1
        aside = path.with_name(f"{name}-{number}")
    moved = None
    for end in (*companions, ""):
        with suppress(FileNotFoundError):
            path.with_name(path.name + end).rename(aside.with_name(aside.name + end))
            moved = aside
    if moved is not None:
        sync(path.parent)
        _remove_oldest(path, companions, aside)
    return moved


def _remove_oldest(path: Path, companions: Sequence[str], newest: Path) -> None:
    ours = re.compile(re.escape(path.name) + r"\.damaged-[0-9]{8}T[0-9]{6}Z(-[0-9]+)?")
    names = sorted(each.name for each in path.parent.iterdir() if ours.fullmatch(each.name))
    # Never the newest, which a clock that was set back calls the oldest.
    others = [name for name in names if name != newest.name]
    for name in others[: max(0, len(others) - (SET_ASIDE_MAX - 1))]:
        for end in (*companions, ""):
            _remove(path.with_name(name + end))


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _keep_owner(descriptor: int, path: Path) -> None:
    os.fchmod(descriptor, 0o600)  # of a file that a cut left there too
    with suppress(FileNotFoundError):
        status = path.stat()
        os.fchown(descriptor, status.st_uid, status.st_gid)


# Bytes of a file that holds settings, names or a bundle's description.
SMALL_FILE_MAX = 16 << 20
# Bytes of a model: FlatBuffers address no more.
MODEL_MAX = 2 << 30
# Bytes of an image file of a bundle or a sample.
IMAGE_MAX = 256 << 20

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def refuse_other_kinds(status: os.stat_result, path: Path) -> None:
    """Raises OSError (EINVAL) if `status` is of anything but a plain file; `strerror` says of
    what."""
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "of an unknown kind")
        raise OSError(errno.EINVAL, f"it is {kind}, not a plain file", str(path))


def open_plain_file(path: Path, most: int) -> BufferedReader:
    """Opens a plain file of at most `most` bytes for reading; never waits for another process.

    Follows symbolic links. Raises OSError: FileNotFoundError if there is none, EINVAL if it is not
    a plain file, EFBIG if it is larger; `strerror` says which.
    """
    # Looked at before it is opened, since opening a device may do something.
    refuse_other_kinds(path.stat(), path)
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK)
    except BlockingIOError:
        # A file server has leased the plain file out (fcntl(2), F_SETLEASE), and gives it back.
        descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        refuse_other_kinds(status, path)
        if status.st_size > most:
            raise OSError(
                errno.EFBIG, f"it has {status.st_size} bytes, more than {most}", str(path)
            )
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_plain_file(path: Path, most: int = SMALL_FILE_MAX) -> bytes:
    """Returns the content of a plain file of at most `most` bytes. Raises OSError as
    `open_plain_file` does, also if the file grows beyond that meanwhile."""
    with open_plain_file(path, most) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
    return data
