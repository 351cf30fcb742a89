"""The one way by which files of the models and data folders are opened for reading.

A FIFO under the name of a file would block its reader until somebody writes into it, a device may
never end, and a file that is too large fills the memory.
"""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

# Bytes of a file that holds settings, names or a bundle's description.
SMALL_FILE_MAX = 16 << 20
# Bytes of a model: FlatBuffers address no more.
MODEL_MAX = 2 << 30
# Bytes of an image file that lies in a bundle or among the samples.
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
    """The content of a plain file of at most `most` bytes. Raises OSError as `open_plain_file`
    does, also if the file grows beyond that meanwhile."""
    with open_plain_file(path, most) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
    return data
