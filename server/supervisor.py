"""The process that the user starts, which only watches the one that serves: it imports next to
nothing, and no damaged image or full memory can take it along."""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.process import BaseProcess

STOPPING = (signal.SIGTERM, signal.SIGINT)
# Seconds: a worker that dies younger would die again, and again.
TOO_YOUNG = 5.0


def supervise(serve: Callable[[], int]) -> int:
    """Runs `serve` in a child process, a worker; returns its exit code when it ends.

    SIGTERM and SIGINT are handed on to the worker. One that a signal ends unasked is replaced,
    unless a replacement died before it was TOO_YOUNG seconds old: then 1 is returned, as it is
    where a worker that was asked to stop had to be killed.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (*STOPPING, signal.SIGCHLD))
    replaced = False
    while True:
        started = time.monotonic()
        worker = get_context("fork").Process(target=_work, args=(serve,), name="lineside-worker")
        worker.start()
        asked = _watch(worker)
        code = worker.exitcode or 0
        if code >= 0:
            return code
        if asked:
            return 1
        young = replaced and time.monotonic() - started < TOO_YOUNG
        fate = "giving up, since the one before it died too" if young else "starting another"
        known = {each.value: each.name for each in signal.Signals}
        name = known.get(-code, f"signal {-code}")
        with suppress(OSError):  # nobody may read what we say
            print(f"lineside: the worker was ended by {name}; {fate}", file=sys.stderr, flush=True)
        if young:
            return 1
        replaced = True


def _watch(worker: BaseProcess) -> bool:
    """Hands on signals until `worker` has ended; whether it was asked to."""
    asked = False
    while worker.is_alive():
        number = signal.sigwait((*STOPPING, signal.SIGCHLD))
        if number in STOPPING and worker.pid is not None:
            asked = True
            os.kill(worker.pid, number)
    return asked


def _work(serve: Callable[[], int]) -> None:
    # STOPPING stay blocked, here and in every thread to come, until `drain_before_stop` waits for
    # them: a thread that was begun before would swallow them.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGCHLD,))
    sys.exit(serve())
