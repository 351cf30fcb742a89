"""A clock of the day that jumps, by libfaketime (Debian: faketime)."""

import glob
import time
from typing import Any

from chaos.faults.fault import Context, Fault

LIBRARY = "/usr/lib/*/faketime/libfaketimeMT.so.1"
# Seconds by which the clock jumps: less than messages of outputs are kept for.
JUMPS = (7200, -7200, 30, -30)


def missing() -> str:
    """Return why the clock can't be moved; empty if it can."""
    return "" if glob.glob(LIBRARY) else "libfaketime is not installed (Debian: faketime)"


def _move_clock(context: Context) -> dict[str, Any]:
    """Start the server with a clock of its own, which jumps, and jumps back."""
    plant, jump = context.plant, context.rng.choice(JUMPS)
    offset = plant.folder / "clock"
    offset.write_text("+0", "utf-8")
    env = plant.server.env
    assert env is not None
    faked = env | {
        "LD_PRELOAD": glob.glob(LIBRARY)[0],
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        # The jump is of the time of day alone, as a time server's.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    _restart(context, faked)
    try:
        for seconds in (jump, 0):
            offset.write_text(f"{seconds:+d}", "utf-8")
            time.sleep(context.hold_s())
    finally:
        _restart(context, env)
    return {"seconds": jump}


def _restart(context: Context, env: dict[str, str]) -> None:
    """Have the server end as its operator would, so that it writes what waits, and start it."""
    context.leaves()
    context.plant.server.stop()
    context.plant.server.env = env
    context.start_server()


FAULTS = (Fault("move clock", _move_clock, missing="clock"),)
