"""The tables of jobs, and their rows as records."""

from collections.abc import Sequence
from typing import Any

import msgspec

from server.store.job_records import Ask, Fault, FrameRecord, JobRecord, Outcome, State, Webhook

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
    losses INTEGER NOT NULL DEFAULT 0, outcome BLOB, PRIMARY KEY (job, number)
);
CREATE INDEX IF NOT EXISTS frames_open ON frames (job, number, bytes) WHERE state = 'pending';
CREATE TABLE IF NOT EXISTS contents (
    job INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE, number INTEGER NOT NULL,
    data BLOB NOT NULL, PRIMARY KEY (job, number)
);
"""
COLUMNS = (
    "number, id, state, owner, request_id, created, started, finished, ask, fault, webhook,"
    " webhook_state, webhook_attempts"
)
FRAME_COLUMNS = "number, name, kind, state, losses, outcome"


def job_of(row: Sequence[Any], frames: tuple[FrameRecord, ...]) -> JobRecord:
    """A row of `COLUMNS`, with the job's frames."""
    number, job, state, owner, request_id, created, started, finished, *rest = row
    ask, fault, url, told, attempts = rest
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
        fault=msgspec.json.decode(fault, type=Fault) if fault else None,
        webhook=Webhook(url, told, attempts) if url else None,
        frames=frames,
    )


def frame_of(row: Sequence[Any]) -> FrameRecord:
    """A row of `FRAME_COLUMNS`."""
    number, name, kind, state, losses, outcome = row
    return FrameRecord(
        number=number,
        name=name,
        kind=kind,
        state=state,
        losses=losses,
        outcome=msgspec.json.decode(outcome, type=Outcome) if outcome else None,
    )


def decode_ask(data: bytes) -> Ask:
    """What a job asks, as it is kept."""
    return msgspec.json.decode(data, type=Ask)


def verdict(job: JobRecord) -> tuple[State, Fault | None]:
    """How a job ends whose frames all have: well only where each one did."""
    faults = [frame.outcome.fault for frame in job.frames if frame.outcome and frame.outcome.fault]
    if not faults:
        return "succeeded", None
    if len(job.frames) == 1:
        return "failed", faults[0]
    message = f"{len(faults)} of {len(job.frames)} frames failed; the first: {faults[0].message}"
    return "failed", Fault(faults[0].code, message)
