"""Bias correction: what rounding the weights adds to an operator's mean output, taken off its bias.

Behind a ReLU every input is positive, so the rounding errors of a channel's weights do not cancel
over the inputs but add up to a shift. Its expected value is known from the mean inputs on real
frames: M. Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction",
2019, arXiv:1906.04721, section 4.2, in its form with data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from ai_edge_litert.tools import flatbuffer_utils
from numpy.typing import NDArray

from convert.quantization.graph import constant, kind_of, operators, parse

# The mean of a channel over this many frames is known to a few percent, and so is the shift.
MAX_FRAMES = 128
_DTYPES = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.FLOAT16: np.float16,
    schema.TensorType.INT8: np.int8,
    schema.TensorType.INT32: np.int32,
}


def correct(float_model: bytes, quantised: bytes, frames: Sequence[NDArray[np.float32]]) -> bytes:
    """`quantised`, a .tflite made from `float_model`, with corrected biases; as large and as quick.

    frames: real ones as the model sees them in service, float32 [1, H, W, C], of which at most
    MAX_FRAMES are looked at, evenly chosen. An operator without a constant bias, and a grouped
    convolution, stay as they are.
    """
    chosen = np.linspace(0, len(frames) - 1, min(len(frames), MAX_FRAMES)).round().astype(int)
    return correct_by(float_model, quantised, input_means(float_model, [frames[i] for i in chosen]))


def correct_by(
    float_model: bytes, quantised: bytes, means: Mapping[int, NDArray[np.float64]]
) -> bytes:
    """As `correct`, by what `input_means` found on frames that may be elsewhere."""
    found, source = operators(float_model), parse(float_model)
    target = flatbuffer_utils.read_model_from_bytearray(bytearray(quantised))
    kinds = {before.kind for before in found}
    after = [op for op in target.subgraphs[0].operators if kind_of(target, op) in kinds]
    weighted = [op for op in after if _source_of_weights(target, op) is not None]
    for op, before in zip(weighted, found, strict=True):
        rounding = _weights(target, op) - _weights(
            source, source.subgraphs[0].operators[before.index]
        )
        mean = means[before.index]
        if len(op.inputs) < 3 or op.inputs[2] < 0 or before.grouped:
            continue
        if before.kind == "DEPTHWISE_CONV_2D":
            shift = (rounding * np.repeat(mean, before.channels // len(mean))).sum(axis=(0, 1, 2))
        else:
            shift = (rounding * mean).reshape(before.channels, -1).sum(axis=1)
        _lower_bias(target, op, shift)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(target))


def input_means(
    float_model: bytes, frames: Sequence[NDArray[np.float32]]
) -> dict[int, NDArray[np.float64]]:
    """Return mean input of each channel of the operators with weights, float64 [channels], by the
    operator's index. frames: at least one, float32 [1, H, W, C]."""
    source = parse(float_model)
    interpreter = Interpreter(
        model_content=float_model,
        num_threads=1,
        # XNNPACK does not keep the tensors between its operators.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    [entry] = interpreter.get_input_details()
    graph = source.subgraphs[0]
    inputs = {op.index: int(graph.operators[op.index].inputs[0]) for op in operators(float_model)}
    sums: dict[int, NDArray[np.float64]] = {}
    for frame in frames:
        interpreter.set_tensor(entry["index"], frame)
        interpreter.invoke()
        for tensor in set(inputs.values()):
            value = interpreter.get_tensor(tensor)
            mean = value.reshape(-1, value.shape[-1]).mean(axis=0, dtype=np.float64)
            sums[tensor] = sums.get(tensor, np.zeros(mean.shape)) + mean
    return {index: sums[tensor] / len(frames) for index, tensor in inputs.items()}


def _values(model: Any, tensor: Any) -> NDArray[np.float64]:
    """Return a constant tensor's real values: (stored - zero point) * scale if it is quantised."""
    raw = np.frombuffer(bytes(model.buffers[tensor.buffer].data), _DTYPES[tensor.type])
    values = raw.reshape(tensor.shape).astype(np.float64)
    scale = _scale(tensor)
    return values if scale is None else values * scale


def _scale(tensor: Any) -> NDArray[np.float64] | None:
    """Return the scale of a symmetrically quantised tensor, one or one a channel, ready to
    multiply."""
    found = tensor.quantization
    if tensor.type not in (schema.TensorType.INT8, schema.TensorType.INT32) or found is None:
        return None
    scale = np.asarray(found.scale, np.float64)
    shape = [1] * len(tensor.shape)
    shape[found.quantizedDimension if len(scale) > 1 else -1] = -1
    return scale.reshape(shape)


def _source_of_weights(model: Any, op: Any) -> Any | None:
    """Return the constant tensor that the operator's weights are, or are unpacked from by a
    DEQUANTIZE."""
    graph, index = model.subgraphs[0], op.inputs[1]
    for maker in graph.operators:
        if index in maker.outputs and kind_of(model, maker) == "DEQUANTIZE":
            index = maker.inputs[0]
    return graph.tensors[index] if constant(model, graph.tensors[index]) else None


def _weights(model: Any, op: Any) -> NDArray[np.float64]:
    """Return the operator's weights as it computes with them."""
    return _values(model, _source_of_weights(model, op))


def _lower_bias(model: Any, op: Any, shift: NDArray[np.float64]) -> None:
    if not constant(model, model.subgraphs[0].tensors[op.inputs[2]]):
        return
    bias = _own_bias(model, op)
    values, scale = _values(model, bias) - shift, _scale(bias)
    stored = values if scale is None else np.rint(values / scale).clip(-(2**31), 2**31 - 1)
    content = stored.astype(_DTYPES[bias.type]).tobytes()
    model.buffers[bias.buffer].data = np.frombuffer(content, np.uint8)


def _own_bias(model: Any, op: Any) -> Any:
    """Return the bias as a tensor that no other operator has: equal constants are stored once."""
    graph, index = model.subgraphs[0], op.inputs[2]
    shared = graph.tensors[index].buffer
    sharing = [n for n, tensor in enumerate(graph.tensors) if tensor.buffer == shared]
    if sum(n in each.inputs for each in graph.operators for n in sharing) > 1:
        own, buffer = copy(graph.tensors[index]), copy(model.buffers[shared])
        own.buffer = len(model.buffers)
        model.buffers.append(buffer)
        op.inputs[2] = len(graph.tensors)
        graph.tensors.append(own)
    return graph.tensors[op.inputs[2]]
