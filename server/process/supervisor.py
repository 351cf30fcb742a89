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

from server.system.handover import Crash, Handover

STOPPING = (signal.SIGTERM, signal.SIGINT)
# Before the port is ours, a worker that dies younger would die again, and again.
TOO_YOUNG_S = 5.0
# Seconds before the second replacement, doubled with each further one up to the last.
RESTART_DELAY_S, RESTART_DELAY_MAX_S = 0.5, 30.0
# Seconds of life after which a worker counts as well, so that its replacement starts at once.
STEADY_S = 300.0
# A service manager's patience (sd_watchdog_enabled(3)) over this is the longest pause.
WATCHDOG_SHARE = 4


def supervise(serve: Callable[[], int], handover: Handover | None = None) -> int:
    """Runs `serve` in a child process, a worker; returns its exit code when it ends by itself.

    SIGTERM and SIGINT are handed on to the worker. A worker that a signal ends unasked is replaced,
    however often, at once the first time and then after a pause that grows. Before a worker has
    left the listening socket in `handover`, the replacement of one that dies younger than
    TOO_YOUNG_S seconds is not replaced: 1 is returned, as also if a worker that was asked to stop
    had to be killed. 0 is returned if the stop is asked for during a pause."""
    handover = handover or Handover()
    signal.pthread_sigmask(signal.SIG_BLOCK, (*STOPPING, signal.SIGCHLD))
    replaced, pause = False, 0.0
    while True:
        started = time.monotonic()
        worker = get_context("fork").Process(target=_work, args=(serve,), name="lineside-worker")
        worker.start()
        asked = _watch(worker, handover)
        code = worker.exitcode or 0
        if code >= 0:
            return code
        if asked:
            return 1
        handover.collect()
        handover.crashed(Crash(time.time(), _name(-code), worker.pid or 0))
        age = time.monotonic() - started
        if replaced and age < TOO_YOUNG_S and not handover.holds_port:
            _say(f"{_name(-code)}; giving up, since the one before it died too")
            return 1
        pause = 0.0 if age > STEADY_S else pause
        _say(f"{_name(-code)}; starting another" + (f" in {pause:g} s" if pause else ""))
        if pause and signal.sigtimedwait(STOPPING, pause):
            return 0
        pause = min(max(RESTART_DELAY_S, pause * 2), _longest_pause())
        replaced = True


def _name(number: int) -> str:
    known = {each.value: each.name for each in signal.Signals}
    return known.get(number, f"signal {number}")


def _say(fate: str) -> None:
    with suppress(OSError):  # nobody may read what we say
        print(f"lineside: the worker was ended by {fate}", file=sys.stderr, flush=True)


def _longest_pause() -> float:
    """RESTART_DELAY_MAX_S, or less if the service manager would restart the service before."""
    due = os.environ.get("WATCHDOG_USEC", "")
    if due.isdigit() and int(due):
        return min(RESTART_DELAY_MAX_S, int(due) / 1e6 / WATCHDOG_SHARE)
    return RESTART_DELAY_MAX_S


def _watch(worker: BaseProcess, handover: Handover) -> bool:
    """Hands on signals until `worker` has ended; returns whether it was asked to."""
    asked = False
    if worker.pid is not None:
        _reap_others(worker.pid)  # those that ended together with the worker before
    while worker.is_alive():
        number = signal.sigwait((*STOPPING, signal.SIGCHLD))
        if number in STOPPING and worker.pid is not None:
            asked = True
            os.kill(worker.pid, number)
            # Else the port would stay open until this process ends.
            handover.close()
        elif worker.pid is not None:
            _reap_others(worker.pid)
    return asked


def _reap_others(worker: int) -> None:
    """Reaps processes whose parent has died, which come to this one if it is a container's first
    process: a worker that dies leaves its own children."""
    with suppress(ChildProcessError):
        while True:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None or ended.si_pid == worker:
                return
            os.waitpid(ended.si_pid, os.WNOHANG)


def _work(serve: Callable[[], int]) -> None:
    # STOPPING stay blocked, here and in every thread to come, until `http_server.run` waits for
    # them: a thread that was begun before would swallow them.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGCHLD,))
    sys.exit(serve())
