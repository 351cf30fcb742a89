"""Adds to a classifier's .tflite a second output: how like the frames that it learned from a frame
is, by a Gaussian over the network's own features. A softmax can't say that it does not know.

The features are the mean and the deviation of each channel of a layer in the network's middle: the
last ones see only what tells the classes apart. The operators are written into the quantised file,
so that one invoke answers both, whatever the model was made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from convert.anomaly.statistics import Floats, folds, threshold_of
from convert.quantization.editor import GraphEditor, read_last
from convert.quantization.graph import kind_of
from convert.sources.shapes import layout_of
from server.recognition.manifest import FAMILIARITY, Recipe
from server.recognition.manifest import Familiarity as Settings

# A layer of at most so few pixels of the image a place, and of at least so many places a side.
STRIDE, LEAST_SIDE = 16, 4
# Of the mean variance, added to each direction: few frames leave some without any.
SHRINKAGE = 0.05
# Fewer frames than this do not say what is familiar.
MIN_FRAMES = 20
# Share of familiar frames that may be called unfamiliar.
FALSE_UNFAMILIAR = 0.005
_FEATURES = "familiarity_features"


@dataclass(frozen=True, slots=True)
class Familiarity:
    """A Gaussian over features: distance = |(features - mean) @ whitening|, usual up to
    `threshold`. mean: [channels]; whitening: [channels, directions]."""

    mean: Floats
    whitening: Floats
    threshold: float

    def distances(self, features: Floats) -> Floats:
        """[frames, channels] -> [frames]; 1 is about usual."""
        white = (features - self.mean) @ self.whitening
        return np.asarray(np.sqrt((white * white).mean(axis=1)), np.float32)


def fit(features: Floats, held: Floats, share: float, seed: int = 0) -> Familiarity:
    """The Gaussian of `features`, with the threshold that a share `share` of frames exceeds that
    were not learned from: those of `held`, and each of `features` by the others."""
    crossed = held_out_distances(features, seed)
    mean, whitening = _gaussian(features)
    threshold = threshold_of(crossed, share)
    if len(held):
        fresh = Familiarity(mean, whitening, 1.0).distances(held)
        threshold = max(threshold, threshold_of(np.concatenate([crossed, fresh]), share))
    return Familiarity(mean, whitening, threshold)


def held_out_distances(features: Floats, seed: int = 0) -> Floats:
    """The distance of each frame by a Gaussian of the others: [frames]."""
    out = np.empty(len(features), np.float32)
    for rest, fold in folds(len(features), seed):
        out[fold] = Familiarity(*_gaussian(features[rest]), 1.0).distances(features[fold])
    return out


def _gaussian(features: Floats) -> tuple[Floats, Floats]:
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation = np.maximum(deviation, 1e-2 * max(float(deviation.mean()), 1e-6))
    standard = (features - mean) / deviation
    covariance = standard.T @ standard / len(features)
    values, vectors = np.linalg.eigh(covariance.astype(np.float64))
    values = np.maximum(values, 0) + SHRINKAGE * values.mean()
    whitening = vectors / np.sqrt(values) / deviation[:, None]
    return np.asarray(mean, np.float32), np.asarray(whitening, np.float32)


def feature_model(model: bytes) -> bytes | None:
    """`model` with the features as its last output; None if no layer has any."""
    editor = _Editor(model)
    layer = editor.layer()
    if layer is None:
        return None
    editor.answer(editor.features(layer), _FEATURES)
    return editor.written()


def with_familiarity(model: bytes, familiarity: Familiarity) -> bytes:
    """`model`, of which `feature_model` made something, with an output FAMILIARITY [1, 1] at its
    end: 0.5 at the threshold, 1 for what is most familiar, towards 0 for what is least."""
    editor = _Editor(model)
    layer = editor.layer()
    assert layer is not None
    features = editor.features(layer)
    scale = 1 / np.sqrt(familiarity.whitening.shape[1])
    weights = np.ascontiguousarray(familiarity.whitening.T * scale)
    bias = -(familiarity.mean @ familiarity.whitening) * scale
    white = editor.add(
        "FULLY_CONNECTED",
        [features, editor.constant(weights), editor.constant(bias)],
        [1, len(weights)],
        schema.FullyConnectedOptionsT(),
    )
    squares = editor.add("MUL", [white, white], [1, len(weights)], schema.MulOptionsT())
    total = editor.add(
        "SUM", [squares, editor.constant(np.array([1], np.int32))], [1, 1], _keep_dims()
    )
    distance = editor.add("SQRT", [total], [1, 1])
    limit = editor.constant(np.array([[familiarity.threshold]], np.float32))
    both = editor.add("ADD", [distance, limit], [1, 1], schema.AddOptionsT())
    editor.answer(editor.add("DIV", [limit, both], [1, 1], schema.DivOptionsT()), FAMILIARITY)
    return editor.written()


def _keep_dims() -> Any:
    options = schema.ReducerOptionsT()
    options.keepDims = True
    return options


class _Editor(GraphEditor):
    """An editor that finds and adds features."""

    def layer(self) -> int | None:
        """The tensor that the features are of: the end of the last residual block at no more than
        STRIDE pixels a place, or else of the last convolution there; None if there is none."""
        image = self.graph.tensors[self.graph.inputs[0]].shape
        if len(image) != 4:
            return None
        height = image[1 if layout_of(image) == "nhwc" else 2]
        ends: dict[str, int] = {}
        for op in self.graph.operators:
            kind, output = kind_of(self.model, op), int(op.outputs[0])
            shape = self.graph.tensors[output].shape
            if len(shape) == 4 and shape[1] >= max(LEAST_SIDE, height / STRIDE):
                ends[kind] = output
        return ends.get("ADD", ends.get("CONV_2D"))

    def features(self, layer: int) -> int:
        """Adds the mean and deviation of each channel of `layer`: a tensor [1, 2 * channels]."""
        shape = [1, *self.shape(layer)[1:]]
        layer = self.real(layer)
        channels = [1, shape[3]]
        axes = self.constant(np.array([1, 2], np.int32))
        mean = self.add("MEAN", [layer, axes], channels, schema.ReducerOptionsT())
        squares = self.add("MUL", [layer, layer], shape, schema.MulOptionsT())
        power = self.add("MEAN", [squares, axes], channels, schema.ReducerOptionsT())
        square = self.add("MUL", [mean, mean], channels, schema.MulOptionsT())
        less = schema.SubOptionsT()
        # Rounding could make it negative.
        less.fusedActivationFunction = schema.ActivationFunctionType.RELU
        deviation = self.add("SQRT", [self.add("SUB", [power, square], channels, less)], channels)
        join = schema.ConcatenationOptionsT()
        join.axis = 1
        return self.add("CONCATENATION", [mean, deviation], [1, 2 * shape[3]], join)


@dataclass(frozen=True, slots=True)
class FamiliarModel:
    """A model with the output, and what bundle.json says of it."""

    data: bytes
    settings: Settings


def add_familiarity(
    model: bytes,
    recipe: Recipe,
    learned: Sequence[Path] | NDArray[np.uint8] | None,
    validation: Sequence[Path],
    share: float = FALSE_UNFAMILIAR,
) -> FamiliarModel | None:
    """Adds the output to a classifier; None if it has no layer to take features of, or there are
    fewer than MIN_FRAMES frames.

    recipe: that the model is fed by. learned: frames that it learned from, as in `tensors`; without
    them those of the validation are what is familiar. share: of such frames that may be called
    unfamiliar. Raises ConvertError as `read_last` does.
    """
    features = feature_model(model)
    if features is None:
        return None
    held = read_last(features, validation, recipe)
    own = held if learned is None else read_last(features, learned, recipe)
    if len(own) < MIN_FRAMES:
        return None
    fresh = held[:0] if learned is None else held
    gaussian = fit(own, fresh, share)
    crossed = np.concatenate([held_out_distances(own), gaussian.distances(fresh)])
    result = with_familiarity(model, gaussian)
    settings = Settings(
        false_unfamiliar=share,
        learned_from=len(own),
        held_back=len(crossed),
        held_back_unfamiliar=float((crossed > gaussian.threshold).mean()),
    )
    return FamiliarModel(result, settings)
