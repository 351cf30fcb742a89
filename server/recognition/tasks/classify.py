"""classify: one label for a frame, by the probability of each."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from server.errors import BundleError
from server.recognition.answers import Answer, Options, Prediction
from server.recognition.drawing import Overlay
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import (
    FAMILIARITY,
    LABELS,
    Baseline,
    Bundle,
    Golden,
    Manifest,
    VerdictPolicy,
)
from server.recognition.preprocessing import Placement, Tensor, TensorSpec, dequantize
from server.recognition.tasks import TaskName
from server.recognition.tasks.task import (
    CONFIDENCE_BINS,
    SHARES,
    DriftSignal,
    NotFiniteError,
    Reader,
    Result,
    SampleWishes,
    Task,
    TaskMetric,
    Verdict,
    bin_of,
)
from server.values.labels import Label
from server.values.wording import counted

Probabilities = NDArray[np.float32]

# Its sigmoid is 2e-35; the exponential of much smaller ones overflows float32.
MIN_LOGIT = np.float32(-80)
# Familiarity at the threshold; `convert` scales it so.
FAMILIAR = 0.5
# Up to as many labels are picked out one by one faster than a thousand are sorted.
PICKED_LABELS_MAX = 16


def to_probabilities(output: Tensor, spec: TensorSpec, manifest: Manifest) -> Probabilities:
    """Turns a classifier's output [1, ..., classes] to float32 [classes], as `manifest.output` says
    it is to be read. They are in 0..1, unless it says that they are probabilities and they are
    not."""
    values = dequantize(output, spec).reshape(-1)
    if manifest.output == "logits":
        # The result of infinite ones is not finite, which the caller checks.
        with np.errstate(invalid="ignore"):
            values = np.exp(values - values.max())
            return np.asarray(values / values.sum(), np.float32)
    if manifest.output == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-np.maximum(values, MIN_LOGIT))), np.float32)
    return values


def top_k(
    probabilities: Probabilities, labels: Sequence[Label], k: int, threshold: float = 0.0
) -> tuple[Prediction, ...]:
    """Returns the `k` most probable labels of at least `threshold`, best first; of equal ones, the
    lower class_id first. Those beyond 0..1 are ordered as they are, and then cut to it."""
    k = min(k, len(labels))
    if k <= PICKED_LABELS_MAX:
        rest, best = probabilities.copy(), []
        for _ in range(k):
            best.append(i := int(rest.argmax()))
            rest[i] = -np.inf
    else:
        best = np.argsort(-probabilities, kind="stable")[:k].tolist()
    return tuple(
        Prediction(i, labels[i].name, probability, labels[i].id)
        for i, probability in zip(best, probabilities[best].clip(0, 1).tolist(), strict=True)
        if probability >= threshold
    )


class ClassValues(msgspec.Struct, frozen=True):
    """probabilities: float32 [labels], which a model without a softmax may give beyond 0..1.
    familiarity: 0..1; None if the model has no such output."""

    probabilities: Probabilities
    familiarity: float | None = None

    @property
    def finite(self) -> bool:
        """Return whether all values are numbers."""
        numbers = np.isfinite(self.probabilities).all() and math.isfinite(self.familiarity or 0.0)
        return bool(numbers)


class FamiliarityFields(msgspec.Struct, frozen=True, kw_only=True):
    """familiar: False if the frame is unlike those that the model learned from; its labels then
    mean nothing, and its verdict is unsure. familiarity: 0..1, the threshold is 0.5, or the
    policy's `min_familiarity`. Both absent if the model can't say."""

    familiar: bool | UnsetType = UNSET
    familiarity: float | UnsetType = UNSET


class ClassReader(Reader[ClassValues]):
    """Reads the probabilities of the labels from a model's first output, and how familiar the frame
    is from a last one called FAMILIARITY."""

    def __init__(self, bundle: Bundle, pool: InterpreterPool) -> None:
        super().__init__(bundle, pool)
        self._has_familiarity = has_familiarity(pool)

    def decode(self, outputs: Sequence[Tensor]) -> ClassValues:
        """Returns the values of `outputs`. Raises NotFiniteError."""
        values = self.read(outputs)
        if not values.finite:
            raise NotFiniteError
        familiarity = values.familiarity
        if familiarity is not None:
            familiarity = min(1.0, max(0.0, familiarity))
        return ClassValues(values.probabilities, familiarity)

    def read(self, outputs: Sequence[Tensor]) -> ClassValues:
        """Returns the values of `outputs`, finite or not."""
        values = to_probabilities(outputs[0], self.pool.outputs[0], self.bundle.manifest)
        familiarity = float(outputs[-1].reshape(-1)[0]) if self._has_familiarity else None
        return ClassValues(values, familiarity)

    def result(
        self, values: ClassValues, options: Options, placement: Placement | None = None
    ) -> Result:
        """Returns the `options.top_k` most probable labels of at least `options.threshold`."""
        first = top_k(values.probabilities, self.bundle.labels, options.top_k, -math.inf)
        shown = tuple(each for each in first if each.probability >= options.threshold)
        details = None
        if values.familiarity is not None:
            familiarity = round(values.familiarity, 6)
            least = self.policy.min_familiarity if self.policy else UNSET
            familiar = familiarity >= (FAMILIAR if least is UNSET else least)
            details = FamiliarityFields(familiar=familiar, familiarity=familiarity)
        return Result(first[0], shown, details)

    def verdict(self, result: Result) -> Verdict | None:
        """Judges by the policy, but an unfamiliar frame is unsure, by the rule `unfamiliar`."""
        verdict = super().verdict(result)
        if verdict is not None and result.details is not None and not result.details.familiar:
            return Verdict("unsure", "unfamiliar")
        return verdict

    def golden_fault(
        self, golden: Golden, values: ClassValues, placement: Placement | None = None
    ) -> str:
        """Compares the best label and its probability, and that the frame is familiar."""
        if values.familiarity is not None and values.familiarity < FAMILIAR:
            return (
                f"should be {golden.label}, but it is unlike the frames that this model learned"
                f" from: its familiarity is {values.familiarity:.3f}"
            )
        best = top_k(values.probabilities, self.bundle.labels, 1, -math.inf)[0]
        off = abs(best.probability - golden.probability)
        if best.label == golden.label and off <= golden.tolerance:
            return ""
        return (
            f"should be {golden.label} at {golden.probability:.3f}"
            f" but this model says {best.label} at {best.probability:.3f}"
        )


class Classify(Task):
    """Frames of one thing each, which a label names."""

    name: TaskName = "classify"
    metrics: tuple[TaskMetric, ...] = (
        TaskMetric("predictions_total", "Frames by their best label", ("label",)),
        TaskMetric("confidence", "Probability of the best label", buckets=SHARES),
        TaskMetric("unfamiliar_frames_total", "Frames unlike those that the model learned from"),
    )
    answer_type: type[msgspec.Struct] | None = FamiliarityFields
    sample_reasons: tuple[str, ...] = ("label", "unfamiliar", "threshold", "uncertain")
    drift_signals: tuple[str, ...] = ("class", "confidence")

    def make_reader(self, bundle: Bundle, pool: InterpreterPool) -> ClassReader:
        """Raises BundleError unless the model has one output with a label for each class, and at
        most another for how familiar a frame is, which it has if bundle.json says so."""
        folder, familiarity = bundle.folder, has_familiarity(pool)
        if len(pool.inputs) != 1 or len(pool.outputs) != 1 + familiarity:
            raise BundleError(
                f"{folder}: a classifier has one input and one output; this model has"
                f" {len(pool.inputs)} and {len(pool.outputs)}"
            )
        if bundle.manifest.familiarity is not None and not familiarity:
            raise BundleError(
                f"{folder}: bundle.json says that the model's last output is {FAMILIARITY}, one"
                " float32; it has none"
            )
        classes = math.prod(pool.outputs[0].shape[1:] or pool.outputs[0].shape)
        if not bundle.labels:
            raise BundleError(
                f"{folder} has no {LABELS}, which names the model's {classes} outputs in their"
                " order, one label a line"
            )
        if classes != len(bundle.labels):
            raise BundleError(
                f"{folder}: labels.txt has {counted(len(bundle.labels), 'label')} but the model"
                f" answers {classes}"
            )
        return ClassReader(bundle, pool)

    def answer_fields(self, answer: Answer) -> Mapping[str, Any]:
        """Returns whether the frame is familiar, and how much, if the model can say."""
        details = _familiarity(answer)
        if details is None:
            return {}
        return {"familiar": details.familiar, "familiarity": details.familiarity}

    def overlay(self, answer: Answer) -> Overlay:
        """Returns the best label, and whether the frame is familiar."""
        overlay, details = super().overlay(answer), _familiarity(answer)
        if details is None:
            return overlay
        word = "familiar" if details.familiar else "unfamiliar"
        line = f"{word} {details.familiarity:.2f}"
        return msgspec.structs.replace(overlay, lines=(*overlay.lines, line))

    def observe(self, answer: Answer) -> Iterator[tuple[str, tuple[str, ...], float]]:
        """Counts the best label, and its probability."""
        yield "predictions_total", (answer.label,), 1
        yield "confidence", (), answer.probability
        if unfamiliar(answer):
            yield "unfamiliar_frames_total", (), 1

    def sample_reason(
        self, answer: Answer, wishes: SampleWishes, policy: VerdictPolicy | None
    ) -> str | None:
        """Goes by the best label and its probability, if the frame is familiar."""
        probability = answer.probability
        if unfamiliar(answer):
            return "unfamiliar"
        if answer.label in wishes.labels:
            return "label"
        near = policy is not None and abs(probability - policy.min_probability) <= wishes.margin
        if near and wishes.margin:
            return "threshold"
        return "uncertain" if probability < wishes.below else None

    def read_baseline(self, baseline: Baseline) -> dict[str, DriftSignal]:
        """Returns the mix of the labels, and the confidence in ten bins."""
        signals = {}
        if baseline.classes:
            places = {label: place for place, label in enumerate(baseline.classes)}
            # One bin more, for labels that the validation never gave.
            signals["class"] = DriftSignal(
                (*baseline.classes.values(), 0.0),
                lambda answer: places.get(answer.label, len(places)),
            )
        if len(baseline.confidence) == CONFIDENCE_BINS:
            signals["confidence"] = DriftSignal(
                baseline.confidence,
                lambda answer: bin_of(answer.probability, CONFIDENCE_BINS, 1.0),
            )
        return signals


def has_familiarity(pool: InterpreterPool) -> bool:
    """Returns whether the model's last output says how familiar a frame is."""
    last = pool.outputs[-1]
    named = FAMILIARITY in (last.name, last.signature)
    return named and last.dtype == "float32" and math.prod(last.shape) == 1


def _familiarity(answer: Answer) -> FamiliarityFields | None:
    """Returns what an answer says of familiarity; jobs and the cache keep it as plain values."""
    if isinstance(answer.details, FamiliarityFields):
        return answer.details
    if isinstance(answer.details, Mapping) and "familiar" in answer.details:
        return msgspec.convert(answer.details, FamiliarityFields)
    return None


def unfamiliar(answer: Answer) -> bool:
    """Returns whether the model can say that the frame is unlike those that it learned from."""
    details = _familiarity(answer)
    return details is not None and details.familiar is False


TASK = Classify()
