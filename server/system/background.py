"""A bounded queue of work with a thread of its own, so that callers do not wait."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Generic, ParamSpec, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")
Task = Callable[[], None]

# Tasks that wait at most: some hold a frame.
TASKS_MAX = 1000
# Between two frames the processor's caches are full of the model, and the same few lines of ours
# take three times as long as if they are run again at once: tasks are collected for so long.
COLLECT_TASKS_S = 0.02
# Seconds within which queued tasks are done, however busy the machine is.
TASKS_TIMEOUT_S = 10.0


class BackgroundQueue(Generic[T]):
    """Hands items to `work` in the order in which they came, in a daemon thread named `name`.

    `work` gets the queue itself and takes out the items that it has finished with. Those that it
    leaves count against the bound, and are handed to it again in its next turn.

    The thread starts with the first item or `wake`. `_lock` guards `_thread`, `_closed`, what is
    added to `_items`, and the two events. It is reentrant, since a signal's handler or a finalizer
    may submit from within `submit`. `_turned` guards `_turns`, the number of turns done, and
    `_working`, whether one is under way.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[deque[T]], None],
        *,
        capacity: int,
        delay_s: float = 0.0,
        idle_s: float | None = None,
        room_timeout_s: float = 0.0,
    ) -> None:
        """Set up the queue without a thread.

        Args:
            capacity: Items that wait at most.
            delay_s: Seconds for which items are collected before a turn.
            idle_s: Seconds between turns if nothing comes; None for no such turns.
            room_timeout_s: Seconds for which `submit` waits for room.
        """
        self._name = name
        self._fields = {"fields": {"queue": name}}
        self._work = work
        self._capacity = capacity
        self._delay_s = delay_s
        self._idle_s = idle_s
        self._room_timeout_s = room_timeout_s
        self._items: deque[T] = deque()
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._wake = threading.Event()
        self._urgent = threading.Event()
        self._turned = threading.Condition()
        self._turns = 0
        self._working = False

    @property
    def waiting(self) -> int:
        """The number of items that `work` has not taken out."""
        return len(self._items)

    @property
    def closed(self) -> bool:
        """True once `close` was called: no item comes any more."""
        return self._closed

    def submit(self, item: T, *, urgent: bool = False) -> bool:
        """Add `item`; return False if there is no room for it, or the queue is closed.

        urgent: do not collect others first.
        """
        if self._add(item, urgent):
            return True
        if not self._room_timeout_s or self._closed:
            return False
        self.flush(self._room_timeout_s)
        if self._add(item, urgent):
            return True
        logger.error("background queue is full, an item is lost", extra=self._fields)
        return False

    def _add(self, item: T, urgent: bool) -> bool:
        with self._lock:
            if self._closed or len(self._items) >= self._capacity:
                return False
            self._items.append(item)
            self._start()
            if urgent:
                self._urgent.set()
            if not self._wake.is_set():
                self._wake.set()
        return True

    def _start(self) -> None:
        """Start the thread, once. The caller holds `_lock`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """Have a turn run at once, even if no item waits."""
        with self._lock:
            if not self._closed:
                self._start()
            self._urgent.set()
            self._wake.set()

    def flush(self, timeout_s: float = TASKS_TIMEOUT_S) -> bool:
        """Wait until a turn that began with all items submitted so far is done.

        Return False if it is not after `timeout_s` seconds, or if this is the queue's own thread.
        """
        if self._thread is None:
            return True
        if self.is_own_thread():
            return False
        waiting = bool(self._items)  # looked at first: items are taken out only in a turn
        with self._turned:
            if not waiting and not self._working:
                return True
            # A turn that is under way may have passed by the newest items.
            wanted = self._turns + 1 + self._working
            self.wake()
            return self._turned.wait_for(lambda: self._turns >= wanted, timeout_s)

    def is_own_thread(self) -> bool:
        """Return True if the caller runs in the queue's thread."""
        return self._thread is threading.current_thread()

    def close(self, timeout_s: float) -> int:
        """Take no more items, run a last turn and end the thread.

        Return the number of items left, after `timeout_s` seconds at most.
        """
        with self._lock:
            self._closed = True
            self.wake()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        return len(self._items)

    def _run(self) -> None:
        while not self._closed:
            if self._wake.wait(self._idle_s):
                self._urgent.wait(self._delay_s)
            with self._lock:
                self._wake.clear()
                self._urgent.clear()
            self._turn()
        self._turn()

    def _turn(self) -> None:
        with self._turned:
            self._working = True
        try:
            self._work(self._items)
        except Exception:
            # Else the thread would end, and nobody would learn of it.
            logger.exception("background work failed", extra=self._fields)
        with self._turned:
            self._working = False
            self._turns += 1
            self._turned.notify_all()


def make_task_queue(name: str) -> BackgroundQueue[Task]:
    """Return a queue that runs what is submitted, for bookkeeping that no caller should wait for.

    If TASKS_MAX wait, `submit` waits until they are done. A task that fails is logged.
    """
    return BackgroundQueue(
        name,
        _run_tasks,
        capacity=TASKS_MAX,
        delay_s=COLLECT_TASKS_S,
        room_timeout_s=TASKS_TIMEOUT_S,
    )


def in_order(queue: BackgroundQueue[Task], listener: Callable[P, None]) -> Callable[P, None]:
    """Return `listener`, called by `queue`: it is notified of answers and of errors in the order in
    which they came."""

    def submit(*event: P.args, **named: P.kwargs) -> None:
        if queue.is_own_thread():
            listener(*event, **named)  # submitted again, it would come after newer events
        else:
            queue.submit(partial(listener, *event, **named))

    return submit


def _run_tasks(tasks: deque[Task]) -> None:
    for _ in range(len(tasks)):
        task = tasks.popleft()
        try:
            task()
        except Exception:
            # The answer was sent already, so the fault is only logged.
            logger.exception("an answer could not be counted")
