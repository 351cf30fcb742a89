"""What is told of answers a moment after them, so that no camera waits for our book-keeping.

Between two frames the processor's caches are full of the model, and the same few lines of ours take
three times as long as when they are run again at once. So what is to be told is collected, and told
of some answers in a row.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
Task = Callable[[], None]
# Seconds for which tasks are collected.
EVERY = 0.02
# Seconds in which those that were begun are done, however busy the machine is.
SOON = 10.0
# Tasks that wait before those who bring more have to help: some hold a frame.
MOST = 1000


class BackgroundQueue:
    """Runs tasks in the order in which they were taken, by a thread of its own.

    `_running` is held by whoever runs some; `_wake` is set while the thread is to run those in
    `_tasks`; `_lock` guards the beginning of the thread.
    """

    def __init__(self) -> None:
        self._tasks: deque[Task] = deque()
        self._running, self._lock = threading.Lock(), threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, task: Task) -> None:
        """Has `task` run soon."""
        self._tasks.append(task)
        if len(self._tasks) > MOST:
            self.settle()
        if self._thread is None:
            self._begin()
        if not self._wake.is_set():
            self._wake.set()

    def later(self, listener: Callable[[T], None]) -> Callable[[T], None]:
        """`listener`, called in its turn: what hears of answers and of errors hears of a camera's
        frames in the order in which they ended."""
        return lambda told: self.take(partial(listener, told))

    def _begin(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="afterwards", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            self._wake.wait()
            time.sleep(EVERY)
            self._wake.clear()
            self.settle(threading.TIMEOUT_MAX)

    def settle(self, seconds: float = SOON) -> None:
        """Runs the tasks taken so far, so that whoever asks next finds what was answered before.
        Where others are being run already, these are waited for, at most `seconds`."""
        if not self._running.acquire(timeout=seconds):
            return
        try:
            for _ in range(len(self._tasks)):
                self._run(self._tasks.popleft())
        finally:
            self._running.release()

    def _run(self, task: Task) -> None:
        try:
            task()
        except Exception:
            # The answer is out: there is no one else to tell.
            logger.exception("an answer could not be counted")
