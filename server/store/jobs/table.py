"""The table of jobs: a job is in it, and on the disk, before it is acknowledged.

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
    decode_options,
    final_state,
)
from server.system.clock import ClockGuard

_encode = msgspec.json.encode
# SQL: the results of a job have not expired.
NOT_EXPIRED = "(finished IS NULL OR finished >= ?)"
# Jobs that one transaction removes, so that no request waits long for the file.
REMOVE_AT_ONCE_MAX = 500
# Bytes that the file may take beside the frames of jobs that wait or run: the results of some
# 200,000 jobs of one frame.
RESULTS_MAX_BYTES = 200_000_000


class JobTable:
    """The jobs in `folder`, with the state of their webhooks.

    result_ttl: seconds after its end for which `get` and `page` find a job; `expire` only frees the
    room of older ones. most_results: bytes of the file beside `most_bytes`, held by `make_room`.
    Methods raise JobsUnavailableError if the file can't be used. `_clock_lock` guards `_clock`.
    """

    def __init__(
        self,
        folder: Path,
        most_jobs: int = 1000,
        most_bytes: int = 256_000_000,
        result_ttl: float = math.inf,
        most_results: int = RESULTS_MAX_BYTES,
    ) -> None:
        self._most_jobs = most_jobs
        self._most_bytes = most_bytes
        self._most_results = most_results
        self._result_ttl = result_ttl
        self._clock = ClockGuard("results of jobs")
        self._clock_lock = threading.Lock()
        self._file = JobFile(folder / FILE)

    def close(self) -> None:
        self._file.close()

    def add(self, job: NewJob, now: float | None = None) -> None:
        """Store a job with its frames. Raises JobsFullError if too many wait or run."""
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
                f"job queue is full: {jobs} jobs pending or running (job_max_pending)",
                retry_after=5,
            )
        pending = db.execute("SELECT sum(bytes) FROM frames WHERE state = 'pending'").fetchone()[0]
        if (pending or 0) + size > self._most_bytes:
            raise JobsFullError(
                f"job queue is full: pending frames take {(pending or 0) / 1e6:.1f} MB and these"
                f" {size / 1e6:.1f} MB, of {self._most_bytes / 1e6:g} MB (job_max_mb)",
                retry_after=5,
            )

    def get(self, job: str) -> JobRecord:
        """Return the job of that id. Raises JobNotFoundError."""
        with self._file.reading() as db:
            jobs = read_jobs(db, f"WHERE id = ? AND {NOT_EXPIRED}", (job, self._oldest()))
        if not jobs:
            raise JobNotFoundError(f"there is no job {job}, or its results have expired")
        return jobs[0]

    def page(
        self, owner: str | None, state: State | None, before: int | None, limit: int
    ) -> list[JobRecord]:
        """Return the newest `limit` jobs, newest first: of `owner` (None: anyone's), in `state`
        (None: any), older than the one whose number is `before`."""
        filters: dict[str, object] = {
            "owner = ?": owner,
            "state = ?": state,
            "number < ?": before,
        }
        conditions = {sql: value for sql, value in filters.items() if value is not None}
        conditions[NOT_EXPIRED] = self._oldest()
        where = f"WHERE {' AND '.join(conditions)}"
        with self._file.reading() as db:
            return read_jobs(
                db, f"{where} ORDER BY number DESC LIMIT ?", (*conditions.values(), limit)
            )

    def _oldest(self) -> float:
        """Return the Unix time before which results have expired, or minus infinity if the clock
        has jumped."""
        wall = time.time()
        return wall - self._result_ttl if self.settled(wall, time.monotonic()) else -math.inf

    def settled(self, wall: float, now: float) -> bool:
        """As `ClockGuard.is_stable`: True if results may be removed by age. For any thread."""
        with self._clock_lock:
            return self._clock.is_stable(wall, now)

    def data(self, job: str, number: int) -> bytes | None:
        """Return a frame as received; None once its job is finished. Raises StorageError if its
        content is damaged."""
        with self._file.reading() as db:
            return read_frame(db, job, number)

    def check(self) -> None:
        """Look for damage that this process does not see, since it has the pages in memory."""
        self._file.check()

    def open_frames(self, limit: int) -> list[OpenFrame]:
        """Return the oldest frames without an outcome."""
        with self._file.reading() as db:
            rows = db.execute(
                "SELECT j.id, f.number, f.kind, f.losses, j.created, j.request_id, j.ask"
                " FROM frames f JOIN jobs j ON j.number = f.job WHERE f.state = 'pending'"
                " ORDER BY f.job, f.number LIMIT ?",
                (limit,),
            )
            return [
                OpenFrame(job, number, kind, losses, at, request_id, decode_options(options))
                for job, number, kind, losses, at, request_id, options in rows
            ]

    def started(self, jobs: Iterable[str], now: float) -> list[str]:
        """Set these jobs to running; return those that were pending."""
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
        """Store the outcomes of frames that have none yet, and end the jobs whose frames all have
        one.

        Return the outcomes that were stored, and the jobs that ended.
        """
        stored, finished = [], []
        with self._file.writing() as db:
            for job, number, outcome in outcomes:
                state = "failed" if outcome.fault else "succeeded"
                changed = db.execute(
                    "UPDATE frames SET state = ?, outcome = ? WHERE number = ? AND"
                    " state = 'pending' AND job = (SELECT number FROM jobs WHERE id = ?)",
                    (state, _encode(outcome), number, job),
                ).rowcount
                if changed:
                    stored.append((job, number, outcome))
            for job in dict.fromkeys(job for job, _, _ in stored):
                (record,) = read_jobs(db, "WHERE id = ?", (job,))
                if all(frame.state != "pending" for frame in record.frames):
                    finished.append(self._finish(db, record, final_state(record), now))
        return stored, finished

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
        """End an open job as `state`: its frames without an outcome get none any more. Return the
        job, and True if this call ended it.

        Raises JobNotFoundError, or JobFinishedError if it had ended in another state.
        """
        with self._file.writing() as db:
            jobs = read_jobs(db, "WHERE id = ?", (job,))
            if not jobs:
                raise JobNotFoundError(f"there is no job {job}, or its results have expired")
            record = jobs[0]
            if record.state not in (*OPEN, state):
                raise JobFinishedError(f"the job {job} has {record.state} already")
            if record.state in OPEN:
                db.execute(
                    "UPDATE frames SET state = 'cancelled' WHERE job = ? AND state = 'pending'",
                    (record.number,),
                )
                self._finish(db, record, (state, fault), now)
            return read_jobs(db, "WHERE id = ?", (job,))[0], record.state in OPEN

    def lost(self, job: str, number: int) -> int:
        """Count that a worker took the frame and died. Return how many have, or 0 if the frame has
        its outcome."""
        with self._file.writing() as db:
            row = db.execute(
                "UPDATE frames SET losses = losses + 1 WHERE number = ? AND state = 'pending'"
                " AND job = (SELECT number FROM jobs WHERE id = ?) RETURNING losses",
                (number, job),
            ).fetchone()
        return row[0] if row else 0

    def unfinished(self) -> int:
        """Return the number of jobs that wait or run."""
        with self._file.reading() as db:
            row = db.execute("SELECT count(*) FROM jobs WHERE finished IS NULL").fetchone()
        return int(row[0])

    def expire(self, before: float) -> int:
        """Remove jobs that ended before that moment. Return how many: REMOVE_AT_ONCE_MAX if more
        may be left."""
        with self._file.writing() as db:
            return db.execute(
                "DELETE FROM jobs WHERE number IN (SELECT number FROM jobs WHERE finished < ?"
                " AND webhook_due IS NULL LIMIT ?)",
                (before, REMOVE_AT_ONCE_MAX),
            ).rowcount

    def make_room(self) -> int:
        """Remove jobs that have ended, whenever that was, until the file is within its bounds: the
        oldest first, and those whose webhook is pending last. Return as `expire` does."""
        with self._file.reading() as db:
            if not self._is_too_large(db):
                return 0
        removed = 0
        with self._file.writing() as db:
            ended = db.execute(
                "SELECT number FROM jobs WHERE finished IS NOT NULL"
                " ORDER BY webhook_due IS NOT NULL, finished LIMIT ?",
                (REMOVE_AT_ONCE_MAX,),
            ).fetchall()
            while removed < len(ended) and self._is_too_large(db):
                db.execute("DELETE FROM jobs WHERE number = ?", ended[removed])
                removed += 1
        return removed

    def _is_too_large(self, db: sqlite3.Connection) -> bool:
        pages, free, page_bytes = (
            db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return bool((pages - free) * page_bytes > self._most_bytes + self._most_results)

    def webhooks_due(
        self, now: float, longest_pause: float = math.inf, limit: int = 10
    ) -> list[JobRecord]:
        """Return ended jobs whose webhook is due; those due in more than `longest_pause` seconds
        too, since the clock was set back."""
        where = "WHERE webhook_due <= ? OR webhook_due > ? ORDER BY webhook_due LIMIT ?"
        with self._file.reading() as db:
            return read_jobs(db, where, (now, now + longest_pause, limit))

    def next_webhook_due(self) -> float | None:
        """Return the Unix time at which the next webhook is due; None if there is none."""
        with self._file.reading() as db:
            row = db.execute("SELECT min(webhook_due) FROM jobs").fetchone()
        return None if row[0] is None else float(row[0])

    def fail_webhooks(self) -> int:
        """Set all pending webhooks to failed, of open and of ended jobs; return how many."""
        with self._file.writing() as db:
            return db.execute(
                "UPDATE jobs SET webhook_state = 'failed', webhook_due = NULL"
                " WHERE webhook_state = 'pending'"
            ).rowcount

    def webhook_tried(self, job: str, state: str, due: float | None) -> None:
        """Count one more attempt of a webhook, with its new state and when to try again."""
        with self._file.writing() as db:
            db.execute(
                "UPDATE jobs SET webhook_attempts = webhook_attempts + 1, webhook_state = ?,"
                " webhook_due = ? WHERE id = ?",
                (state, due, job),
            )
