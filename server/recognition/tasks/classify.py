"""classify: one label for a frame, by the probability of each."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from server.errors import BundleError
from server.recognition.answers import Answer, Options, Prediction
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import (
    LABELS,
    Baseline,
    Bundle,
    Golden,
    Label,
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
    bin_of,
)
from server.values.wording import counted

Probabilities = NDArray[np.float32]

# Its sigmoid is 2e-35; the exponential of much smaller ones overflows float32.
MIN_LOGIT = np.float32(-80)
# Up to as many labels are picked out one by one faster than a thousand are sorted.
PICKED_LABELS_MAX = 16


def to_probabilities(output: Tensor, spec: TensorSpec, manifest: Manifest) -> Probabilities:
    """Turns a classifier's output [1, ..., classes] to float32 [classes] in 0..1, as
    `manifest.output` says it is to be read."""
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
    lower class_id first."""
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
        for i, probability in zip(best, probabilities[best].tolist(), strict=True)
        if probability >= threshold
    )


class ClassReader(Reader[Probabilities]):
    """Reads the probabilities of the labels from a model's first output."""

    def decode(self, outputs: Sequence[Tensor]) -> Probabilities:
        """Returns float32 [labels]. Raises NotFiniteError."""
        values = to_probabilities(outputs[0], self.pool.outputs[0], self.bundle.manifest)
        if not np.isfinite(values).all():
            raise NotFiniteError
        return values

    def result(
        self, values: Probabilities, options: Options, placement: Placement | None = None
    ) -> Result:
        """Returns the `options.top_k` most probable labels of at least `options.threshold`."""
        first = top_k(values, self.bundle.labels, options.top_k, -math.inf)
        shown = tuple(each for each in first if each.probability >= options.threshold)
        return Result(first[0], shown)

    def golden_fault(
        self, golden: Golden, values: Probabilities, placement: Placement | None = None
    ) -> str:
        """Compares the best label and its probability."""
        best = top_k(values, self.bundle.labels, 1, -math.inf)[0]
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
    )
    sample_reasons: tuple[str, ...] = ("label", "threshold", "uncertain")
    drift_signals: tuple[str, ...] = ("class", "confidence")

    def make_reader(self, bundle: Bundle, pool: InterpreterPool) -> ClassReader:
        """Raises BundleError unless the model has one output, with a label for each class."""
        folder = bundle.folder
        if len(pool.inputs) != 1 or len(pool.outputs) != 1:
            raise BundleError(
                f"{folder}: a classifier has one input and one output; this model has"
                f" {len(pool.inputs)} and {len(pool.outputs)}"
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

    def observe(self, answer: Answer) -> Iterator[tuple[str, tuple[str, ...], float]]:
        """Counts the best label, and its probability."""
        yield "predictions_total", (answer.best.label,), 1
        yield "confidence", (), answer.best.probability

    def sample_reason(
        self, answer: Answer, wishes: SampleWishes, policy: VerdictPolicy | None
    ) -> str | None:
        """Goes by the best label and its probability."""
        probability = answer.best.probability
        if answer.best.label in wishes.labels:
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
                lambda answer: places.get(answer.best.label, len(places)),
            )
        if len(baseline.confidence) == CONFIDENCE_BINS:
            signals["confidence"] = DriftSignal(
                baseline.confidence,
                lambda answer: bin_of(answer.best.probability, CONFIDENCE_BINS, 1.0),
            )
        return signals


TASK = Classify()
