"""Output tensor -> probabilities, labels, top-k and verdict. Pure functions."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from server.recognition.manifest import Label, Manifest, VerdictPolicy
from server.recognition.preprocessing import Tensor, TensorSpec

Probabilities = NDArray[np.float32]

# Its sigmoid is 2e-35; of much smaller ones the exponential overflows float32.
SMALLEST_LOGIT = np.float32(-80)
# Up to as many labels are quicker to pick out one by one than by sorting a thousand.
FEW = 16


class Prediction(msgspec.Struct, frozen=True, omit_defaults=True):
    """One label with its probability 0..1; `id` is the label's outside name, where it has one."""

    class_id: int
    label: str
    probability: float
    id: str = ""


def dequantize(tensor: Tensor, spec: TensorSpec) -> NDArray[np.float32]:
    """real = (q - zero_point) * scale for a quantised tensor (TensorFlow Lite's 8-bit
    quantisation specification), else the values as float32. Same shape."""
    if not spec.quantized:
        return np.asarray(tensor, np.float32)
    return (tensor.astype(np.float32) - spec.zero_point) * np.float32(spec.scale)


def to_probabilities(output: Tensor, spec: TensorSpec, manifest: Manifest) -> Probabilities:
    """Returns a classifier's output [1, ..., classes] -> float32 [classes] in 0..1, as
    `manifest.output` says it is to be read."""
    values = dequantize(output, spec).reshape(-1)
    if manifest.output == "logits":
        # Of infinite ones the caller sees that what comes out is not finite.
        with np.errstate(invalid="ignore"):
            values = np.exp(values - values.max())
            return np.asarray(values / values.sum(), np.float32)
    if manifest.output == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-np.maximum(values, SMALLEST_LOGIT))), np.float32)
    return values


def top_k(
    probabilities: Probabilities, labels: Sequence[Label], k: int, threshold: float = 0.0
) -> tuple[Prediction, ...]:
    """Returns the `k` most probable labels of at least `threshold`, best first; ties by
    class_id."""
    k = min(k, len(labels))
    if k <= FEW:
        left, best = probabilities.copy(), []
        for _ in range(k):
            best.append(i := int(left.argmax()))
            left[i] = -np.inf
    else:
        best = np.argsort(-probabilities, kind="stable")[:k].tolist()
    return tuple(
        Prediction(i, labels[i].name, probability, labels[i].id)
        for i, probability in zip(best, probabilities[best].tolist(), strict=True)
        if probability >= threshold
    )


def apply_verdict_policy(best: Prediction | None, policy: VerdictPolicy | None) -> str | None:
    """`pass`, `fail` or `unsure` by the bundle's policy; None where it has none."""
    if policy is None:
        return None
    if best is None or best.probability < policy.min_probability:
        return "unsure"
    return "pass" if best.label in policy.accept else "fail"
