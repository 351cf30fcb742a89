"""Detectors of a few kilobytes, written straight as .tflite: their outputs are constants."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from numpy.typing import NDArray

_KINDS = {
    "float32": schema.TensorType.FLOAT32,
    "uint8": schema.TensorType.UINT8,
    "int8": schema.TensorType.INT8,
    "int64": schema.TensorType.INT64,
}


def constant_detector(
    outputs: Sequence[NDArray[Any]],
    shape: Sequence[int] = (1, 64, 64, 3),
    names: Sequence[str] = (),
    signature: Mapping[str, int] | None = None,
    metadata: bytes = b"",
) -> bytes:
    """A .tflite that takes a float32 image of `shape` and answers `outputs`, whatever it shows.

    names: of the outputs' tensors. signature: places of the outputs by their name in the only
    signature. metadata: the content of TFLITE_METADATA.
    """
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, model.operatorCodes = 3, [graph], []
    model.buffers = [schema.BufferT()]
    graph.tensors, graph.operators = [], []

    def add(name: str, shape: Sequence[int], dtype: str, data: bytes = b"") -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name.encode(), list(shape), _KINDS[dtype]
        tensor.quantization = schema.QuantizationParametersT()
        if data:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data, np.uint8)
            model.buffers.append(buffer)
            tensor.buffer = len(model.buffers) - 1
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    graph.inputs = [add("image", shape, "float32")]
    graph.outputs = [
        add(names[i] if names else f"out:{i}", out.shape, out.dtype.name, out.tobytes())
        for i, out in enumerate(outputs)
    ]
    if signature is not None:
        definition = schema.SignatureDefT()
        definition.signatureKey, definition.subgraphIndex = b"serving_default", 0
        definition.inputs, definition.outputs = (
            [_entry("image", graph.inputs[0])],
            [_entry(name, graph.outputs[place]) for name, place in signature.items()],
        )
        model.signatureDefs = [definition]
    if metadata:
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(metadata, np.uint8)
        model.buffers.append(buffer)
        entry.name, entry.buffer = b"TFLITE_METADATA", len(model.buffers) - 1
        model.metadata = [entry]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _entry(name: str, tensor: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), tensor
    return entry
