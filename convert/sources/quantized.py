"""A .tflite that is quantised already: its mode, its tensors, and the way it wants its pixels."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils

from convert.errors import ConvertError
from convert.quantization.graph import kind_of
from convert.recipe.first_layers import LiteOpening
from convert.recipe.readings import ALL, plausible_readings, readings_heard
from convert.sources.shapes import Shape, describe_parsed
from convert.terminal import suppress_native_output

Mode = Literal["float32", "float16", "dynamic", "int8"]
Dtype = Literal["float32", "uint8", "int8"]

_WEIGHTED = frozenset(
    {"BATCH_MATMUL", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"}
)
# Real values that 0..255 stand for in a quantised input.
_RANGES = {"0..255": (0.0, 255.0), "0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0)}


@dataclass(frozen=True, slots=True)
class Tflite:
    """A .tflite as it is: what it takes and gives, its mode, and the dtype of its input."""

    data: bytes
    shape: Shape
    mode: Mode
    dtype: Dtype


def read_tflite(data: bytes) -> Tflite:
    """Read a .tflite of one image, in any mode that the server runs.

    Raises ConvertError for bytes that are none, and for 16-bit activations and other dtypes of
    input and output than float32, uint8 and int8.
    """
    try:
        with suppress_native_output():
            interpreter = Interpreter(model_content=data, num_threads=1)
            parsed = flatbuffer_utils.read_model_from_bytearray(bytearray(data))
    except (ValueError, RuntimeError, TypeError, IndexError):
        raise ConvertError("The bytes are no TFLite model that LiteRT can read.") from None
    if len(parsed.subgraphs) != 1:
        raise ConvertError(f"the model has {len(parsed.subgraphs)} graphs, and can only have one")
    shape = describe_parsed(data, parsed)
    [taken] = interpreter.get_input_details()
    dtype = np.dtype(taken["dtype"]).name
    if dtype not in ("float32", "uint8", "int8"):
        raise ConvertError(
            f"the model takes {dtype}; it must take float32, or uint8 or int8 if it is quantised"
        )
    readings = _readings(dtype, *taken["quantization"])
    mobilenet = False
    if dtype == "float32":
        try:
            opening = LiteOpening(data)
        except ValueError:
            readings = ()
        else:
            size = (shape.height, shape.width, shape.channels)
            with suppress_native_output():
                readings = plausible_readings(opening, size)
                if readings == ALL:
                    readings = readings_heard(opening.responses, size)
            mobilenet = opening.is_mobilenet
    shape = replace(
        shape, readings=readings, scales_inside=readings == ("0..255",), mobilenet=mobilenet
    )
    return Tflite(data, shape, mode_of(parsed), dtype)


def _readings(dtype: str, scale: float, zero_point: int) -> tuple[str, ...]:
    """Return the readings of an integer input: pixel 0 is its lowest number, 255 its highest."""
    if not scale:
        return ("0..255",) if dtype == "uint8" else ()
    lowest = 0 if dtype == "uint8" else -128
    low, high = ((lowest + end - zero_point) * scale for end in (0, 255))
    return tuple(
        name
        for name, (first, last) in _RANGES.items()
        # One level more or less at an end is how the quantiser rounded.
        if max(abs(low - first), abs(high - last)) <= 0.012 * (last - first)
    )


def mode_of(parsed: Any) -> Mode:
    """Return how the weights are quantised. Raises ConvertError for 16-bit activations."""
    graph, kinds = parsed.subgraphs[0], schema.TensorType
    makers = {int(i): op for op in graph.operators for i in op.outputs}
    modes: set[Mode] = set()
    for op in graph.operators:
        if kind_of(parsed, op) not in _WEIGHTED or len(op.inputs) < 2:
            continue
        activations, weights = (graph.tensors[int(i)] for i in op.inputs[:2])
        # Weights come last of a transposed convolution's inputs but the image.
        if kind_of(parsed, op) == "TRANSPOSE_CONV":
            activations = graph.tensors[int(op.inputs[2])]
        if activations.type == kinds.INT16:
            raise ConvertError(
                "the model computes in 16-bit integers, which is not served: quantise it to 8 bits"
            )
        maker = makers.get(int(op.inputs[1]))
        if maker is not None and kind_of(parsed, maker) == "DEQUANTIZE":
            weights = graph.tensors[int(maker.inputs[0])]
        if activations.type in (kinds.INT8, kinds.UINT8):
            modes.add("int8")
        elif weights.type == kinds.FLOAT16:
            modes.add("float16")
        elif weights.type in (kinds.INT8, kinds.UINT8, kinds.INT4):
            modes.add("dynamic")
    order: tuple[Mode, ...] = ("int8", "dynamic", "float16")
    return next((mode for mode in order if mode in modes), "float32")
