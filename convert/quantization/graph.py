"""Reads a .tflite's operators with weights through the TFLite schema."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils

from convert.errors import QuantizeError

_WEIGHTED_KINDS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
# In the older field with an operator's code it stands for all codes from it on.
_NEWER_KINDS = schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES
_KIND_NAMES = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator with constant float32 weights.

    `shape` names kind, kernel, channels and output pixels ("CONV_2D 1x1 320>1280 @7x7"), and is
    the same in every model of one architecture. `depth` is the multiplications for one output
    value, `channels` the output channels, `weights` the number of weights.
    """

    index: int
    kind: str
    name: str
    shape: str
    depth: int
    channels: int
    weights: int
    grouped: bool


# A conversion asks for those of one model several times.
@lru_cache(maxsize=1)
def operators(float_model: bytes) -> tuple[Operator, ...]:
    """Return the operators with constant weights of a float32 .tflite, in order of execution.

    Raises QuantizeError for bytes that are no TFLite model, for a model without exactly one graph
    and one float32 input of fixed size, and for one whose weights are quantised already.
    """
    model = parse(float_model)
    graph = model.subgraphs[0]
    found = []
    for index, op in enumerate(graph.operators):
        kind = kind_of(model, op)
        if kind not in _WEIGHTED_KINDS:
            continue
        source, weights, output = (
            graph.tensors[i] for i in (op.inputs[0], op.inputs[1], op.outputs[0])
        )
        fixed = constant(model, weights)
        if weights.type != schema.TensorType.FLOAT32 or (not fixed and _unpacked(model, op)):
            raise QuantizeError(
                f"The model is quantised already ({kind} {output.name.decode()} has no float32 "
                "weights), so give the float32 model it was made from."
            )
        if fixed:
            found.append(_operator(index, kind, source.shape, weights.shape, output))
    return tuple(found)


def parse(model: bytes) -> Any:
    """Parse a .tflite. Raises QuantizeError unless it is one graph with one float32 input."""
    try:
        interpreter = Interpreter(model_content=model, num_threads=1)
        sources, graphs = interpreter.get_input_details(), interpreter.num_subgraphs()
    except (ValueError, RuntimeError) as error:
        raise QuantizeError("The bytes are no TFLite model that LiteRT can read.") from error
    if graphs != 1 or len(sources) != 1:
        raise QuantizeError(
            f"The model has {graphs} graphs and {len(sources)} inputs, and can only have one each."
        )
    dtype = np.dtype(sources[0]["dtype"])
    if dtype != np.float32:
        raise QuantizeError(f"The model's input is {dtype}, and only float32 can be quantised.")
    if any(size < 0 for size in sources[0]["shape_signature"][1:]):
        raise QuantizeError("The model takes input of any size, so convert it for one size first.")
    return flatbuffer_utils.read_model_from_bytearray(bytearray(model))


def portable(model: bytes) -> bytes:
    """Return a .tflite in the form that all readers take; it computes the same.

    ai-edge-quantizer leaves out the older of the two fields with an operator's code, so that
    OpenVINO takes each operator that it adds for an ADD. It writes large constants after the
    graph, where only LiteRT and TensorFlow from 2.15 on look for them.
    """
    parsed = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    for code in parsed.operatorCodes:
        code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
        code.deprecatedBuiltinCode = min(code.builtinCode, _NEWER_KINDS)
    # What was written after the graph is read as bytes, which would be packed one by one in Python.
    for buffer in parsed.buffers:
        if isinstance(buffer.data, (bytes, bytearray)):
            buffer.data = np.frombuffer(buffer.data, np.uint8)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(parsed))


def input_shape(model: bytes) -> tuple[int, ...]:
    """Return the shape of the only input of a .tflite, 1 for a free batch size."""
    graph = parse(model).subgraphs[0]
    return tuple(int(n) for n in graph.tensors[graph.inputs[0]].shape)


def kind_of(model: Any, op: Any) -> str:
    """Return the operator's kind as the TFLite schema spells it ("CONV_2D")."""
    code = model.operatorCodes[op.opcodeIndex]
    # Kinds below 127 are written in both fields, later ones in builtinCode alone.
    return str(_KIND_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)])


def _unpacked(model: Any, op: Any) -> bool:
    makers = (o for o in model.subgraphs[0].operators if op.inputs[1] in o.outputs)
    return any(kind_of(model, maker) == "DEQUANTIZE" for maker in makers)


def _operator(index: int, kind: str, source: Any, weights: Any, output: Any) -> Operator:
    if kind == "FULLY_CONNECTED":
        channels, depth = int(weights[0]), int(weights[1])
        shape, grouped = f"{kind} {depth}>{channels}", False
    else:
        _, height, width, inner = (int(n) for n in weights)
        channels, entering = int(output.shape[3]), int(source[3])
        depth = height * width * (1 if kind == "DEPTHWISE_CONV_2D" else inner)
        grouped = kind == "CONV_2D" and inner != entering
        pixels = f"{output.shape[1]}x{output.shape[2]}"
        shape = f"{kind} {height}x{width} {entering}>{channels} @{pixels}"
        shape += " grouped" if grouped else ""
    count = int(np.prod(weights))
    return Operator(index, kind, output.name.decode(), shape, depth, channels, count, grouped)


def constant(model: Any, tensor: Any) -> bool:
    return model.buffers[tensor.buffer].data is not None
