"""What is told of an answer once it is on its way, so that no camera waits for our book-keeping."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from server.observe.logs import LOGGER
from server.protocol import AFTERWARDS

logger = logging.getLogger(LOGGER)

Task = Callable[[], None]
# Seconds in which a task is done that was begun, unless the machine is very busy.
SOON = 0.2


class Afterwards:
    """Runs tasks after the answers that they belong to.

    `_ended` guards `_open`, the tasks that were taken and have not ended, by number, and `_next`,
    the number of the next one.
    """

    def __init__(self) -> None:
        self._ended = threading.Condition()
        self._open: set[int] = set()
        self._next = 0

    def take(self, environ: dict[str, Any], task: Task) -> None:
        """Has `task` run by this thread when the answer to the request of the WSGI environment
        `environ` was handed to the HTTP server; at once where the server can't do so."""
        later: list[Task] | None = environ.get(AFTERWARDS)
        if later is None:
            task()
            return
        with self._ended:
            number, self._next = self._next, self._next + 1
            self._open.add(number)
        later.append(lambda: self._run(task, number))

    def _run(self, task: Task, number: int) -> None:
        try:
            task()
        except Exception:
            # The answer is out: there is no one else to tell.
            logger.exception("an answer could not be counted")
        with self._ended:
            self._open.discard(number)
            self._ended.notify_all()

    def settle(self, seconds: float = SOON) -> None:
        """Returns once the tasks taken so far have ended, so that whoever asks next finds what was
        answered before; at the latest after `seconds`."""
        if not self._open:
            return
        until = time.monotonic() + seconds
        with self._ended:
            before = self._next
            while any(number < before for number in self._open):
                if not self._ended.wait(until - time.monotonic()):
                    return
