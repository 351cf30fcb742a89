"""Defines a task: from a bundle and the outputs of its model to a typed result, and everything that
the server does with that result.

`Task` has the defaults that suit any task whose result has a best label. `Reader` belongs to one
loaded version.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import cache
from typing import Any, Generic, Literal, Self, TypeVar

import msgspec
from msgspec import UNSET

from server.recognition.answers import Answer, Options, Prediction
from server.recognition.drawing import Mark, Overlay
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import (
    Baseline,
    Bundle,
    Golden,
    Manifest,
    PolicySource,
    VerdictPolicy,
)
from server.recognition.preprocessing import Placement, Tensor
from server.recognition.tasks import TASK_NAMES, TaskName, load_task
from server.values.validation import InvalidValueError, convert
from server.values.wording import nearest, shown_name

CONFIDENCE_BINS = 10
# Of the marks of several regions of a frame: blue.
REGION_KIND = 6
# Buckets of a histogram of shares 0..1.
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)

V = TypeVar("V")


class NotFiniteError(ValueError):
    """A model's output has numbers that are not finite; the caller words the error."""


class Result(msgspec.Struct, frozen=True):
    """The content of one frame.

    best: the label that stands for the frame in journal, log, samples and metrics; None if it shows
    nothing that has one. predictions: labels for the answer, best first. details: what the task
    knows beyond these, or None.
    """

    best: Prediction | None
    predictions: tuple[Prediction, ...]
    details: Any = None


class Verdict(msgspec.Struct, frozen=True):
    """`pass`, `fail` or `unsure`, and the rule that decided."""

    verdict: Literal["pass", "fail", "unsure"]
    reason: str


class TaskMetric(msgspec.Struct, frozen=True):
    """A counter, or a histogram over `buckets`, of a task; `model` is its first label, `labels` are
    further ones. The exposed name is lineside_NAME."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


class DriftSignal(msgspec.Struct, frozen=True):
    """Shares of frames by bin at validation, and the bin of an answer; None counts it nowhere."""

    shares: tuple[float, ...]
    bin: Callable[[Answer], int | None]


class SampleWishes(msgspec.Struct, frozen=True, kw_only=True):
    """Frames that the operator wants kept.

    labels: those whose best label is one of these. margin: those whose best probability is at most
    so far from the verdict policy's least one. below: those whose best probability is less.
    """

    labels: frozenset[str] = frozenset()
    margin: float = 0.0
    below: float = 0.0


def bin_of(value: float, bins: int, top: float) -> int:
    """Returns which of `bins` equal bins of 0..top `value` falls in; what lies outside goes to the
    ends."""
    return min(int(min(1.0, max(0.0, value / top)) * bins), bins - 1)


def apply_verdict_policy(result: Result, policy: VerdictPolicy) -> Verdict:
    """Applies `policy` to the best label.

    The rules, by their reason and in their order: `no_label`, `min_probability`, `accept`,
    `not_accepted`. A frame without a label in its answer is no good part, whatever its best guess.
    """
    if not result.predictions or result.best is None:
        return Verdict("unsure", "no_label")
    if result.best.probability < policy.min_probability:
        return Verdict("unsure", "min_probability")
    if result.best.label in policy.accept:
        return Verdict("pass", "accept")
    return Verdict("fail", "not_accepted")


def unknown_label(field: str, named: Iterable[str], bundle: Bundle) -> str:
    """Says that `field` of a policy names a label that the bundle does not have; '' if it does
    not."""
    known = [label.name for label in bundle.labels]
    for name in named:
        if name not in known:
            near = nearest(name, known)
            meant = f": did you mean {near}?" if near else ""
            return f"{field} names {shown_name(name)}, which labels.txt lacks{meant}"
    return ""


def read_policy(value: object, bundle: Bundle) -> VerdictPolicy:
    """Reads a policy for `bundle` from plain values, called `policy`. Raises InvalidValueError that
    names the field."""
    task = find_task(bundle.manifest.task)
    policy = convert(value, task.policy_type, name="policy")
    if fault := task.policy_fault(policy, bundle, "policy"):
        raise InvalidValueError(fault)
    return policy


class Reader(Generic[V]):
    """Reads the outputs of one loaded version. `V`: the numbers that `decode` makes of them."""

    def __init__(self, bundle: Bundle, pool: InterpreterPool) -> None:
        """Raises BundleError if bundle, labels and tensors do not belong together."""
        self.bundle, self.pool = bundle, pool
        # The policy in force; None if frames are not judged.
        self.policy: Any = bundle.manifest.verdict
        self.policy_source: PolicySource = "bundle"

    def with_policy(self, policy: VerdictPolicy | None, source: PolicySource = "bundle") -> Self:
        """Returns a reader of the same version that judges by `policy`. This one goes on with its
        own, so that a frame in work is read and judged by one policy."""
        reader = copy(self)
        reader.policy = policy
        reader.policy_source = source
        return reader

    def decode(self, outputs: Sequence[Tensor]) -> V:
        """Turns the model's outputs, in its order and dtypes, to real numbers; runs with a slot
        held. Raises NotFiniteError."""
        raise NotImplementedError

    def result(self, values: V, options: Options, placement: Placement | None = None) -> Result:
        """Says what `values` mean for a caller with `options`. placement: of the frame in the
        model's input; None for tensors."""
        raise NotImplementedError

    def tiles_fault(self) -> str:
        """Says why the values of a frame's tiles can't be merged; '' if they can."""
        task = self.bundle.manifest.task
        return f"a model of the task {task} answers a frame as a whole: recipe.tiles suits others"

    def merge(self, parts: Sequence[V], placements: Sequence[Placement]) -> tuple[V, Placement]:
        """Makes one of the values of a frame's tiles, and the placement that they are in."""
        raise NotImplementedError

    def verdict(self, result: Result) -> Verdict | None:
        """Judges a frame by the policy in force; None if there is none."""
        return None if self.policy is None else apply_verdict_policy(result, self.policy)

    def golden_fault(self, golden: Golden, values: V, placement: Placement | None = None) -> str:
        """Says how a golden frame's values differ from what they should be; '' if they do not."""
        raise NotImplementedError


class Task:
    """A task, for all its bundles."""

    name: TaskName
    # Frames go in as image files; else only tensors do.
    takes_images = True
    needs_labels = True
    # The model's first output holds a score for each label: protocols may ask for its best classes.
    scores_labels = True
    manifest_type: type[Manifest] = Manifest
    policy_type: type[VerdictPolicy] = VerdictPolicy
    # Fields of /v1/recognize's answer beside those of any task, each with the default UNSET; a
    # struct. `answer_fields` fills them.
    answer_type: type[msgspec.Struct] | None = None
    metrics: tuple[TaskMetric, ...] = ()
    sample_reasons: tuple[str, ...] = ()
    drift_signals: tuple[str, ...] = ()

    def make_reader(self, bundle: Bundle, pool: InterpreterPool) -> Reader[Any]:
        """Makes the reader of a loaded version. Raises BundleError as Reader does."""
        raise NotImplementedError

    def policy_fault(self, policy: Any, bundle: Bundle, name: str) -> str:
        """Says what keeps `policy`, of `policy_type` and called `name`, from judging the frames of
        `bundle`; '' if nothing does."""
        if policy.min_familiarity is not UNSET and bundle.manifest.familiarity is None:
            return f"{name}.min_familiarity needs a model that says how familiar a frame is"
        return unknown_label(f"{name}.accept", policy.accept, bundle)

    def answer_fields(self, answer: Answer) -> Mapping[str, Any]:
        """Returns the values of `answer_type`. `answer.details` is a mapping of plain values if the
        answer was kept by a job or the cache."""
        return {}

    def overlay(self, answer: Answer) -> Overlay:
        """Returns what is drawn over the frame, without the verdict; by default the best label of
        the answer. `answer.details` is as in `answer_fields`."""
        best = answer.predictions[:1]
        named = tuple(f"{each.label} {each.probability:.2f}" for each in best)
        return Overlay(lines=named or ("no label",))

    def observe(self, answer: Answer) -> Iterator[tuple[str, tuple[str, ...], float]]:
        """Yields (metric, labels beside the model, value) of one answered frame: a counter grows by
        the value, a histogram takes it in."""
        yield from ()

    def sample_reason(
        self, answer: Answer, wishes: SampleWishes, policy: VerdictPolicy | None
    ) -> str | None:
        """Returns which of `sample_reasons` an answered frame is kept for, or None."""
        return None

    def read_baseline(self, baseline: Baseline) -> dict[str, DriftSignal]:
        """Returns those of `drift_signals` for which the bundle's baseline has shares."""
        return {}


@cache
def find_task(name: TaskName) -> Task:
    """Returns the task called `name`."""
    task: Task = load_task(name)
    return task


def overlay_of(answer: Answer) -> Overlay:
    """Returns what is drawn over the frame, without the verdict: the overlay of the answer's task,
    of several regions those of all, each region with its name and verdict."""
    task = find_task(answer.task)
    overlay = task.overlay(answer)
    if not answer.regions:
        return overlay
    each = [task.overlay(part) for part in answer.parts()]
    names = tuple(
        Mark(region.box, f"{region.name} {region.verdict or ''}", REGION_KIND)
        for region in answer.regions
    )
    return msgspec.structs.replace(
        overlay,
        marks=(*names, *(mark for part in each for mark in part.marks)),
        heats=tuple(heat for part in each for heat in part.heats),
    )


def all_tasks() -> tuple[Task, ...]:
    """Returns all tasks, in the registry's order."""
    return tuple(map(find_task, TASK_NAMES))
