"""Tensors of gRPC messages, as the binary data that the same protocol has over HTTP."""

import struct
from collections.abc import Sequence
from typing import Any

from server.api.compat.open_inference_tensors import BYTES, DATATYPES
from server.errors import InvalidFieldError
from server.grpc.wire import Values
from server.recognition import tensor_values
from server.values.wording import shown

# Where typed contents of a datatype are.
TYPED = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}

Data = bytes | memoryview


def input_data(message: Values) -> list[Data]:
    """Return the data of each input of a ModelInferRequest: its raw contents, or the bytes of its
    typed ones. Raises InvalidFieldError for neither or both."""
    inputs, raw = message.get("inputs", []), message.get("raw_input_contents")
    if raw is None:
        return [_typed_data(item) for item in inputs]
    if len(raw) != len(inputs):
        raise InvalidFieldError(
            f"raw_input_contents has {len(raw)} tensors, and there are {len(inputs)} inputs"
        )
    for item in inputs:
        if item.get("contents"):
            raise InvalidFieldError(
                f"the input {_name(item)} has contents, and there are raw_input_contents too"
            )
    return list(raw)


def _typed_data(item: Values) -> Data:
    name, datatype = _name(item), item.get("datatype", "")
    contents = {key: value for key, value in item.get("contents", {}).items() if len(value)}
    field = TYPED.get(datatype)
    if field is None:
        if datatype in DATATYPES:
            raise InvalidFieldError(f"the input {name} is {datatype}: send it as raw contents")
        return b""  # what is wrong with it is said where all datatypes are known
    if wrong := [key for key in contents if key != field]:
        raise InvalidFieldError(
            f"the input {name} is {datatype}, whose contents are {field}, and {wrong[0]} were sent"
        )
    values = contents.get(field)
    if values is None:
        raise InvalidFieldError(f"the input {name} has no contents")
    if datatype == BYTES:
        return b"".join(part for each in values for part in (struct.pack("<I", len(each)), each))
    array = tensor_values.cast_exact(values, DATATYPES[datatype], f"the input {name}")
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _name(item: Values) -> str:
    return shown(item.get("name", ""))


def parameters_of(message: Values) -> dict[str, Any]:
    """Return the parameters of a message, or of a tensor in it, by name; null for one without a
    value. Raises InvalidFieldError for one with several."""
    found: dict[str, Any] = {}
    for name, value in message.get("parameters", {}).items():
        if len(value) > 1:
            raise InvalidFieldError(f"the parameter {shown(name)} has {len(value)} values")
        found[name] = next(iter(value.values()), None)
    return found


def output_data(outputs: Sequence[Any], data: bytes) -> list[bytes]:
    """Return the data of each of `outputs`, as their parameters say, from that of all."""
    found, at = list[bytes](), 0
    for each in outputs:
        end = at + each.parameters["binary_data_size"]
        found.append(data[at:end])
        at = end
    return found
