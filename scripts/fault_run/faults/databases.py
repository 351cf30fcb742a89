"""Databases that are deleted or damaged, while the server runs and while it does not."""

import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fault_run.faults.fault import Context, Fault

NAMES = ("journal", "jobs", "outbox")
# Files that SQLite keeps beside a database.
COMPANIONS = ("-wal", "-shm")
# Bytes that are overwritten, at up to so many places.
DAMAGE_BYTES, PLACES_MAX = 4096, 4
Harm = Callable[[Path, random.Random], dict[str, Any]]


def delete(path: Path, rng: random.Random) -> dict[str, Any]:
    """Delete a database with what SQLite keeps beside it."""
    for suffix in ("", *COMPANIONS):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return {"file": path.name}


def damage(path: Path, rng: random.Random) -> dict[str, Any]:
    """Overwrite some pages of a database, or cut it off."""
    if not path.exists() or not (size := path.stat().st_size):
        return {"file": path.name, "places": []}
    if rng.random() < 0.25:
        os.truncate(path, size // 2)
        return {"file": path.name, "cut_to": size // 2}
    places = [rng.randrange(size) for _ in range(rng.randint(1, PLACES_MAX))]
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(rng.randbytes(min(DAMAGE_BYTES, size - place)))
    return {"file": path.name, "places": places}


def _while_down(harm: Harm, name: str, context: Context) -> dict[str, Any]:
    context.kill_server()
    fields = harm(context.plant.data / f"{name}.db", context.rng)
    context.start_server()
    return fields


def _while_up(harm: Harm, name: str, context: Context) -> dict[str, Any]:
    fields = harm(context.plant.data / f"{name}.db", context.rng)
    time.sleep(context.hold_s())
    # Readers meet the damage, so that it is mended now and not after the end of this fault.
    context.plant.get("/v1/journal")
    context.plant.get("/v1/jobs")
    return fields


def _faults() -> tuple[Fault, ...]:
    found = []
    for name in NAMES:
        for word, harm in (("delete", delete), ("damage", damage)):
            down, up = partial(_while_down, harm, name), partial(_while_up, harm, name)
            found.append(Fault(f"{word} {name}.db at restart", down, loses=(name,)))
            # Of a file that is deleted under a running server only the journal's rows are lost.
            spared = harm is delete and name != "journal"
            loses = () if spared else (name,)
            found.append(Fault(f"{word} {name}.db in use", up, loses=loses))
    return tuple(found)


FAULTS = _faults()
