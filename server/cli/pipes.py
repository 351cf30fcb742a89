"""Ends a command whose output nobody takes: its reader has seen enough, or its disk is full."""

import errno
import os
import select
import sys
from collections.abc import Callable
from typing import TextIO

# A disk that is full, over its quota, or failing.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def run_for_reader(command: Callable[[], int]) -> int:
    """Runs `command`, writes what it printed, and returns its exit code; 0 if its reader closed the
    pipe before it had ended, 1 with a sentence if its output can't be written. Raises what
    `command` raises otherwise."""
    code = 0
    try:
        code = command()
        if sys.stdout is not None:  # else it was closed before the start
            sys.stdout.flush()
    except SystemExit:
        if not _drop_unread():
            raise
    except BrokenPipeError:
        if not _drop_unread():
            raise  # it was another pipe
    except OSError as error:
        if error.errno not in UNWRITABLE or error.filename is not None:
            raise
        print(f"lineside: the output can't be written: {error.strerror}", file=sys.stderr)
        _drop(sys.stdout)
        return 1
    return code


def _drop(stream: TextIO) -> None:
    """Points `stream` at nothing, since Python would write what it still holds at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _drop_unread() -> bool:
    """Drops the standard streams whose reader is gone. Returns whether there was one."""
    gone = [stream for stream in (sys.stdout, sys.stderr) if stream and _reader_is_gone(stream)]
    for stream in gone:
        _drop(stream)
    return bool(gone)


def _reader_is_gone(stream: TextIO) -> bool:
    try:
        number = stream.fileno()
    except (OSError, ValueError):
        return False  # closed, or no file at all
    poll = select.poll()
    poll.register(number, 0)
    return bool(poll.poll(0))  # only errors are asked for: poll(2), POLLERR
