"""classify: from output tensor to labels and verdict."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.recognition.answers import Prediction
from server.recognition.manifest import Bundle, Manifest, VerdictPolicy
from server.recognition.preprocessing import TensorSpec, dequantize
from server.recognition.tasks.classify import ClassReader, to_probabilities, top_k
from server.recognition.tasks.task import NotFiniteError, Result, apply_verdict_policy
from server.values.labels import Label

LABELS = tuple(Label(name) for name in "abcdef")
FLOAT = TensorSpec("out", (1, 6), "float32")


def manifest(output: str) -> Manifest:
    return Manifest(name="m", version=1, sha256={}, quantization="float32", output=output)  # type: ignore[arg-type]


@given(
    values=st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.25, 0.5]), min_size=6, max_size=6),
    k=st.integers(1, 10),
)
def test_top_k_is_best_first_and_ties_go_by_class(values: list[float], k: int) -> None:
    found = top_k(np.asarray(values, np.float32), LABELS, k)
    order = sorted(range(6), key=lambda i: (-values[i], i))[:k]
    assert [p.class_id for p in found] == order
    assert [p.label for p in found] == [LABELS[i].name for i in order]


def test_threshold_is_inclusive() -> None:
    values = np.asarray([0.5, 0.25, 0.125, 0.125, 0, 0], np.float32)
    assert [p.label for p in top_k(values, LABELS, 6, 0.125)] == ["a", "b", "c", "d"]
    assert top_k(values, LABELS, 6, 0.6) == ()


def test_a_prediction_carries_the_outside_id() -> None:
    labels = (Label("Egyptian_cat", "n02124075"), Label("other"))
    best = top_k(np.asarray([0.75, 0.25], np.float32), labels, 1)[0]
    assert best == Prediction(0, "Egyptian_cat", 0.75, "n02124075")


def test_logits_become_probabilities_without_overflow() -> None:
    logits = np.asarray([[1000.0, 999.0, -1000.0]], np.float32)
    got = to_probabilities(logits, FLOAT, manifest("logits"))
    e = np.exp(-1.0)
    np.testing.assert_allclose(got, [1 / (1 + e), e / (1 + e), 0], atol=1e-6)


def test_sigmoid_is_independent_and_without_overflow() -> None:
    got = to_probabilities(np.asarray([[0, 2, -1000]], np.float32), FLOAT, manifest("sigmoid"))
    np.testing.assert_allclose(got, [0.5, 1 / (1 + np.exp(-2)), 0], atol=1e-6)


def test_probabilities_stay_as_they_are() -> None:
    values = np.asarray([[0.2, 0.8]], np.float32)
    np.testing.assert_array_equal(
        to_probabilities(values, FLOAT, manifest("probabilities")), values[0]
    )


@pytest.mark.parametrize(("sent", "wanted"), [(7.5, 1.0), (1e38, 1.0), (-3.0, 0.0)])
def test_output_beyond_a_probability_is_cut(sent: float, wanted: float) -> None:
    """Of a model whose last layer is no softmax, or whose tensor was quantised beyond it."""
    specs = (
        TensorSpec("out", (1, 6), "float32"),
        TensorSpec("familiarity", (1, 1), "float32", signature="familiarity"),
    )
    pool: Any = SimpleNamespace(outputs=specs)
    reader = ClassReader(Bundle(Path("m"), manifest("probabilities"), LABELS), pool)
    values = reader.decode([np.full((1, 6), sent, np.float32), np.full((1, 1), sent, np.float32)])
    assert [p.probability for p in top_k(values.probabilities, LABELS, 6, -1)] == [wanted] * 6
    assert values.familiarity == wanted
    for bad in (np.nan, np.inf):
        with pytest.raises(NotFiniteError):
            reader.decode([np.full((1, 6), bad, np.float32), np.zeros((1, 1), np.float32)])


@pytest.mark.parametrize("k", [1, 3, 20])
def test_the_best_of_outputs_beyond_a_probability_stays_so(k: int) -> None:
    """Cut first, the first of those above 1 would be the best."""
    labels = tuple(Label(f"{number}") for number in range(20))
    values = np.zeros(20, np.float32)
    values[[2, 5, 7]] = 3.0, 16.0, 8.0
    assert [p.label for p in top_k(values, labels, k)][:3] == ["5", "7", "2"][:k]


@pytest.mark.parametrize(("dtype", "zero_point"), [("uint8", 0), ("int8", -128)])
def test_dequantize_by_the_specification(dtype: str, zero_point: int) -> None:
    spec = TensorSpec("out", (1, 3), dtype, 1 / 256, zero_point)
    info = np.iinfo(dtype)
    tensor = np.asarray([[info.min, zero_point + 64, info.max]], dtype)
    np.testing.assert_allclose(dequantize(tensor, spec), [[0, 0.25, 255 / 256]])


def test_a_float_tensor_needs_no_dequantizing() -> None:
    tensor = np.asarray([[0.5]], np.float16)
    assert dequantize(tensor, TensorSpec("out", (1, 1), "float16")).dtype == np.float32


@pytest.mark.parametrize(
    ("label", "probability", "verdict", "reason"),
    [
        ("good", 0.9, "pass", "accept"),
        ("good", 0.7, "pass", "accept"),
        ("good", 0.69, "unsure", "min_probability"),
        ("bad", 0.9, "fail", "not_accepted"),
        ("bad", 0.3, "unsure", "min_probability"),
    ],
)
def test_verdict_and_its_rule(label: str, probability: float, verdict: str, reason: str) -> None:
    policy = VerdictPolicy(accept=("good",), min_probability=0.7)
    best = Prediction(0, label, probability)
    got = apply_verdict_policy(Result(best, (best,)), policy)
    assert (got.verdict, got.reason) == (verdict, reason)


def test_verdict_without_a_label_is_unsure() -> None:
    """However sure the best guess is: nothing reached the threshold that was asked for."""
    got = apply_verdict_policy(
        Result(Prediction(0, "good", 0.9), ()), VerdictPolicy(accept=("good",))
    )
    assert (got.verdict, got.reason) == ("unsure", "no_label")
