"""The time of day: as text, and as far as it can be trusted."""

import logging
import math
import time
from datetime import UTC, datetime

from server import RELEASED

logger = logging.getLogger(__name__)

# A larger change between two looks is a jump: smooth adjustment stays far below.
JUMP_MIN_S = 60.0
# Time after a jump until the clock is trusted again: by then, a time server that was wrong once has
# been asked again.
SETTLE_S = 3600.0


def rfc3339(seconds: float) -> str:
    """Return Unix seconds as RFC 3339 in UTC with milliseconds: 2026-01-01T00:00:00.250Z."""
    moment = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z")


class ClockGuard:
    """Compares the time of day with the monotonic clock, and logs its jumps, so that nothing is
    deleted by its age after one. `protected`: what stays meanwhile,
    for the log. For one thread."""

    def __init__(self, protected: str) -> None:
        self._protected = protected
        self._ahead: float | None = None
        self._jumped = -math.inf

    def is_stable(self, wall: float, now: float) -> bool:
        """Return whether no jump was seen for SETTLE_S seconds. Jumps are seen between calls.

        wall: Unix seconds. now: seconds of time.monotonic().
        """
        ahead = wall - now
        jump = 0.0 if self._ahead is None else ahead - self._ahead
        self._ahead = ahead
        if abs(jump) > JUMP_MIN_S:
            self._jumped = now
            fields = {"seconds": round(jump), "kept": self._protected, "for_s": SETTLE_S}
            logger.warning("the clock jumped, nothing goes by its age", extra={"fields": fields})
        return now - self._jumped >= SETTLE_S


def clock_fault(now: float | None = None) -> str:
    """Say that this machine's clock is not set, at `now` in Unix seconds; '' if it may be right.

    A device without a battery starts with the time at which it was built or stopped, and sets it
    when a time server answers.
    """
    now = time.time() if now is None else now
    if now >= RELEASED:
        return ""
    shown, built = (time.strftime("%Y-%m-%d %H:%M", time.gmtime(t)) for t in (now, RELEASED))
    return f"this server's clock is not set: it shows {shown} UTC, before its program of {built}"
