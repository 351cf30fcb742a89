"""Like lines in the log: a few a minute, then how many were left out.

A camera that sends damaged frames, or a line that overloads the server, would otherwise fill the
disk with one sentence.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

logger = logging.getLogger(__name__)

WINDOW = 60.0
Kind = tuple[str, str]


class LogThrottle:
    """Which lines of requests that failed alike, by error code and route, are written.

    `_lock` guards `_began`, `_written`, `_left` and `_timer`. `_written` counts the lines of the
    minute that began at `_began`, `_left` those left out since they were last told of. The timer
    runs only while there are some to tell of.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        """most: lines a minute of each kind; 0: all."""
        self._most, self._clock = most, clock
        self._lock = threading.Lock()
        self._began = -WINDOW
        self._written: Counter[Kind] = Counter()
        self._left: Counter[Kind] = Counter()
        self._timer: threading.Timer | None = None

    def passes(self, code: str, route: str) -> bool:
        """Whether the line of a request with this error may be written; if not, it is counted."""
        if not self._most:
            return True
        with self._lock:
            now = self._clock()
            if now - self._began >= WINDOW:
                self._written.clear()
                self._began = now
            if self._written[code, route] < self._most:
                self._written[code, route] += 1
                return True
            self._leave_out((code, route))
            return False

    def leave_out(self, code: str, route: str) -> None:
        """Counts a request that gets no line of its own."""
        with self._lock:
            self._leave_out((code, route))

    def _leave_out(self, kind: Kind) -> None:
        self._left[kind] += 1
        if self._timer is None:
            self._timer = threading.Timer(WINDOW, self.tell)
            self._timer.daemon = True
            self._timer.start()

    def tell(self) -> None:
        """Writes one line for each kind of which requests were left out since the last time; to be
        called once more before the log ends."""
        with self._lock:
            left, self._left = self._left, Counter()
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None
        for (code, route), requests in left.items():
            fields = {"code": code, "route": route, "requests": requests}
            logger.info("requests without a line of their own", extra={"fields": fields})
