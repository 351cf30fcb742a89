"""What is kept of a job and of each of its frames."""

from typing import Any, Literal

import msgspec

from server.recognition.answers import Answer

# The table's file in the folder `data`.
FILE = "jobs.db"
State = Literal["pending", "running", "succeeded", "failed", "cancelled"]
STATES: tuple[State, ...] = ("pending", "running", "succeeded", "failed", "cancelled")
# States that a job leaves again.
OPEN: tuple[State, ...] = ("pending", "running")
Kind = Literal["image", "numbers"]


class JobOptions(msgspec.Struct, frozen=True):
    """What a job asks of each frame. captured_age: seconds from capture to arrival, where the
    sender said when. expires: Unix seconds after which an answer is worth nothing."""

    top_k: int
    model: str | None = None
    version: int | None = None
    threshold: float = 0.0
    camera: str | None = None
    part: str | None = None
    captured_age: float | None = None
    expires: float | None = None


class JobError(msgspec.Struct, frozen=True):
    """Why there is no answer: the code that the synchronous route would have given, or one of
    jobs, and a sentence."""

    code: str
    message: str


class NumbersAnswer(msgspec.Struct, frozen=True):
    """What plain numbers came to: the outputs by name, and the labels of each row, if any."""

    model: str
    version: int
    outputs: dict[str, Any]
    answers: tuple[Answer, ...] = ()


class FrameOutcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one frame ended: exactly one of the three is there."""

    answer: Answer | None = None
    numbers: NumbersAnswer | None = None
    fault: JobError | None = None


class NewFrame(msgspec.Struct, frozen=True):
    """One frame as received. data: an image file, or JSON numbers."""

    name: str
    kind: Kind
    data: bytes


class NewJob(msgspec.Struct, frozen=True):
    """A job before it is kept. owner: the caller's name, where callers are known."""

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
    """Whom to tell of a job's end, and how far that is."""

    url: str
    state: Literal["pending", "delivered", "failed"]
    attempts: int


class JobRecord(msgspec.Struct, frozen=True):
    """A job as kept. Times are Unix seconds. number: rises with each job."""

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
        """The name of this attempt, under which workers tell of it."""
        return f"{self.job}-{self.number}-{self.losses}"
