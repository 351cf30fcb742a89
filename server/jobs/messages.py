"""The messages about a frame between the server and its workers. It imports no Celery, since
servers without a job never import that."""

from typing import Any, Literal

import msgspec

from server.recognition.manifest import PolicySource
from server.store.jobs.records import FrameOutcome, JobOptions, Kind, OpenFrame

TASK = "lineside.frame"
QUEUE = "lineside"
# In a worker's environment, the process id of the server that started it.
WORKER_OF = "WORKER_OF_LINESIDE"
# Seconds for which the broker keeps a value that nobody asks for.
VALUE_LIFETIME_S = 86_400


class BrokerLostError(Exception):
    """The broker can't be reached now; the message says why."""


class FrameTask(msgspec.Struct, frozen=True):
    """One frame to answer, by exactly this version of the model.

    task: the name of this attempt. sha256: of the model's file, or "" if its bundle has none.
    policy: the verdict policy of the server's device or of the frame's product, as policy_source
    says; None for the bundle's own.
    """

    task: str
    job: str
    number: int
    kind: Kind
    ask: JobOptions
    model: str
    version: int
    sha256: str
    policy: dict[str, Any] | None = None
    policy_source: PolicySource = "device"


class FrameReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """The progress of a worker with a frame. worker: HOST:PID. beat: rises with every second of
    work.

    state: `running`, in `stage`; `done`, with the outcome; `dropped` if its job was cancelled;
    `missing` if the broker no longer had the frame.
    """

    state: Literal["running", "done", "dropped", "missing"]
    worker: str
    stage: str = ""
    beat: int = 0
    outcome: FrameOutcome | None = None


class InFlightFrame:
    """A frame that was sent. heard: when its report last changed, in the seconds of
    `Dispatcher.step`."""

    def __init__(self, frame: OpenFrame, task: FrameTask, now: float) -> None:
        self.frame = frame
        self.task = task
        self.sent = now
        self.heard = now
        self.report: FrameReport | None = None

    @property
    def resolved(self) -> OpenFrame:
        """The frame, with the model and version that it was sent to."""
        options = msgspec.structs.replace(
            self.frame.ask, model=self.task.model, version=self.task.version
        )
        return msgspec.structs.replace(self.frame, ask=options)


def read_report(data: bytes) -> FrameReport | None:
    """Return a report as a worker sent it; None if it can't be read: the worker may run another
    version of this program."""
    try:
        return msgspec.json.decode(data, type=FrameReport)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def report_key(task: str) -> str:
    return f"lineside-report-{task}"


def frame_key(job: str, number: int) -> str:
    """Return the key of a frame, for workers that share nothing but the broker."""
    return f"lineside-frame-{job}-{number}"


def cancel_key(job: str) -> str:
    """Return the key that is set once a job is cancelled."""
    return f"lineside-cancel-{job}"
