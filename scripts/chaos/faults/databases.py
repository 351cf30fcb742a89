"""Databases that are deleted or damaged, while the server runs and while it does not."""

import os
import random
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from chaos.faults.fault import Context, Fault

NAMES = ("journal", "jobs", "outbox")
# Files that SQLite keeps beside a database.
COMPANIONS = ("-wal", "-shm")
# Bytes of a page of SQLite, and pages that are overwritten at most.
PAGE_BYTES, PAGES_MAX = 4096, 4
# Seconds in which the server puts a damaged file aside.
MENDED_S = 3.0
Harm = Callable[[Path, random.Random], dict[str, Any]]


def delete(path: Path, rng: random.Random) -> dict[str, Any]:
    """Delete a database with what SQLite keeps beside it."""
    for suffix in ("", *COMPANIONS):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return {"file": path.name}


def damage(path: Path, rng: random.Random) -> dict[str, Any]:
    """Overwrite some pages of a database, or cut it off."""
    if not path.exists() or not (size := path.stat().st_size):
        return {"file": path.name, "pages": []}
    if rng.random() < 0.25:
        os.truncate(path, size // 2)
        return {"file": path.name, "cut_to": size // 2}
    pages = [rng.randrange(-(-size // PAGE_BYTES)) for _ in range(rng.randint(1, PAGES_MAX))]
    with path.open("r+b") as file:
        for page in pages:
            file.seek(page * PAGE_BYTES)
            file.write(rng.randbytes(PAGE_BYTES))
    return {"file": path.name, "pages": pages}


def _while_down(harm: Harm, name: str, context: Context) -> dict[str, Any]:
    _note_rows(context, name)
    context.kill_server()
    path = context.plant.data / f"{name}.db"
    fields = harm(path, context.rng)
    context.start_server()
    return fields | _meet(context, path)


def _while_up(harm: Harm, name: str, context: Context) -> dict[str, Any]:
    _note_rows(context, name)
    path = context.plant.data / f"{name}.db"
    fields = harm(path, context.rng)
    time.sleep(context.hold_s())
    return fields | _meet(context, path)


def _note_rows(context: Context, name: str) -> None:
    """Note the rows of a journal before it is harmed: no older one may be lost by it."""
    began = time.monotonic()
    if name == "journal" and context.plant.note_journal():
        context.history.record(context.op, "fault", "noted", began=began)


def _meet(context: Context, path: Path) -> dict[str, Any]:
    """Read everything, so that the server meets the damage now. Return `latent` if it did not: it
    may do so until the end of the run."""
    context.plant.get("/v1/journal?format=jsonl")
    context.plant.get("/v1/jobs?limit=100")
    time.sleep(MENDED_S)
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as base:
            whole = base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    except sqlite3.Error:
        whole = not path.exists()
    return {} if whole else {"latent": True}


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
