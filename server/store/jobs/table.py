"""The table of jobs: what was acknowledged is in it, and on the disk, before it was acknowledged.

One process writes to it; workers on the same machine read frames from it (`FrameReader`).
"""

import math
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from server.errors import JobFinishedError, JobNotFoundError, JobsFullError
from server.store.jobs.database import JobFile, read_frame, read_jobs
from server.store.jobs.records import (
    FILE,
    OPEN,
    FrameOutcome,
    JobError,
    JobRecord,
    NewJob,
    OpenFrame,
    State,
)
from server.store.jobs.rows import decode_ask, verdict
from server.store.jobs.webhooks import JobWebhooks
from server.system.clock import ClockGuard

_encode = msgspec.json.encode
# Of a job: that its results have not expired.
KNOWN = "(finished IS NULL OR finished >= ?)"
# Jobs that one transaction removes, so that no request waits long for the file.
REMOVED = 500
# Bytes that the file may take beside the frames of jobs that wait or run: the results of some
# 200,000 jobs of one frame.
MOST_RESULTS = 200_000_000


class JobTable:
    """The jobs in `folder`; `webhooks` are those to be told of their end.

    result_ttl: seconds after its end for which `get` and `page` find a job; `expire` only frees the
    room of older ones. most_results: bytes of the file beside `most_bytes`, kept by `make_room`.
    Whatever can't be read or written raises JobsUnavailableError. `_looking` guards `_clock`.
    """

    def __init__(
        self,
        folder: Path,
        most_jobs: int = 1000,
        most_bytes: int = 256_000_000,
        result_ttl: float = math.inf,
        most_results: int = MOST_RESULTS,
    ) -> None:
        self._most_jobs, self._most_bytes = most_jobs, most_bytes
        self._most_results = most_results
        self._result_ttl = result_ttl
        self._clock, self._looking = ClockGuard("results of jobs"), threading.Lock()
        self._file = JobFile(folder / FILE)
        self.webhooks = JobWebhooks(self._file)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def add(self, job: NewJob, now: float | None = None) -> None:
        """Keeps a job with its frames. Raises JobsFullError where too many wait or run."""
        now = time.time() if now is None else now
        size = sum(len(frame.data) for frame in job.frames)
        checksums = [zlib.crc32(frame.data) for frame in job.frames]
        with self._file.writing() as db:
            self._check_room(db, size)
            cursor = db.execute(
                "INSERT INTO jobs (id, state, owner, request_id, ask, created, webhook,"
                " webhook_state) VALUES (?, 'pending', ?, ?, ?, ?, ?, ?)",
                (job.id, job.owner, job.request_id, _encode(job.ask), now, job.webhook)
                + (("pending",) if job.webhook else (None,)),
            )
            number = cursor.lastrowid
            db.executemany(
                "INSERT INTO frames (job, number, name, kind, bytes, state, crc32)"
                " VALUES (?, ?, ?, ?, ?, 'pending', ?)",
                [
                    (number, i, f.name, f.kind, len(f.data), checksum)
                    for i, (f, checksum) in enumerate(zip(job.frames, checksums, strict=True))
                ],
            )
            db.executemany(
                "INSERT INTO contents VALUES (?, ?, ?)",
                [(number, i, f.data) for i, f in enumerate(job.frames)],
            )

    def _check_room(self, db: sqlite3.Connection, size: int) -> None:
        jobs = db.execute("SELECT count(*) FROM jobs WHERE finished IS NULL").fetchone()[0]
        if jobs >= self._most_jobs:
            raise JobsFullError(
                f"{jobs} jobs wait or run already, which is the most", retry_after=5
            )
        held = db.execute("SELECT sum(bytes) FROM frames WHERE state = 'pending'").fetchone()[0]
        if (held or 0) + size > self._most_bytes:
            raise JobsFullError(
                f"the frames of jobs that wait take {(held or 0) / 1e6:.1f} MB and these"
                f" {size / 1e6:.1f}: at most {self._most_bytes / 1e6:g} MB are kept",
                retry_after=5,
            )

    def get(self, job: str) -> JobRecord:
        """The job of that id. Raises JobNotFoundError."""
        with self._file.reading() as db:
            found = read_jobs(db, f"WHERE id = ? AND {KNOWN}", (job, self._oldest()))
        if not found:
            raise JobNotFoundError(f"there is no job {job}, or its results have expired")
        return found[0]

    def page(
        self, owner: str | None, state: State | None, before: int | None, limit: int
    ) -> list[JobRecord]:
        """The newest `limit` jobs, newest first: of `owner` (None: anyone's), in `state` (None:
        any), older than the one whose number is `before`."""
        tests: dict[str, object] = {
            "owner = ?": owner,
            "state = ?": state,
            "number < ?": before,
        }
        wanted = {test: value for test, value in tests.items() if value is not None}
        wanted[KNOWN] = self._oldest()
        where = f"WHERE {' AND '.join(wanted)}"
        with self._file.reading() as db:
            return read_jobs(db, f"{where} ORDER BY number DESC LIMIT ?", (*wanted.values(), limit))

    def _oldest(self) -> float:
        """When the oldest job ended whose results have not expired, where the time of day may be
        believed."""
        wall = time.time()
        return wall - self._result_ttl if self.settled(wall, time.monotonic()) else -math.inf

    def settled(self, wall: float, now: float) -> bool:
        """As `ClockGuard.is_stable`: whether results may go by their age. For any thread."""
        with self._looking:
            return self._clock.is_stable(wall, now)

    def data(self, job: str, number: int) -> bytes | None:
        """A frame as received; None once its job is finished. Raises StorageError if it is not as
        it was kept."""
        with self._file.reading() as db:
            return read_frame(db, job, number)

    def check(self) -> None:
        """Looks for damage that only others see, who have less of the file in memory."""
        self._file.check()

    def open_frames(self, limit: int) -> list[OpenFrame]:
        """The oldest frames without an outcome."""
        with self._file.reading() as db:
            rows = db.execute(
                "SELECT j.id, f.number, f.kind, f.losses, j.created, j.request_id, j.ask"
                " FROM frames f JOIN jobs j ON j.number = f.job WHERE f.state = 'pending'"
                " ORDER BY f.job, f.number LIMIT ?",
                (limit,),
            )
            return [
                OpenFrame(job, number, kind, losses, at, request_id, decode_ask(ask))
                for job, number, kind, losses, at, request_id, ask in rows
            ]

    def started(self, jobs: Iterable[str], now: float) -> list[str]:
        """Tells that frames of these jobs are being worked on; returns those that were pending."""
        with self._file.writing() as db:
            return [
                job
                for job in jobs
                if db.execute(
                    "UPDATE jobs SET state = 'running', started = ?"
                    " WHERE id = ? AND state = 'pending'",
                    (now, job),
                ).rowcount
            ]

    def ended(
        self, outcomes: Sequence[tuple[str, int, FrameOutcome]], now: float
    ) -> tuple[list[tuple[str, int, FrameOutcome]], list[JobRecord]]:
        """Keeps the outcomes of frames that have none yet, and ends the jobs that wait for no more.

        Returns the outcomes that were kept, and the jobs that ended.
        """
        kept, finished = [], []
        with self._file.writing() as db:
            for job, number, outcome in outcomes:
                state = "failed" if outcome.fault else "succeeded"
                changed = db.execute(
                    "UPDATE frames SET state = ?, outcome = ? WHERE number = ? AND"
                    " state = 'pending' AND job = (SELECT number FROM jobs WHERE id = ?)",
                    (state, _encode(outcome), number, job),
                ).rowcount
                if changed:
                    kept.append((job, number, outcome))
            for job in dict.fromkeys(job for job, _, _ in kept):
                (record,) = read_jobs(db, "WHERE id = ?", (job,))
                if all(frame.state != "pending" for frame in record.frames):
                    finished.append(self._finish(db, record, verdict(record), now))
        return kept, finished

    def _finish(
        self, db: sqlite3.Connection, job: JobRecord, end: tuple[State, JobError | None], now: float
    ) -> JobRecord:
        state, fault = end
        db.execute(
            "UPDATE jobs SET state = ?, fault = ?, started = coalesce(started, ?), finished = ?,"
            " webhook_due = iif(webhook_state = 'pending', ?, NULL) WHERE number = ?",
            (state, _encode(fault) if fault else None, now, now, now, job.number),
        )
        db.execute("DELETE FROM contents WHERE job = ?", (job.number,))
        started = now if job.started is None else job.started
        return msgspec.structs.replace(job, state=state, fault=fault, started=started, finished=now)

    def stop(self, job: str, state: State, fault: JobError, now: float) -> tuple[JobRecord, bool]:
        """Ends an open job as `state`: its frames without an outcome get none any more. Returns the
        job, and whether it had not ended so before.

        Raises JobNotFoundError, or JobFinishedError where it had ended otherwise.
        """
        with self._file.writing() as db:
            found = read_jobs(db, "WHERE id = ?", (job,))
            if not found:
                raise JobNotFoundError(f"there is no job {job}, or its results have expired")
            if found[0].state not in (*OPEN, state):
                raise JobFinishedError(f"the job {job} has {found[0].state} already")
            if found[0].state in OPEN:
                db.execute(
                    "UPDATE frames SET state = 'cancelled' WHERE job = ? AND state = 'pending'",
                    (found[0].number,),
                )
                self._finish(db, found[0], (state, fault), now)
            return read_jobs(db, "WHERE id = ?", (job,))[0], found[0].state in OPEN

    def lost(self, job: str, number: int) -> int:
        """Counts that a worker took the frame and died; returns how many have, or 0 where the frame
        needs no other."""
        with self._file.writing() as db:
            row = db.execute(
                "UPDATE frames SET losses = losses + 1 WHERE number = ? AND state = 'pending'"
                " AND job = (SELECT number FROM jobs WHERE id = ?) RETURNING losses",
                (number, job),
            ).fetchone()
        return row[0] if row else 0

    def unfinished(self) -> int:
        """Jobs that wait or run."""
        with self._file.reading() as db:
            row = db.execute("SELECT count(*) FROM jobs WHERE finished IS NULL").fetchone()
        return int(row[0])

    def expire(self, before: float) -> int:
        """Removes jobs that ended before that moment; returns how many, REMOVED where more may be
        left."""
        with self._file.writing() as db:
            return db.execute(
                "DELETE FROM jobs WHERE number IN (SELECT number FROM jobs WHERE finished < ?"
                " AND webhook_due IS NULL LIMIT ?)",
                (before, REMOVED),
            ).rowcount

    def make_room(self) -> int:
        """Removes jobs that have ended, whenever that was, until the file is within its bounds: the
        oldest first, and those whose end is still to be told last. Returns as `expire` does."""
        with self._file.reading() as db:
            if not self._beyond(db):
                return 0
        removed = 0
        with self._file.writing() as db:
            ended = db.execute(
                "SELECT number FROM jobs WHERE finished IS NOT NULL"
                " ORDER BY webhook_due IS NOT NULL, finished LIMIT ?",
                (REMOVED,),
            ).fetchall()
            while removed < len(ended) and self._beyond(db):
                db.execute("DELETE FROM jobs WHERE number = ?", ended[removed])
                removed += 1
        return removed

    def _beyond(self, db: sqlite3.Connection) -> bool:
        whole, free, page = (
            db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return bool((whole - free) * page > self._most_bytes + self._most_results)
