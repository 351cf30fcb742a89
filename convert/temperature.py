"""Calibrates a classifier's probabilities by temperature scaling: logits divided by one number.

C. Guo, G. Pleiss, Y. Sun, K. Weinberger, «On Calibration of Modern Neural Networks», 2017,
arXiv:1706.04599, section 4.2. The label of no frame changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from convert.anomaly.statistics import folds
from convert.evaluation.metrics import ERROR_BINS, Indices, calibration_error, reliability
from convert.quantization.editor import Floats, GraphEditor, read_last
from convert.quantization.graph import kind_of
from convert.sources.shapes import Output
from server.recognition.manifest import Calibration, Recipe

# Fewer frames do not say how often a probability is right.
MIN_FRAMES = 50
# Of the inverse temperature; far beyond what networks need.
_LOWEST, _HIGHEST = 1e-3, 1e3
# Operators that only write the same numbers otherwise.
_COPIES = ("RESHAPE", "DEQUANTIZE", "QUANTIZE")


@dataclass(frozen=True, slots=True)
class CalibratedModel:
    """A model whose probabilities are calibrated, and what bundle.json says of it."""

    data: bytes
    settings: Calibration


def calibrate(
    model: bytes,
    output: Output,
    recipe: Recipe,
    frames: Sequence[Path],
    truth: Indices,
    held: NDArray[np.float32] | None = None,
) -> CalibratedModel | None:
    """Calibrate a classifier on held-back frames; None if `with_temperature` can't, or there are
    fewer than MIN_FRAMES frames.

    recipe: that the model is fed by. truth: class of each frame, [frames]. held: logits of models
    that were trained alike without the frame, [frames, classes], for frames that the model itself
    learned from. The error afterwards is
    cross-fitted: each frame's is by a temperature of others. Raises ConvertError as `read_last`
    does.
    """
    if len(frames) < MIN_FRAMES or with_temperature(model, output, 1.0) is None:
        return None
    logits = _logits(model, output, recipe, frames) if held is None else held.astype(np.float64)
    if not np.isfinite(logits).all():
        return None
    temperature = fit(logits, truth)
    crossed = np.empty(logits.shape, np.float32)
    for rest, fold in folds(len(frames), 0):
        crossed[fold] = softmax(logits[fold] / fit(logits[rest], truth[rest]))
    data = with_temperature(model, output, temperature)
    assert data is not None
    settings = Calibration(
        temperature=temperature,
        frames=len(frames),
        error_before=expected_error(softmax(logits), truth),
        error_after=expected_error(crossed, truth),
    )
    return CalibratedModel(data, settings)


def fit(logits: NDArray[np.float64], truth: Indices) -> float:
    """Return the temperature with the least cross entropy, but at least the one at which the mean
    probability of the best label is (right + 1) / (frames + 2).

    The former runs to 0 on frames that the model tells apart without an error; the latter is the
    share that Laplace's rule of succession expects of further frames. logits: [frames, classes].
    truth: class of each, [frames].
    """
    gaps = logits - logits.max(axis=1, keepdims=True)
    wanted = gaps[np.arange(len(truth)), truth].mean()
    right = int((gaps.argmax(axis=1) == truth).sum())

    def excess_entropy(inverse: float) -> float:
        weights = np.exp(gaps * inverse)
        # The slope of the cross entropy, which is convex in the inverse temperature.
        return float(((weights * gaps).sum(axis=1) / weights.sum(axis=1)).mean() - wanted)

    def excess_confidence(inverse: float) -> float:
        best = 1 / np.exp(gaps * inverse).sum(axis=1)
        return float(best.mean()) - (right + 1) / (len(truth) + 2)

    return max(1 / _root(excess_entropy), 1 / _root(excess_confidence))


def _root(rising: Callable[[float], float]) -> float:
    """Return where a rising function is 0, or the end of _LOWEST.._HIGHEST that is nearest."""
    low, high = np.log(_LOWEST), np.log(_HIGHEST)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(float(np.exp(middle))) < 0 else (low, middle)
    return float(np.exp((low + high) / 2))


def softmax(logits: NDArray[np.float64]) -> Floats:
    """Return probabilities, float32 [frames, classes]."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def expected_error(probabilities: Floats, truth: Indices) -> float:
    """Return the expected calibration error in ERROR_BINS bins."""
    return calibration_error(reliability(probabilities, truth, ERROR_BINS))


def with_temperature(model: bytes, output: Output, temperature: float) -> bytes | None:
    """Return a classifier with its logits divided by `temperature`: in the softmax itself, or by an
    operator behind logits that it answers as they are. None if it has neither.

    output: as in bundle.json. The model has no output beside the classes'.
    """
    editor = GraphEditor(model)
    if output == "probabilities":
        if (softmax_operator := _softmax_operator(editor)) is None:
            return None
        softmax_operator.builtinOptions.beta /= temperature
        return editor.written()
    if output != "logits" or editor.is_quantised(editor.output):
        return None
    factor = editor.constant(np.array([1 / temperature], np.float32))
    shape = editor.shape(editor.output)
    editor.output = editor.add("MUL", [editor.output, factor], shape, schema.MulOptionsT())
    return editor.written()


def divided(model: bytes, output: Output, calibration: Calibration) -> bytes:
    """Return the float model of a calibrated one with the same temperature, so that the two
    compare; as it is if that can't be."""
    return with_temperature(model, output, calibration.temperature) or model


def _logits(
    model: bytes, output: Output, recipe: Recipe, frames: Sequence[Path]
) -> NDArray[np.float64]:
    """Return what `with_temperature` divides, for each frame: [frames, classes]."""
    editor, beta = GraphEditor(model), 1.0
    if output == "probabilities":
        softmax_operator = _softmax_operator(editor)
        assert softmax_operator is not None
        beta = softmax_operator.builtinOptions.beta
        editor.answer(editor.real(int(softmax_operator.inputs[0])), "logits")
    values = read_last(editor.written(), frames, recipe).reshape(len(frames), -1)
    return beta * values.astype(np.float64)


def _softmax_operator(editor: GraphEditor) -> Any:
    """Return the operator that makes a classifier's probabilities; None if that is no softmax."""
    makers = {int(op.outputs[0]): op for op in editor.graph.operators}
    op = makers.get(editor.output)
    while op is not None and kind_of(editor.model, op) in _COPIES:
        op = makers.get(int(op.inputs[0]))
    return op if op is not None and kind_of(editor.model, op) == "SOFTMAX" else None
