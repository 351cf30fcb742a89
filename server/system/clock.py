"""The time of day: as text, and whether it may be trusted to decide what is deleted."""

import logging
import math
from datetime import UTC, datetime

logger = logging.getLogger(__name__)

# Seconds between two looks that the time of day may gain or lose: what adjusts it smoothly stays
# far below.
LEAP = 60.0
# Seconds after a jump until the time of day is believed again: a time server that was wrong once
# has been asked again by then.
SETTLING = 3600.0


def rfc3339(seconds: float) -> str:
    """Unix seconds as RFC 3339 in UTC with milliseconds: 2026-01-01T00:00:00.250Z."""
    moment = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z")


class ClockGuard:
    """Watches the time of day beside the monotonic clock, and logs its jumps. `kept`: what stays
    for as long as it isn't believed. For one thread."""

    def __init__(self, kept: str) -> None:
        self._kept = kept
        self._ahead: float | None = None
        self._jumped = -math.inf

    def settled(self, wall: float, now: float) -> bool:
        """Whether it has not jumped for SETTLING seconds, as far as is known. To be asked often.

        wall: Unix seconds. now: seconds of time.monotonic().
        """
        ahead = wall - now
        jump = 0.0 if self._ahead is None else ahead - self._ahead
        self._ahead = ahead
        if abs(jump) > LEAP:
            self._jumped = now
            fields = {"seconds": round(jump), "kept": self._kept, "for_s": SETTLING}
            logger.warning("the clock jumped, nothing goes by its age", extra={"fields": fields})
        return now - self._jumped >= SETTLING
