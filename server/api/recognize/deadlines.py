"""Moments in requests, and deadlines: `deadline_ms`, counted from `captured_at`."""

import math
import re
from datetime import datetime

from server.errors import ClockAheadError, InvalidFieldError, StaleFrameError
from server.system.clock import clock_fault
from server.values.validation import NUMBER
from server.values.wording import shown

# RFC 3339, 5.6: T and Z may be small, and a space may replace the T.
_DATE_AND_TIME = (
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(?P<seconds>:[0-9]{2}(\.[0-9]+)?)?"
)
RFC_3339 = re.compile(
    _DATE_AND_TIME + r"(?P<zone>[Zz]|(?P<sign>[+-])[0-9]{2}:[0-9]{2}| [0-9]{2}:?[0-9]{2}|)"
)
# Unix times in another unit: of the years 1973 to 5138 in each.
UNITS = (
    (1e11, 1e14, "milliseconds", 1e3),
    (1e14, 1e17, "microseconds", 1e6),
    (1e17, 1e20, "nanoseconds", 1e9),
)
EXAMPLES = "send Unix seconds, such as 1767225600.25, or RFC 3339 with a zone, such as"
# Every time zone's offset is a multiple of a quarter of an hour, and at most 14 hours.
ZONE_STEP_S, ZONE_OFFSET_MAX_S = 900, 14 * 3600
# An age within this of a zone's offset is likely a wrong zone.
ZONE_TOLERANCE_S = 90.0


def parse_instant(text: str, name: str = "captured_at") -> float:
    """Return the seconds since 1970 (UTC) of a Unix time in seconds or an RFC 3339 date and time
    with zone. Raises InvalidFieldError, which calls it `name` and says what is wrong with it."""
    instant = math.nan
    written = RFC_3339.fullmatch(text)
    if NUMBER.fullmatch(text):
        instant = float(text)
    elif written and written["seconds"] and written["zone"].strip() == written["zone"] != "":
        try:
            instant = datetime.fromisoformat(text.upper()).timestamp()
        except (ValueError, OverflowError):
            written = None
    fault = _fault(text, written) if math.isnan(instant) else _wrong_unit(text, instant)
    if fault:
        raise InvalidFieldError(f"{name} can't be {shown(text)}: {fault}")
    return instant


def _fault(text: str, written: re.Match[str] | None) -> str:
    """Return what is wrong with `text`, which is no moment."""
    if written and written["zone"].startswith(" "):
        fixed = text[: written.start("zone")] + "%2B" + written["zone"].strip()
        return (
            f"it has a space where the zone's + was; in a query string + stands for a space, so"
            f" write %2B in its place, as in {fixed.replace(' ', 'T')}"
        )
    if written and not written["zone"]:
        return (
            "it has no time zone; append Z if it is UTC, or the zone's offset, such as +02:00 (in a"
            " query string %2B02:00)"
        )
    return f"{EXAMPLES} 2026-01-01T00:00:00.250Z"


def _wrong_unit(text: str, instant: float) -> str:
    for low, high, unit, factor in UNITS:
        if low <= abs(instant) < high:
            return f"it is in {unit}; send seconds, such as {instant / factor:.3f}"
    return "" if abs(instant) < UNITS[0][0] else f"{EXAMPLES} 2026-01-01T00:00:00.250Z"


def check_clock(age: float, max_skew: float, captured_at: str) -> None:
    """Raise ClockAheadError for a frame of `age` seconds whose clock is ahead by more than
    `max_skew` seconds, since no deadline can be counted from such a clock."""
    if age < -max_skew:
        raise ClockAheadError(
            f"captured_at is {-age:.1f} s ahead of this server's clock, and with deadline_ms at"
            f" most {max_skew:g} s are taken: {likely_cause(age, captured_at)}"
        )


def likely_cause(age: float, captured_at: str) -> str:
    """Return what to mend if a frame that was sent at once seems to be `age` seconds old."""
    fault = clock_fault()
    if fault:
        return f"{fault}; set this server's clock"
    offset = round(abs(age) / ZONE_STEP_S) * ZONE_STEP_S
    if not 0 < offset <= ZONE_OFFSET_MAX_S or abs(abs(age) - offset) > ZONE_TOLERANCE_S:
        return "set the camera's clock, or this server's"
    way = "ahead" if age < 0 else "behind"
    if NUMBER.fullmatch(captured_at):
        rule = "Unix seconds count from 1970 in UTC, not in local time"
    else:
        rule = "Z stands for UTC, and local time takes its own offset, such as +02:00"
    return f"{_hours(offset)} {way} is likely the wrong time zone: {rule}"


def _hours(offset: int) -> str:
    hours = offset / 3600
    return "1 hour" if hours == 1 else f"{hours:g} hours"


def time_left(deadline: float, age: float, captured_at: str | None) -> float:
    """Return the seconds that a frame of `age` seconds has until `deadline` seconds after capture.

    A camera's clock that is ahead buys no time. Raises StaleFrameError if none is left.
    """
    remaining = deadline - max(0.0, age)
    if remaining <= 0:
        raise StaleFrameError(
            f"the frame was {age:.3f} s old on arrival and its deadline is {deadline:g} s; if it"
            f" was sent at once: {likely_cause(age, captured_at or '')}"
        )
    return remaining
