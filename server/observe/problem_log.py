"""A fault that lasts, in the log: one line when it begins, one when it is over."""

import logging
import threading

logger = logging.getLogger(__name__)


class ProblemLog:
    """Logs `begins`, as an error, with the first of several failures in a row, and `ends` once it
    goes well again. For any thread; `_lock` guards `_reason`."""

    def __init__(self, begins: str, ends: str) -> None:
        self._begins, self._ends = begins, ends
        self._lock = threading.Lock()
        self._reason = ""

    def failed(self, reason: str, **fields: object) -> None:
        """It has failed, once more or for the first time."""
        with self._lock:
            first, self._reason = not self._reason, reason
        if first:
            logger.error(self._begins, extra={"fields": {"reason": reason, **fields}})

    def went_well(self, **fields: object) -> None:
        """It has gone well."""
        with self._lock:
            reason, self._reason = self._reason, ""
        if reason:
            logger.info(self._ends, extra={"fields": {"after": reason, **fields}})
