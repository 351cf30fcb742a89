"""What the server tells workers of a frame, and what they tell back."""

from typing import Literal

import msgspec

from server.store.jobs.records import FrameOutcome, JobOptions, Kind

TASK, QUEUE = "lineside.frame", "lineside"
# In a worker's environment, the process id of the server that started it.
WORKER_OF = "WORKER_OF_LINESIDE"
# Seconds for which the broker keeps what nobody asked for any more.
KEPT = 86_400


class BrokerLostError(Exception):
    """The broker can't be reached now; the message says why."""


class FrameTask(msgspec.Struct, frozen=True):
    """One frame to answer, by exactly this version of the model. task: the name of this attempt.
    sha256: of the model's file, where its bundle says."""

    task: str
    job: str
    number: int
    kind: Kind
    ask: JobOptions
    model: str
    version: int
    sha256: str


class FrameReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a worker is with a frame. worker: HOST:PID. beat: rises with every second of work.

    state: `running`, in `stage`; `done`, with the outcome; `dropped`, where its job was cancelled;
    `missing`, where the broker no longer had the frame.
    """

    state: Literal["running", "done", "dropped", "missing"]
    worker: str
    stage: str = ""
    beat: int = 0
    outcome: FrameOutcome | None = None


def read_report(data: bytes) -> FrameReport | None:
    """A report as a worker sent it; None where it can't be read, as one of another version of this
    program may be."""
    try:
        return msgspec.json.decode(data, type=FrameReport)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def report_key(task: str) -> str:
    """Where the report of an attempt is kept."""
    return f"lineside-report-{task}"


def frame_key(job: str, number: int) -> str:
    """Where a frame is kept for workers that share nothing but the broker."""
    return f"lineside-frame-{job}-{number}"


def cancel_key(job: str) -> str:
    """What is there once a job is cancelled."""
    return f"lineside-cancel-{job}"
