"""Rebuilds the table of jobs from what can still be read of it.

The new file is whole before the old one is touched. At every moment the jobs are in a file that the
next start finds, whichever process is killed when.
"""

import logging
import os
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from server.store.jobs.records import (
    COLUMNS,
    FRAME_COLUMNS,
    OPEN,
    SCHEMA,
    JobError,
    JobOptions,
    frame_of,
    is_intact,
    job_of,
)
from server.system.files import set_aside, sync
from server.system.sqlite import COMPANIONS, check_place, check_plain, files_of

logger = logging.getLogger(__name__)

# The error of a job that could only be read in part.
DAMAGED = JobError("STORAGE_FAILED", "the file of jobs was damaged, and frames of this job with it")
# Ways to find the numbers of jobs: if one meets a bad page, another may not.
NUMBER_QUERIES = (
    "SELECT number FROM jobs ORDER BY number",
    "SELECT number FROM jobs ORDER BY number DESC",
    "SELECT number FROM jobs INDEXED BY sqlite_autoindex_jobs_1 ORDER BY id",
    "SELECT number FROM jobs INDEXED BY jobs_open WHERE finished IS NULL",
)
UNREADABLE = (sqlite3.Error, ValueError, TypeError, OverflowError)


class Salvage(msgspec.Struct):
    """The number of jobs that were kept intact, failed since frames of theirs are gone, or were
    lost. complete: there can't have been others."""

    intact: int = 0
    failed: int = 0
    lost: int = 0
    complete: bool = True


def is_gone(path: Path) -> bool:
    """Return True if there is no table of jobs at `path`, nor one that will be there once it is
    opened."""
    return not os.path.lexists(path) and not _ready(path).exists()


def finish_rebuild(path: Path) -> None:
    """Finish a rebuild that a kill interrupted. Raises OSError."""
    ready = _ready(path)
    if ready.exists():
        set_aside(path, COMPANIONS)
        ready.rename(path)
        sync(path.parent)


def rebuild(path: Path, old: sqlite3.Connection | None, reason: str) -> None:
    """Put a new file at `path`, with what can be read of the old one by the connection `old`, or if
    that is None, from `path`. Close `old`.

    Raises sqlite3.Error or OSError if the new file can't be written; the old one is then as it was.
    """
    fresh = path.with_name(f".{path.name}.new")
    try:
        if old is not None:
            salvage = _build(fresh, old)
        else:
            with closing(_open_to_read(path)) as readable:
                salvage = _build(fresh, readable)
        fresh.rename(_ready(path))
        moved = set_aside(path, COMPANIONS)
        if old is not None:
            # Before the rename below: closing removes, by name, the log and its index.
            old.close()
        _ready(path).rename(path)
        sync(path.parent)
    finally:
        if old is not None:
            old.close()
        for file in (fresh, fresh.with_name(fresh.name + "-journal")):
            with suppress(OSError):
                file.unlink(missing_ok=True)
    _report(path, reason, moved, salvage)


def _ready(path: Path) -> Path:
    """Return the path of a new file that is whole."""
    return path.with_name(f".{path.name}.ready")


def _report(path: Path, reason: str, moved: Path | None, salvage: Salvage) -> None:
    fields: dict[str, object] = {
        "path": str(path),
        "reason": reason,
        "moved_to": str(moved) if moved else None,
        "jobs_kept": salvage.intact,
        "jobs_failed": salvage.failed,
    }
    logger.error("the table of jobs was rebuilt", extra={"fields": fields})
    if salvage.lost or not salvage.complete:
        at_least = f"{salvage.lost} or more" if salvage.lost else "unknown"
        lost = salvage.lost if salvage.complete else at_least
        fields = {"path": str(path), "jobs_lost": lost}
        logger.error("jobs are lost, requests for them get 404", extra={"fields": fields})


def _open_to_read(path: Path) -> sqlite3.Connection:
    """Open the file at `path` for reading; if that fails, return an empty database."""
    file = f"file:{quote(str(path))}"
    with suppress(sqlite3.Error, OSError):
        check_plain(path)
        for how in ("mode=ro", "mode=ro&immutable=1"):
            connection = sqlite3.connect(f"{file}?{how}", uri=True, isolation_level=None)
            with suppress(sqlite3.Error):
                connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
                return connection
            connection.close()
    return sqlite3.connect(":memory:", isolation_level=None)


def _build(fresh: Path, old: sqlite3.Connection) -> Salvage:
    """Write what can be read by `old` into a new file, synced and without a log."""
    for file in (*files_of(fresh), fresh.with_name(fresh.name + "-journal")):
        file.unlink(missing_ok=True)
    fresh.parent.mkdir(parents=True, exist_ok=True)
    check_place(fresh)
    with suppress(sqlite3.Error):
        old.execute("ROLLBACK")
    with closing(sqlite3.connect(fresh, isolation_level=None)) as new:
        new.execute("PRAGMA synchronous = FULL")
        new.executescript(f"BEGIN; {SCHEMA}")
        salvage = _copy(old, new)
        new.execute("COMMIT")
    return salvage


def _copy(old: sqlite3.Connection, new: sqlite3.Connection) -> Salvage:
    salvage = Salvage()
    numbers, salvage.complete = _numbers(old)
    for number in numbers:
        try:
            job = _read(old, "jobs", "number", number)[0]
            sound = _mend(job)
        except (*UNREADABLE, IndexError):
            salvage.lost += 1
            continue
        try:
            frames = _read(old, "frames", "job", number)
            is_open = job["state"] in OPEN
            # An ended job has no contents: damage to others' must not cost its results.
            contents = _read(old, "contents", "job", number) if is_open else []
            sound = sound and _is_whole(is_open, frames, contents)
        except UNREADABLE:
            sound = False
        if sound:
            salvage.intact += 1
        else:
            salvage.failed += 1
            frames, contents = [], []
            _fail(job)
        _write(new, "jobs", [job])
        _write(new, "frames", frames)
        _write(new, "contents", contents)
    return salvage


def _numbers(old: sqlite3.Connection) -> tuple[list[int], bool]:
    """Return the numbers of all jobs that can be found, and True if these are all."""
    numbers: set[int] = set()
    complete = True
    for query in NUMBER_QUERIES:
        try:
            for (number,) in old.execute(query):
                numbers.add(int(number))
        except UNREADABLE:
            complete = False
    return sorted(numbers), complete


Row = dict[str, Any]


def _read(old: sqlite3.Connection, table: str, key: str, number: int) -> list[Row]:
    cursor = old.execute(f"SELECT * FROM {table} WHERE {key} = ?", (number,))
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def _mend(job: Row) -> bool:
    """Return True if a job's row can be read. If not, change it so that the job can be reported as
    failed, or raise one of UNREADABLE."""
    names = COLUMNS.split(", ")
    with suppress(*UNREADABLE):
        job_of([job[name] for name in names], ())
        return True
    job |= {"state": "failed", "ask": msgspec.json.encode(JobOptions(top_k=1)), "fault": None}
    job_of([job[name] for name in names], ())
    return False


def _is_whole(is_open: bool, frames: list[Row], contents: list[Row]) -> bool:
    """Return True if each frame of a job can be read, and each without an outcome has its
    content."""
    records = [frame_of([frame[name] for name in FRAME_COLUMNS.split(", ")]) for frame in frames]
    pending = {record.number for record in records if record.state == "pending"}
    checksums = {frame["number"]: frame.get("crc32") for frame in frames}
    sound = {
        content["number"]
        for content in contents
        if is_intact(content["data"], checksums.get(content["number"]))
    }
    return bool(records) and pending <= sound and bool(pending) == is_open


def _fail(job: Row) -> None:
    now = time.time()
    job |= {"state": "failed", "fault": msgspec.json.encode(DAMAGED)}
    job["started"] = now if job["started"] is None else job["started"]
    job["finished"] = now if job["finished"] is None else job["finished"]
    job["webhook_due"] = now if job["webhook_state"] == "pending" else None


def _write(new: sqlite3.Connection, table: str, rows: list[Row]) -> None:
    """Add rows with those of their columns that the table has: another release may have more."""
    known = {row[1] for row in new.execute(f"PRAGMA table_info({table})")}
    for row in rows:
        names = [name for name in row if name in known]
        new.execute(
            f"INSERT OR IGNORE INTO {table} ({', '.join(names)})"
            f" VALUES ({', '.join('?' for _ in names)})",
            [row[name] for name in names],
        )
