"""What this process holds of the machine's memory, and giving back what it no longer needs."""

import ctypes
import os
from pathlib import Path

STATM = Path("/proc/self/statm")


def resident() -> int:
    """Resident bytes of this process (proc(5), statm's second field)."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def trim_heap() -> None:
    """Hands freed memory back to the kernel (malloc_trim(3)); without glibc a no-op.

    A released model's memory would stay with the allocator otherwise, which is told to keep what
    frames free.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
