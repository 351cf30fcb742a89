"""Ends a process with its parent. Imports nothing heavy, and so starts no thread: it is used before
signals are blocked for the threads to come."""

import ctypes
import signal

# prctl(2): the signal that this process gets when its parent ends.
PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals) -> None:
    """Has the kernel send the signal `number` to this process when its parent ends (prctl(2)). If
    the parent has ended already, no signal comes: compare os.getppid() afterwards."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
