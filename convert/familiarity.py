"""Adds to a classifier's .tflite a second output: how like the frames that it learned from a frame
is, by a Gaussian over the network's own features. A softmax can't say that it does not know.

The features are the mean and the deviation of each channel of a layer in the network's middle: the
last ones see only what tells the classes apart. The operators are written into the quantised file,
so that one invoke answers both, whatever the model was made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from numpy.typing import NDArray

from convert.anomaly.statistics import Floats, folds, threshold_of
from convert.data.frames import tensors
from convert.quantization.graph import kind_of
from convert.sources.shapes import layout_of
from server.recognition.interpreter import Interpreter
from server.recognition.manifest import FAMILIARITY, Recipe
from server.recognition.manifest import Familiarity as Settings
from server.system.resources import available_cores

# A layer of at most so few pixels of the image a place, and of at least so many places a side.
STRIDE, LEAST_SIDE = 16, 4
# Of the mean variance, added to each direction: few frames leave some without any.
SHRINKAGE = 0.05
# Fewer frames than this do not say what is familiar.
MIN_FRAMES = 20
# Share of familiar frames that may be called unfamiliar.
FALSE_UNFAMILIAR = 0.005
_FEATURES = "familiarity_features"
_FLOAT = schema.TensorType.FLOAT32
_QUANTISED = (schema.TensorType.INT8, schema.TensorType.UINT8)


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


class _Editor:
    """A .tflite being added to."""

    def __init__(self, model: bytes) -> None:
        self._model = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
        self._graph = self._model.subgraphs[0]

    def layer(self) -> int | None:
        """The tensor that the features are of: the end of the last residual block at no more than
        STRIDE pixels a place, or else of the last convolution there; None if there is none."""
        image = self._graph.tensors[self._graph.inputs[0]].shape
        if len(image) != 4:
            return None
        height = image[1 if layout_of(image) == "nhwc" else 2]
        ends: dict[str, int] = {}
        for op in self._graph.operators:
            kind, output = kind_of(self._model, op), int(op.outputs[0])
            shape = self._graph.tensors[output].shape
            if len(shape) == 4 and shape[1] >= max(LEAST_SIDE, height / STRIDE):
                ends[kind] = output
        return ends.get("ADD", ends.get("CONV_2D"))

    def features(self, layer: int) -> int:
        """Adds the mean and deviation of each channel of `layer`: a tensor [1, 2 * channels]."""
        tensor = self._graph.tensors[layer]
        shape = [1, *(int(side) for side in tensor.shape[1:])]
        if tensor.type in _QUANTISED:
            layer = self.add("DEQUANTIZE", [layer], shape)
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

    def constant(self, values: NDArray[Any]) -> int:
        """Adds a constant tensor, float32 or int32, and returns its number."""
        buffer = schema.BufferT()
        kind = schema.TensorType.INT32 if values.dtype == np.int32 else _FLOAT
        content = values if values.dtype == np.int32 else values.astype(np.float32)
        buffer.data = np.frombuffer(content.tobytes(), np.uint8)
        self._model.buffers.append(buffer)
        return self._tensor(list(values.shape), kind, len(self._model.buffers) - 1)

    def add(self, kind: str, inputs: list[int], shape: list[int], options: Any = None) -> int:
        """Adds an operator with one float32 output, and returns the output's number."""
        output = self._tensor(shape, _FLOAT, 0)
        op = schema.OperatorT()
        op.opcodeIndex, op.inputs, op.outputs = self._code(kind), inputs, [output]
        if options is not None:
            op.builtinOptions = options
            name = type(options).__name__.removesuffix("T")
            op.builtinOptionsType = getattr(schema.BuiltinOptions, name)
        self._graph.operators.append(op)
        return output

    def answer(self, tensor: int, name: str) -> None:
        """Makes a tensor the model's last output, called `name` in its signature too."""
        self._graph.tensors[tensor].name = name.encode()
        self._graph.outputs = [*(int(i) for i in self._graph.outputs), tensor]
        for signature in self._model.signatureDefs or ():
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name.encode(), tensor
            signature.outputs = [*signature.outputs, entry]

    def written(self) -> bytes:
        """The model with what was added."""
        return bytes(flatbuffer_utils.convert_object_to_bytearray(self._model))

    def _tensor(self, shape: list[int], kind: int, buffer: int) -> int:
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = shape, kind, buffer
        tensor.name = f"familiarity/{len(self._graph.tensors)}".encode()
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def _code(self, kind: str) -> int:
        """The place of an operator's code, which is added if the model has no such operator."""
        number = getattr(schema.BuiltinOperator, kind)
        for place, code in enumerate(self._model.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == number:
                return place
        code = schema.OperatorCodeT()
        code.builtinCode = number
        code.deprecatedBuiltinCode = min(number, 127)
        code.version = 1
        self._model.operatorCodes.append(code)
        return len(self._model.operatorCodes) - 1


def read_last(model: bytes, frames: Sequence[Path] | NDArray[np.uint8], recipe: Recipe) -> Floats:
    """The last output of a model for each frame: [frames, values]. frames: as in `tensors`.

    Raises ConvertError naming a file that is not a readable image.
    """
    threads = available_cores()
    interpreters = [Interpreter(Path("model.tflite"), 1, model) for _ in range(threads)]
    spec = interpreters[0].inputs[0]

    def one(number: int) -> Floats:
        [frame] = tensors(frames[number : number + 1], recipe, spec)
        return np.asarray(interpreters[number % threads].run([frame])[-1][0], np.float32)

    with ThreadPoolExecutor(threads) as workers, ExitStack() as stack:
        # Without it a damaged frame would be reported only after all the others had run.
        stack.callback(workers.shutdown, cancel_futures=True)
        return np.stack(list(workers.map(one, range(len(frames)))))


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
