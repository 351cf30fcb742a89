"""When an answer stops being worth anything: `deadline_ms`, counted from `captured_at`."""

import math
import re
from datetime import datetime

from server.errors import DeadlineExceededError, InvalidFieldError

UNIX = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
# RFC 3339, 5.6: T and Z may be small, and a space may stand for the T.
RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def parse_instant(text: str, name: str = "captured_at") -> float:
    """Seconds since 1970 (UTC) of a Unix time in seconds or an RFC 3339 date and time with zone.

    Raises InvalidFieldError, which calls it `name`.
    """
    try:
        if RFC_3339.fullmatch(text):
            instant = datetime.fromisoformat(text.upper()).timestamp()
        elif UNIX.fullmatch(text):
            instant = float(text)
        else:
            raise ValueError
    except (ValueError, OverflowError):
        raise InvalidFieldError(
            f"{name} can't be {text!r}: send Unix seconds, such as 1767225600.25, or RFC 3339 with"
            " a zone, such as 2026-01-01T00:00:00.250Z"
        ) from None
    if not math.isfinite(instant):
        raise InvalidFieldError(f"{name} must be a finite time")
    return instant


def frame_age(captured_at: str | None, wall: float, max_skew: float) -> float:
    """Seconds from capture to `wall` (seconds since 1970); 0 without `captured_at`.

    Negative where the camera's clock is ahead. Raises InvalidFieldError where it is ahead by more
    than `max_skew` seconds, since no deadline could be counted from such a clock.
    """
    if captured_at is None:
        return 0.0
    age = wall - parse_instant(captured_at)
    if age < -max_skew:
        raise InvalidFieldError(
            f"captured_at is {-age:.1f} s ahead of this server's clock, and at most {max_skew:g} s"
            " is taken: set the camera's clock"
        )
    return age


def time_left(deadline: float, age: float) -> float:
    """Seconds that a frame of `age` seconds still has until `deadline` seconds after its capture.

    A camera's clock that is ahead buys no time. Raises DeadlineExceededError where none is left.
    """
    left = deadline - max(0.0, age)
    if left <= 0:
        raise DeadlineExceededError(
            f"the frame was {age:.3f} s old on arrival and its deadline is {deadline:g} s; if it"
            " was sent at once, set the camera's clock"
        )
    return left
