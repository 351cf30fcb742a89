"""The lock that keeps a second server off the folder `data`.

flock(2) locks belong to an open file, not to a process: the lock ends with the last process that
holds the descriptor, however that process ends, and a worker hands it on to its successor.
"""

import errno
import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from server.errors import StartError
from server.system.files import make_folder
from server.system.handover import Handover

# In the folder `data`; holds the process id of the server that holds the lock.
FILE = "server.lock"
# The name under which a worker leaves the lock's descriptor.
LOCK = "data"
# Seconds for which a server waits for the worker of one that was killed to end too.
PREDECESSOR_TIMEOUT_S, POLL_INTERVAL_S = 10.0, 0.05


class DataLock(NamedTuple):
    """The lock of the folder `data`. descriptor: of the lock's file, which must stay open; None if
    there can be no lock. fault: why the folder's file system gives none, or empty."""

    descriptor: int | None
    fault: str = ""


def lock_data(folder: Path, handover: Handover | None = None) -> DataLock:
    """Locks `folder`, made if it is missing, for the life of this server.

    There is no lock if the folder can't be written to, or if its file system has no locks. Raises
    StartError, with the other's process id, if another server holds the folder.
    """
    inherited = handover.inherited(LOCK) if handover else None
    if inherited is not None and _is_at(inherited, folder / FILE):
        return DataLock(inherited)
    try:
        make_folder(folder)
        descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        return DataLock(None)  # nothing can be kept there, which the server says by itself
    try:
        _wait_for_lock(descriptor, folder)
    except OSError as error:
        os.close(descriptor)
        return DataLock(None, os.strerror(error.errno or 0))
    except StartError:
        os.close(descriptor)
        raise
    with suppress(OSError):  # the lock holds without its holder's name
        # Of the process that the user started.
        pid = os.getppid() if handover else os.getpid()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{pid}\n".encode(), 0)
    if handover:
        with suppress(OSError):
            handover.leave(LOCK, descriptor)
    return DataLock(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Returns whether `descriptor` is still the file at `path`."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _wait_for_lock(descriptor: int, folder: Path) -> None:
    """Raises OSError if there are no locks here, StartError if another server holds this one."""
    give_up = time.monotonic() + PREDECESSOR_TIMEOUT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
        text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        # If the server itself is gone, its worker is about to end.
        if (text.isdigit() and _is_alive(int(text))) or time.monotonic() > give_up:
            raise StartError(
                f"another server, process {text or 'unknown'}, uses the data folder"
                f" {folder.absolute()}: stop it, or give this one a folder of its own by the"
                " setting data"
            )
        time.sleep(POLL_INTERVAL_S)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
