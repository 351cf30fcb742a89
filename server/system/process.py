"""This process as the kernel has it: scheduling, memory, parent, sockets.

Imports nothing heavy, so that importing it starts no thread: `end_with_parent` is called before
signals are blocked for the threads to come.
"""

import ctypes
import math
import os
import signal
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
TRIM_ABOVE_BYTES, KEPT_BLOCK_MAX_BYTES = 256 << 20, 32 << 20
# Each arena keeps the buffers of frames decoded in it, and each thread would have its own.
ARENAS = 2


def configure_process() -> None:
    """Set up the whole process so that frames are cheap; call it before threads are started.

    OpenCV uses no threads of its own: frames are the unit of parallel work, and threads within one
    only add switches. It prints nothing about damaged images, since their sender gets an error.

    glibc would hand large freed blocks back to the kernel at once, and taking them again costs
    hundreds of page faults a frame; 32 MiB is the largest block that it can keep (mallopt(3)).
    Another C library is left as it is.

    SCHED_BATCH, which later threads inherit: a thread that wakes up waits for a core that is free
    or was used for some milliseconds (sched(7)). Else a frame is interrupted a dozen times on a
    busy machine, by requests that only come to wait behind it.
    """
    import cv2

    with suppress(AttributeError, OSError):  # not on this system, or not allowed here
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, TRIM_ABOVE_BYTES)
        mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK_MAX_BYTES)
        mallopt(M_ARENA_MAX, ARENAS)


# prctl(2): the signal that this process gets when its parent ends.
PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send the signal `number` to this process when its parent ends (prctl(2)). If
    the parent has ended already, no signal comes: compare os.getppid() afterwards."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


STATM = Path("/proc/self/statm")


def resident() -> int:
    """Return this process's resident memory in bytes (proc(5), statm's second field)."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def trim_heap() -> None:
    """Give freed memory back to the kernel (malloc_trim(3)), such as an unloaded model's, which
    `configure_process` lets the allocator keep. Does nothing without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


# Offsets in struct tcp_info of linux/tcp.h: u32 tcpi_notsent_bytes, u64 tcpi_bytes_sent, u64
# tcpi_bytes_retrans. The last two are there since Linux 4.19.
NOT_SENT, SENT, SENT_AGAIN = 144, 200, 208
# u8 tcpi_state, u32 tcpi_last_data_recv in milliseconds; TCP_ESTABLISHED of linux/tcp_states.h.
STATE, LAST_RECEIVED, ESTABLISHED = 0, 52, 1


def own_sockets() -> Iterator[tuple[int, socket.socket]]:
    """Yield this process's sockets: the descriptor of each, and a duplicate that is closed when the
    next one is taken. The HTTP server does not hand its own out."""
    for name in os.listdir("/proc/self/fd"):
        try:
            copy = os.dup(int(name))
        except OSError:
            continue  # closed since it was listed
        if not stat.S_ISSOCK(os.fstat(copy).st_mode):
            os.close(copy)
            continue
        with socket.socket(fileno=copy) as sock:
            yield int(name), sock


def shut_for_reading(number: int, written: int) -> None:
    """End the reads of the connection with the descriptor `number`, if it is still the one to which
    `written` bytes were written."""
    with suppress(OSError), socket.socket(fileno=os.dup(number)) as sock:
        if bytes_written(sock) == written:
            sock.shutdown(socket.SHUT_RD)


def seconds_silent(sock: socket.socket) -> float:
    """Return the seconds since anything came in on the open TCP connection `sock`, or since it was
    made; infinity for another socket, or if the kernel does not say."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, LAST_RECEIVED + 4)
        milliseconds = struct.unpack_from("I", info, LAST_RECEIVED)[0]
    except (OSError, struct.error):
        return math.inf
    return milliseconds / 1000 if info[STATE] == ESTABLISHED else math.inf


def bytes_written(sock: socket.socket) -> int:
    """Return the bytes that were ever written to the connection `sock`, sent or not; -1 for what is
    no TCP socket, or if the kernel does not say."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SENT_AGAIN + 8)
        waiting = struct.unpack_from("I", info, NOT_SENT)[0]
        sent, again = struct.unpack_from("QQ", info, SENT)
    except (OSError, struct.error):
        return -1
    return int(sent - again + waiting)
