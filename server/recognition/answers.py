"""Options and answer of one frame, and the events that listeners get about it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from server.recognition.frame import ImageWarning
from server.recognition.images.measurement import Measurement
from server.recognition.images.problems import ImageProblem
from server.recognition.manifest import PolicySource
from server.recognition.tasks import TaskName
from server.values.trace import Trace


class Prediction(msgspec.Struct, frozen=True, omit_defaults=True):
    """One label with its probability 0..1. id: the label's outside name, or ''."""

    class_id: int
    label: str
    probability: float
    id: str = ""


class Options(msgspec.Struct, frozen=True):
    """Options of one frame.

    deadline: when the answer must be there, in seconds of time.monotonic(). latest_only: a newer
    frame of `camera` may take this one's place while it waits. part: the caller's name for what
    the frame shows. from_capture: the deadline counts from the frame's capture, so that sending it
    again gains no time. product, batch: what the line makes, and of which lot the part is. pulled:
    `camera` is one that the server reads, and no name of a sender's choice.
    """

    top_k: int = 5
    threshold: float = 0.0
    deadline: float = math.inf
    camera: str = ""
    latest_only: bool = False
    part: str = ""
    from_capture: bool = False
    product: str = ""
    batch: str = ""
    pulled: bool = False


class RegionAnswer(msgspec.Struct, frozen=True):
    """The answer to one of several regions. name: as in the recipe. box: left, top, width and
    height in pixels of the frame as sent, upright. The other fields are as in Answer."""

    name: str
    box: tuple[int, int, int, int]
    best: Prediction | None
    predictions: tuple[Prediction, ...]
    verdict: str | None
    verdict_reason: str | None
    details: Any


class ImageHealth(msgspec.Struct, frozen=True):
    """The health of one frame's picture. ok: it has no problem. learning: the usual values of its
    camera are not known, so that only limits for any camera hold. brightness: mean gray level
    0..255; contrast: standard deviation of the gray levels. sharpness: in relation to the usual, 1.
    shift: along x and y against the usual picture, in pixels of the frame. Both are null if they
    can't be measured."""

    ok: bool
    problems: tuple[ImageProblem, ...]
    learning: bool
    brightness: float
    contrast: float
    sharpness: float | None
    shift: tuple[float, float] | None


class Vote(msgspec.Struct, frozen=True):
    """The vote that a frame belongs to: `frames` of `of` were counted. verdict, reason: the part's,
    once final; `unsure` and `vote_open` before."""

    verdict: str
    reason: str
    frames: int
    of: int
    final: bool


class Answer(msgspec.Struct, frozen=True):
    """The answer to one frame.

    best: the label that represents the frame, also if it is below the threshold of `predictions`;
    None if the frame shows nothing that has a label.
    verdict, verdict_reason: by the bundle's policy, and the rule that decided; None without one.
    timing: seconds by stage, and `total`. brightness: mean grey level 0..255 of the pixels that the
    model saw; None for tensors, and if the bundle has no baseline to compare it with. warnings:
    possible faults of the image. details: what the model's task knows beyond labels. policy_source:
    whose verdict policy judged; None without a verdict. regions: the answers to several regions, of
    which the worst gives the fields above; none without such. measured: the statistics by which
    `health` is judged, until it is; both None if image health is off. vote: None if
    the frame belongs to none.
    """

    model: str
    version: int
    best: Prediction | None
    predictions: tuple[Prediction, ...]
    verdict: str | None
    timing: dict[str, float]
    brightness: float | None = None
    warnings: tuple[ImageWarning, ...] = ()
    verdict_reason: str | None = None
    task: TaskName = "classify"
    details: Any = None
    policy_source: PolicySource | None = None
    regions: tuple[RegionAnswer, ...] = ()
    measured: Measurement | None = None
    health: ImageHealth | None = None
    vote: Vote | None = None

    def parts(self) -> tuple["Answer", ...]:
        """Returns the answer to each of several regions, else this one alone."""
        if not self.regions:
            return (self,)
        return tuple(
            msgspec.structs.replace(
                self,
                best=each.best,
                predictions=each.predictions,
                verdict=each.verdict,
                verdict_reason=each.verdict_reason,
                details=each.details,
                regions=(),
            )
            for each in self.regions
        )

    @property
    def label(self) -> str:
        """The best label, or ''."""
        return self.best.label if self.best else ""

    @property
    def probability(self) -> float:
        """The best label's probability, 0 without one."""
        return self.best.probability if self.best else 0.0


def unsure(answer: Answer, reason: str) -> Answer:
    """Return `answer` with the verdict unsure for `reason`, also for each region; without a verdict
    as it is."""
    if answer.verdict is None:
        return answer
    verdict = {"verdict": "unsure", "verdict_reason": reason}
    regions = tuple(msgspec.structs.replace(each, **verdict) for each in answer.regions)
    return msgspec.structs.replace(answer, **verdict, regions=regions)


# From the worst to the best.
VERDICTS = ("fail", "unsure", "pass", None)


def of_regions(
    answers: Sequence[Answer], names: Sequence[str], boxes: Sequence[tuple[int, int, int, int]]
) -> Answer:
    """Returns the answer to a frame of several regions: the one with the worst verdict, the first
    of equals, and all of them in `regions`."""
    worst = min(answers, key=lambda each: VERDICTS.index(each.verdict))
    regions = tuple(
        RegionAnswer(
            name,
            box,
            each.best,
            each.predictions,
            each.verdict,
            each.verdict_reason,
            each.details,
        )
        for name, box, each in zip(names, boxes, answers, strict=True)
    )
    return msgspec.structs.replace(worst, regions=regions)


class FrameAnswered(msgspec.Struct, frozen=True):
    """One frame that was answered. at: when, in Unix seconds. data: the image file as received;
    None if the request carried tensors. cached: the answer was made for another request. trace: of
    the request, if it named one."""

    at: float
    request_id: str
    answer: Answer
    options: Options
    data: bytes | None = None
    cached: bool = False
    trace: Trace | None = None


# Called in the thread that answers, perhaps before the answer is sent: it returns at once and
# raises nothing.
Listener = Callable[[FrameAnswered], None]


class FrameRefused(msgspec.Struct, frozen=True):
    """One frame that was refused or failed.

    at: when, in Unix seconds. status, code: of the error that was answered. model, version, camera,
    part, product, batch: as far as they are known, else empty and 0. seconds: from the request's
    arrival. reason: the message to the sender, without keys. cause: finer than the code, or empty.
    address: the sender's, if known. let_in: the sender has a valid key, or needs none on this
    machine. trace: of the request, if it named one. vote: that ended with it, None for none.
    """

    at: float
    request_id: str
    status: int
    code: str
    model: str = ""
    version: int = 0
    camera: str = ""
    part: str = ""
    seconds: float = 0.0
    reason: str = ""
    cause: str = ""
    address: str = ""
    let_in: bool = False
    product: str = ""
    batch: str = ""
    trace: Trace | None = None
    vote: Vote | None = None


# As a Listener, for frames that were refused or failed.
RefusalListener = Callable[[FrameRefused], None]
