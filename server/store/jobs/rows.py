"""The tables of jobs, and their rows as records."""

import zlib
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from server.store.jobs.records import (
    STATES,
    FrameOutcome,
    FrameRecord,
    JobError,
    JobOptions,
    JobRecord,
    State,
    Webhook,
)
from server.system.sqlite import DatabaseDamagedError

T = TypeVar("T")

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, state TEXT NOT NULL,
    owner TEXT, request_id TEXT NOT NULL, ask BLOB NOT NULL,
    created REAL NOT NULL, started REAL, finished REAL, fault BLOB,
    webhook TEXT, webhook_state TEXT, webhook_attempts INTEGER NOT NULL DEFAULT 0, webhook_due REAL
);
CREATE INDEX IF NOT EXISTS jobs_finished ON jobs (finished) WHERE finished IS NOT NULL;
CREATE INDEX IF NOT EXISTS jobs_open ON jobs (number) WHERE finished IS NULL;
CREATE INDEX IF NOT EXISTS jobs_due ON jobs (webhook_due) WHERE webhook_due IS NOT NULL;
CREATE TABLE IF NOT EXISTS frames (
    job INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE, number INTEGER NOT NULL,
    name TEXT NOT NULL, kind TEXT NOT NULL, bytes INTEGER NOT NULL, state TEXT NOT NULL,
    losses INTEGER NOT NULL DEFAULT 0, outcome BLOB, crc32 INTEGER, PRIMARY KEY (job, number)
);
CREATE INDEX IF NOT EXISTS frames_open ON frames (job, number, bytes) WHERE state = 'pending';
CREATE TABLE IF NOT EXISTS contents (
    job INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE, number INTEGER NOT NULL,
    data BLOB NOT NULL, PRIMARY KEY (job, number)
);
"""
# What files of earlier releases lack: the checksum of a frame's content, null for those that they
# kept. They can use a file that has it.
UPGRADES = ("ALTER TABLE frames ADD COLUMN crc32 INTEGER",)
COLUMNS = (
    "number, id, state, owner, request_id, created, started, finished, ask, fault, webhook,"
    " webhook_state, webhook_attempts"
)
FRAME_COLUMNS = "number, name, kind, state, losses, outcome"


def job_of(row: Sequence[Any], frames: tuple[FrameRecord, ...]) -> JobRecord:
    """A row of `COLUMNS`, with the job's frames. Raises DatabaseDamagedError for one that nobody
    wrote so."""
    number, job, state, owner, request_id, created, started, finished, *rest = row
    ask, fault, url, told, attempts = rest
    if state not in STATES:
        raise DatabaseDamagedError("a job has a state that there is not")
    return JobRecord(
        number=number,
        id=job,
        state=state,
        owner=owner,
        request_id=request_id,
        created=created,
        started=started,
        finished=finished,
        ask=decode_ask(ask),
        fault=_decode(fault, JobError) if fault else None,
        webhook=Webhook(url, told, attempts) if url else None,
        frames=frames,
    )


def frame_of(row: Sequence[Any]) -> FrameRecord:
    """A row of `FRAME_COLUMNS`. Raises DatabaseDamagedError as `job_of` does."""
    number, name, kind, state, losses, outcome = row
    if state not in STATES:
        raise DatabaseDamagedError("a frame has a state that there is not")
    return FrameRecord(
        number=number,
        name=name,
        kind=kind,
        state=state,
        losses=losses,
        outcome=_decode(outcome, FrameOutcome) if outcome else None,
    )


def decode_ask(data: bytes) -> JobOptions:
    """What a job asks, as it is kept. Raises DatabaseDamagedError."""
    return _decode(data, JobOptions)


def _decode(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError) as error:
        raise DatabaseDamagedError(f"a row of it can't be read: {error}") from None


def intact(data: bytes, checksum: int | None) -> bool:
    """Whether a frame is as it was kept, as far as its checksum tells."""
    return checksum is None or zlib.crc32(data) == checksum


def verdict(job: JobRecord) -> tuple[State, JobError | None]:
    """How a job ends whose frames all have: well only where each one did."""
    faults = [frame.outcome.fault for frame in job.frames if frame.outcome and frame.outcome.fault]
    if not faults:
        return "succeeded", None
    if len(job.frames) == 1:
        return "failed", faults[0]
    message = f"{len(faults)} of {len(job.frames)} frames failed; the first: {faults[0].message}"
    return "failed", JobError(faults[0].code, message)
