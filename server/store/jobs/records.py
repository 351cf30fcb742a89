"""Jobs and their frames: as records, and as rows of the tables that hold them."""

import zlib
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import msgspec

from server.recognition.answers import Answer
from server.system.sqlite import DatabaseDamagedError
from server.values.trace import Trace

T = TypeVar("T")

# The tables' file in the folder `data`.
FILE = "jobs.db"
State = Literal["pending", "running", "succeeded", "failed", "cancelled"]
STATES: tuple[State, ...] = ("pending", "running", "succeeded", "failed", "cancelled")
# States of a job that has not ended.
OPEN: tuple[State, ...] = ("pending", "running")
Kind = Literal["image", "numbers"]

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
# Adds what files of earlier releases lack: the checksum of a frame's content, null for frames of
# those releases. They can use a file that has it.
UPGRADES = ("ALTER TABLE frames ADD COLUMN crc32 INTEGER",)
COLUMNS = (
    "number, id, state, owner, request_id, created, started, finished, ask, fault, webhook,"
    " webhook_state, webhook_attempts"
)
FRAME_COLUMNS = "number, name, kind, state, losses, outcome"


class JobOptions(msgspec.Struct, frozen=True):
    """The options of a job, the same for each of its frames.

    captured_age: seconds from capture to arrival, if the sender said when it was captured.
    expires: Unix seconds after which an answer is worth nothing. trace: of the job's request.
    """

    top_k: int
    model: str | None = None
    version: int | None = None
    threshold: float = 0.0
    camera: str | None = None
    part: str | None = None
    captured_age: float | None = None
    expires: float | None = None
    heatmap: bool = False
    product: str | None = None
    batch: str | None = None
    trace: Trace | None = None


class JobError(msgspec.Struct, frozen=True):
    """The reason for which there is no answer: the code that the synchronous route would have
    given, or one of jobs, and a sentence."""

    code: str
    message: str


class NumbersAnswer(msgspec.Struct, frozen=True):
    """The answer to plain numbers: the outputs by name, and the labels of each row, if any."""

    model: str
    version: int
    outputs: dict[str, Any]
    answers: tuple[Answer, ...] = ()


class FrameOutcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """The end of one frame: exactly one of the three is set."""

    answer: Answer | None = None
    numbers: NumbersAnswer | None = None
    fault: JobError | None = None


class NewFrame(msgspec.Struct, frozen=True):
    """One frame as received. data: an image file, or JSON numbers."""

    name: str
    kind: Kind
    data: bytes


class NewJob(msgspec.Struct, frozen=True):
    """A job before it is stored. owner: the caller's name, if callers are known."""

    id: str
    request_id: str
    ask: JobOptions
    frames: tuple[NewFrame, ...]
    owner: str | None = None
    webhook: str | None = None


class FrameRecord(msgspec.Struct, frozen=True):
    """One frame of a job. losses: workers that took it and died or fell silent."""

    number: int
    name: str
    kind: Kind
    state: State
    losses: int
    outcome: FrameOutcome | None


class Webhook(msgspec.Struct, frozen=True):
    """The URL to notify of a job's end, and how far that is."""

    url: str
    state: Literal["pending", "delivered", "failed"]
    attempts: int


class JobRecord(msgspec.Struct, frozen=True):
    """A job as stored. Times are Unix seconds. number: rises with each job."""

    number: int
    id: str
    state: State
    owner: str | None
    request_id: str
    created: float
    started: float | None
    finished: float | None
    ask: JobOptions
    fault: JobError | None
    webhook: Webhook | None
    frames: tuple[FrameRecord, ...]


class OpenFrame(msgspec.Struct, frozen=True):
    """A frame that has no outcome yet. created: when its job came."""

    job: str
    number: int
    kind: Kind
    losses: int
    created: float
    request_id: str
    ask: JobOptions

    @property
    def key(self) -> tuple[str, int]:
        """The frame's name in this table."""
        return self.job, self.number

    @property
    def task(self) -> str:
        """The name of this attempt, under which workers report on it."""
        return f"{self.job}-{self.number}-{self.losses}"


def job_of(row: Sequence[Any], frames: tuple[FrameRecord, ...]) -> JobRecord:
    """Return a row of `COLUMNS` as a record, with the job's frames. Raises DatabaseDamagedError for
    a row that this program can't have written."""
    number, job, state, owner, request_id, created, started, finished, *rest = row
    options, fault, url, webhook_state, attempts = rest
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
        ask=decode_options(options),
        fault=_decode(fault, JobError) if fault else None,
        webhook=Webhook(url, webhook_state, attempts) if url else None,
        frames=frames,
    )


def frame_of(row: Sequence[Any]) -> FrameRecord:
    """Return a row of `FRAME_COLUMNS` as a record. Raises DatabaseDamagedError as `job_of` does."""
    number, name, kind, state, losses, outcome = row
    if state not in STATES:
        raise DatabaseDamagedError("a frame has a state that there is not")
    decoded = _decode(outcome, FrameOutcome) if outcome else None
    return FrameRecord(number, name, kind, state, losses, decoded)


def decode_options(data: bytes) -> JobOptions:
    """Return a job's options as stored. Raises DatabaseDamagedError."""
    return _decode(data, JobOptions)


def _decode(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError) as error:
        raise DatabaseDamagedError(f"a row of it can't be read: {error}") from None


def is_intact(data: bytes, checksum: int | None) -> bool:
    """Return False if a frame's content does not have its checksum. One without is not checked."""
    return checksum is None or zlib.crc32(data) == checksum


def final_state(job: JobRecord) -> tuple[State, JobError | None]:
    """Return the state of a job whose frames have all ended: `succeeded` only if each one did."""
    faults = [frame.outcome.fault for frame in job.frames if frame.outcome and frame.outcome.fault]
    if not faults:
        return "succeeded", None
    if len(job.frames) == 1:
        return "failed", faults[0]
    message = f"{len(faults)} of {len(job.frames)} frames failed; the first: {faults[0].message}"
    return "failed", JobError(faults[0].code, message)
