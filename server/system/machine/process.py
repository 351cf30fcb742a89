"""What the whole process needs set for frames to be cheap."""

import ctypes
import os
from contextlib import suppress

import cv2

# mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
KEEP_BYTES, LARGEST_KEPT_BYTES = 256 << 20, 32 << 20
# Each arena keeps the buffers of frames decoded in it, and each thread would have its own.
ARENAS = 2


def configure_process() -> None:
    """OpenCV's own threads off; image libraries silent; freed decode buffers kept, not given back;
    no thread begun from now on interrupts another when it has something to do.

    Frames are the unit of parallel work, so threads within one only add switches. What OpenCV
    would print of a damaged image, its sender is told. glibc hands large freed blocks back
    to the kernel at once, and taking them again costs hundreds of page faults a frame; 32 MiB is
    the largest block it can be told to keep (mallopt(3)). Without glibc this is a no-op.

    Of a busy machine's frames each was interrupted a dozen times for a request that only came to
    wait behind it. Linux lets a thread of SCHED_BATCH wait for a core that is free, or has been
    used for some milliseconds (sched(7)). To be called before threads are begun, which inherit it.
    """
    with suppress(AttributeError, OSError):  # not on this system, or not allowed here
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEEP_BYTES)
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        mallopt(M_ARENA_MAX, ARENAS)
