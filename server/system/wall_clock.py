"""The time of day, as far as it may be believed."""

import time

from server import RELEASED


def clock_fault(now: float | None = None) -> str:
    """Says that this machine's clock is not set, at `now` in Unix seconds; '' if it may be right.

    A device without a battery starts with the time at which it was built or stopped, and sets it
    when a time server answers.
    """
    now = time.time() if now is None else now
    if now >= RELEASED:
        return ""
    shown, built = (time.strftime("%Y-%m-%d %H:%M", time.gmtime(t)) for t in (now, RELEASED))
    return f"this server's clock is not set: it shows {shown} UTC, before its program of {built}"
