"""Which ends of jobs are to be told to their webhooks, and when."""

import math

from server.store.jobs.database import JobFile, read_jobs
from server.store.jobs.records import JobRecord


class JobWebhooks:
    """The webhooks of the jobs in `file`. Whatever can't be read or written raises
    JobsUnavailableError."""

    def __init__(self, file: JobFile) -> None:
        self._file = file

    def due(self, now: float, longest: float = math.inf, limit: int = 10) -> list[JobRecord]:
        """Ended jobs whose end is to be told now; those due in more than `longest` seconds too,
        since the clock has been set back."""
        where = "WHERE webhook_due <= ? OR webhook_due > ? ORDER BY webhook_due LIMIT ?"
        with self._file.reading() as db:
            return read_jobs(db, where, (now, now + longest, limit))

    def next_due(self) -> float | None:
        """When the next one is due."""
        with self._file.reading() as db:
            row = db.execute("SELECT min(webhook_due) FROM jobs").fetchone()
        return None if row[0] is None else float(row[0])

    def give_up(self) -> int:
        """Has no end of a job told any more, be it open or ended; returns of how many."""
        with self._file.writing() as db:
            return db.execute(
                "UPDATE jobs SET webhook_state = 'failed', webhook_due = NULL"
                " WHERE webhook_state = 'pending'"
            ).rowcount

    def told(self, job: str, state: str, due: float | None) -> None:
        """Keeps that a webhook was tried once more: how it stands, and when to try again."""
        with self._file.writing() as db:
            db.execute(
                "UPDATE jobs SET webhook_attempts = webhook_attempts + 1, webhook_state = ?,"
                " webhook_due = ? WHERE id = ?",
                (state, due, job),
            )
