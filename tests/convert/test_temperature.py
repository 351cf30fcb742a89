"""Calibrated probabilities: a temperature in the model itself, fitted on held-back frames."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.bundle_writer import load
from convert.data.dataset import Dataset, labelled
from convert.data.frames import tensors
from convert.pipeline import Request, build
from convert.quantization.quantize import quantize
from convert.sources import keras as sources
from convert.sources.shapes import Output
from convert.temperature import calibrate, expected_error, fit, softmax, with_temperature
from server.recognition.engines.litert import Interpreter
from server.recognition.preprocessing import dequantize


def test_fit_finds_the_temperature_of_the_truth() -> None:
    """Labels drawn from the probabilities of logits divided by 2.5."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 6, (20_000, 5))
    drawn = softmax(logits / 2.5).cumsum(axis=1) > rng.random((20_000, 1))
    truth = drawn.argmax(axis=1)
    assert fit(logits, truth) == pytest.approx(2.5, rel=0.03)
    before, after = (expected_error(softmax(logits / t), truth) for t in (1.0, 2.5))
    assert before > 0.1
    assert after < 0.02


def test_fit_without_an_error_expects_one_more() -> None:
    """Laplace's rule: of 98 frames that are all right, a further one would be with 99%."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 98)
    logits = rng.normal(0, 1, (98, 3)) + 30 * np.eye(3)[truth]
    temperature = fit(logits, truth)
    assert softmax(logits / temperature).max(axis=1).mean() == pytest.approx(0.99, abs=1e-4)


def test_fit_of_equal_logits_is_finite() -> None:
    assert np.isfinite(fit(np.zeros((60, 3)), np.zeros(60, np.intp)))


@pytest.fixture
def colours_logits(tf: Any, colours_keras: Any) -> bytes:
    """The colours model without its softmax, as a float32 .tflite."""
    layer = colours_keras.layers[-1]
    dense = tf.keras.layers.Dense(3)
    model = tf.keras.Sequential(
        [tf.keras.layers.Input((32, 32, 3)), tf.keras.layers.Flatten(), dense]
    )
    dense.set_weights(layer.get_weights())
    return sources.from_keras(model)


@pytest.mark.parametrize(
    ("mode", "output"),
    [
        ("float32", "probabilities"),
        ("dynamic", "probabilities"),
        ("int8", "probabilities"),
        ("float32", "logits"),
        ("dynamic", "logits"),
    ],
)
def test_model_answers_with_divided_logits(
    mode: str,
    output: Output,
    request_of: Request,
    colours_tflite: bytes,
    colours_logits: bytes,
    colours_frames: Path,
) -> None:
    paths = sorted(colours_frames.rglob("*.*"))
    source = colours_logits if output == "logits" else colours_tflite
    frames = list(tensors(paths, request_of.recipe))
    model = quantize(source, mode, calibration=iter(frames), io_dtype="float32")
    made = with_temperature(model, output, 4.0)
    assert made is not None
    # An int8 softmax answers in steps of 1/256, too coarse to compare with.
    reference = source if mode == "int8" else model
    before, after = (Interpreter(Path("x"), 1, data) for data in (reference, made))
    assert [spec.signature for spec in after.outputs] == [spec.signature for spec in before.outputs]
    for frame in frames:
        old, new = (
            dequantize(each.run([frame])[0], each.outputs[0]).astype(np.float64)
            for each in (before, after)
        )
        if output == "logits":
            np.testing.assert_allclose(new, old / 4, rtol=1e-6)
        else:
            expected = old**0.25 / (old**0.25).sum()
            np.testing.assert_allclose(new, expected, atol=0.03 if mode == "int8" else 1e-5)


def twice(dataset: Dataset) -> Dataset:
    """The frames two times, since the colours' are too few."""
    return replace(dataset, frames=dataset.frames * 2)


@pytest.mark.parametrize("mode", ["dynamic", "int8"])
def test_bundle_has_calibrated_probabilities(
    mode: str, request_of: Request, colours_frames: Path
) -> None:
    validation = twice(labelled(colours_frames, request_of.labels))
    request = replace(request_of, mode=mode, validation=validation, max_accuracy_drop=100.0)
    request = replace(request, calibration=[item.path for item in validation.frames])
    lines: list[str] = []
    model = load(build(request, lines.append))
    report = model.manifest.report
    assert report is not None
    calibration = report.calibration
    assert calibration is not None
    assert calibration.frames == 72
    assert calibration.error_after < calibration.error_before + 0.01
    assert any("logits divided by" in line for line in lines)
    details = json.loads((model.bundle.folder / "report.json").read_text())
    assert details["calibration"]["temperature"] == calibration.temperature
    page = (model.bundle.folder / "report.html").read_text()
    assert f"The logits are divided by {calibration.temperature:.3f}" in page
    # The mean probability is what Laplace's rule expects of 72 frames that are right.
    best = [each["result"]["probability"] for each in details["per_frame"]]
    assert np.mean(best) == pytest.approx(73 / 74, abs=0.01)


def test_few_frames_leave_the_probabilities(request_of: Request, colours_frames: Path) -> None:
    validation = labelled(colours_frames, request_of.labels)
    request = replace(request_of, validation=validation, max_accuracy_drop=100.0)
    lines: list[str] = []
    model = load(build(request, lines.append))
    assert model.manifest.report is not None
    assert model.manifest.report.calibration is None
    assert any("probabilities: as the model gives them" in line for line in lines)
    page = (model.bundle.folder / "report.html").read_text()
    assert "none were fitted on held-back frames" in page


def test_model_without_softmax_stays(
    request_of: Request, colours_logits: bytes, colours_frames: Path
) -> None:
    frames = twice(labelled(colours_frames, request_of.labels)).frames
    paths = [item.path for item in frames]
    truth = np.array([item.label for item in frames], np.intp)
    for output in ("probabilities", "sigmoid"):
        assert calibrate(colours_logits, output, request_of.recipe, paths, truth) is None
