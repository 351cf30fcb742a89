"""The end of a command whose reader has seen enough, as `head` has after ten lines."""

import os
import select
import sys
from collections.abc import Callable
from typing import TextIO


def run_for_reader(command: Callable[[], int]) -> int:
    """Runs `command`, writes what it printed, and returns its exit code; 0 if its reader closed the
    pipe before it had ended. Raises what `command` raises otherwise."""
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
    return code


def _drop_unread() -> bool:
    """Points the standard streams whose reader is gone at nothing, since Python would write what
    they still hold at the exit. Returns whether there was one."""
    gone = [stream for stream in (sys.stdout, sys.stderr) if stream and _reader_is_gone(stream)]
    for stream in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(gone)


def _reader_is_gone(stream: TextIO) -> bool:
    try:
        number = stream.fileno()
    except (OSError, ValueError):
        return False  # closed, or no file at all
    poll = select.poll()
    poll.register(number, 0)
    return bool(poll.poll(0))  # only errors are asked for: poll(2), POLLERR
