"""Tensors of the Open Inference Protocol, as JSON and as binary data.

Sources: Open Inference Protocol, inference_rest.md; Triton's extension_binary_data.md and
extension_classification.md.
"""

import math
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from flask import Response, request

from server.errors import InvalidFieldError
from server.http.body.json_body import decode_base64, decode_json, read_body
from server.recognition import tensor_values as values
from server.recognition.preprocessing import Tensor, TensorSpec
from server.values.labels import Label
from server.values.wording import counted, shown

HEADER_LENGTH = "Inference-Header-Content-Length"
# No more digits than a length can have; Python refuses to convert thousands of them.
LENGTH = re.compile("[0-9]{1,12}")
BYTES = "BYTES"
DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
NAMES = {dtype: name for name, dtype in DATATYPES.items()}

Shape = Annotated[list[Annotated[int, msgspec.Meta(ge=1)]], msgspec.Meta(max_length=16)]
Parameters = dict[str, Any]


class InferInput(msgspec.Struct, frozen=True):
    """One input tensor: `data` in row-major order, flat or nested, or after the JSON as many
    bytes as `parameters.binary_data_size` says. BYTES in JSON are base64."""

    name: str
    shape: Shape
    datatype: str
    parameters: Parameters = {}
    data: list[Any] | None = None


class InferOutput(msgspec.Struct, frozen=True):
    """One wanted output. Parameters: `binary_data`, `classification`."""

    name: str
    parameters: Parameters = {}


class InferRequest(msgspec.Struct, frozen=True):
    """An inference request. Parameters: `binary_data_output`, `timeout` in microseconds."""

    inputs: Annotated[list[InferInput], msgspec.Meta(min_length=1)]
    id: str | None = None
    parameters: Parameters = {}
    outputs: list[InferOutput] | None = None


class ResponseTensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """One output tensor, flat in row-major order; `parameters.binary_data_size` bytes after the
    JSON if it is binary."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, int] = {}


class InferResponse(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to an inference request."""

    model_name: str
    model_version: str
    outputs: list[ResponseTensor]
    id: str | None = None


def whole_number(value: object) -> bool:
    """Return whether a parameter's value is a whole number, which true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def flag(parameters: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """Return the parameter `name`, true or false; `default` if it is absent or null. Raises
    InvalidFieldError for another value."""
    value = parameters.get(name)
    if value is None:
        return default
    if value not in (True, False):
        raise InvalidFieldError(f"{name} should be true or false, not {shown(value)}")
    return bool(value)


def read_infer(most: int) -> tuple[InferRequest, list[Tensor | list[bytes]]]:
    """Return this request, and its inputs: arrays, or lists of the elements of a BYTES tensor,
    which may have `most`.

    Raises InvalidFieldError naming the input that does not fit its shape and datatype.
    """
    body = read_body()
    header = request.headers.get(HEADER_LENGTH)
    length = len(body)
    if header is not None:
        if not LENGTH.fullmatch(header) or not 0 < int(header) <= len(body):
            raise InvalidFieldError(
                f"{HEADER_LENGTH} should be the length of the JSON, in 1..{len(body)}, not {header}"
            )
        length = int(header)
    wanted = decode_json(InferRequest, body[:length])
    rest = memoryview(body)[length:]
    tensors = []
    for item in wanted.inputs:
        size = item.parameters.get("binary_data_size")
        if size is None:
            tensors.append(_from_json(item, most))
            continue
        if not whole_number(size) or not 0 <= size <= len(rest):
            raise InvalidFieldError(
                f"the input {item.name} says binary_data_size {shown(size)}, and {len(rest)} bytes"
                " are left after the JSON"
            )
        tensors.append(_from_binary(item, rest[:size], most))
        rest = rest[size:]
    if rest:
        raise InvalidFieldError(f"{len(rest)} bytes after the JSON belong to no input")
    return wanted, tensors


def _count(item: InferInput) -> int:
    return math.prod(item.shape)


def _dtype(item: InferInput) -> str:
    if item.datatype not in DATATYPES:
        raise InvalidFieldError(
            f"the input {item.name} has the datatype {shown(item.datatype)}; it should be one of"
            f" {', '.join(DATATYPES)}, {BYTES}"
        )
    return DATATYPES[item.datatype]


def _wrong_count(item: InferInput, count: int) -> InvalidFieldError:
    return InvalidFieldError(
        f"the input {item.name} has {counted(count, 'element')}, but its shape {item.shape} needs"
        f" {_count(item)}"
    )


def _check_elements(item: InferInput, most: int) -> None:
    """Raise InvalidFieldError for more elements than `most`, before any is made."""
    if _count(item) > most:
        raise InvalidFieldError(
            f"{_count(item)} elements were sent in {item.name}: 1 to {most} are taken of BYTES"
        )


def _texts(data: list[Any], most: int) -> list[Any]:
    """Return the elements of `data`, lists within lists, in order; at most `most` and one."""
    texts: list[Any] = []
    open_lists = [iter(data)]
    while open_lists and len(texts) <= most:
        for item in open_lists[-1]:
            if isinstance(item, list):
                open_lists.append(iter(item))
                break
            texts.append(item)
            if len(texts) > most:
                break
        else:
            open_lists.pop()
    return texts


def _from_json(item: InferInput, most: int) -> Tensor | list[bytes]:
    if item.data is None:
        raise InvalidFieldError(f"the input {item.name} has neither data nor binary_data_size")
    if item.datatype == BYTES:
        _check_elements(item, most)
        texts = _texts(item.data, most)
        if len(texts) != _count(item):
            raise _wrong_count(item, len(texts))
        if not all(isinstance(text, str) for text in texts):
            raise InvalidFieldError(f"the input {item.name} should be base64 texts")
        return [decode_base64(text, f"the input {item.name}") for text in texts]
    dtype = _dtype(item)
    array = values.to_array(item.data, f"the input {item.name}")
    if array.size != _count(item):
        raise _wrong_count(item, array.size)
    return values.cast_exact(array, dtype, f"the input {item.name}").reshape(item.shape)


def _from_binary(item: InferInput, data: memoryview, most: int) -> Tensor | list[bytes]:
    if item.datatype == BYTES:
        _check_elements(item, most)
        return _bytes_elements(item, data)
    dtype = np.dtype(_dtype(item)).newbyteorder("<")
    if len(data) != _count(item) * dtype.itemsize:
        raise InvalidFieldError(
            f"the input {item.name} has {len(data)} bytes, but {item.datatype} {item.shape} needs"
            f" {_count(item) * dtype.itemsize}"
        )
    if dtype.kind == "b":
        return np.not_equal(np.frombuffer(data, np.uint8), 0).reshape(item.shape)
    array: Tensor = np.frombuffer(data, dtype).reshape(item.shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _bytes_elements(item: InferInput, data: memoryview) -> list[bytes]:
    """Return the elements; each is its length as a 4-byte little-endian unsigned number, then its
    bytes."""
    elements, at = list[bytes](), 0
    while at < len(data) and len(elements) <= _count(item):
        end = at + 4
        if end <= len(data):
            end += struct.unpack_from("<I", data, at)[0]
        if end > len(data):
            raise InvalidFieldError(f"the input {item.name} ends in the middle of an element")
        elements.append(bytes(data[at + 4 : end]))
        at = end
    if len(elements) != _count(item):
        raise _wrong_count(item, len(elements))
    return elements


def classified(
    tensor: Tensor, spec: TensorSpec, labels: Sequence[Label], count: int
) -> tuple[list[int], list[str]]:
    """Return the shape and the elements, `VALUE:INDEX:LABEL`, of the `count` highest values of each
    row of an output."""
    real = values.to_real_values(tensor, spec)
    rows = real.reshape(len(real), -1) if real.ndim > 1 else real.reshape(1, -1)
    best = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count]
    names = [f":{label.name}" for label in labels] if len(labels) == rows.shape[1] else None
    elements = [
        f"{row[i]:f}:{i}{names[i] if names else ''}"
        for row, indices in zip(rows, best, strict=True)
        for i in indices.tolist()
    ]
    return list(best.shape) if real.ndim > 1 else [best.shape[1]], elements


def encode_output(
    tensor: Tensor, spec: TensorSpec, labels: Sequence[Label], parameters: Mapping[str, Any]
) -> tuple[ResponseTensor, bytes]:
    """Return an output as `parameters` want it: its JSON, and its binary data, which may be empty.

    Raises InvalidFieldError for a wrong parameter, or for what JSON can't hold.
    """
    count = parameters.get("classification") or 0
    if not whole_number(count) or count < 0:
        raise InvalidFieldError(f"classification should be a number of classes, not {shown(count)}")
    binary = flag(parameters, "binary_data")
    if count:
        shape, texts = classified(tensor, spec, labels, count)
        if not binary:
            return ResponseTensor(spec.name, BYTES, shape, texts), b""
        data = b"".join(
            struct.pack("<I", len(element)) + element for element in map(str.encode, texts)
        )
        return _binary(spec.name, BYTES, shape, data)
    datatype, shape = NAMES[spec.dtype], list(tensor.shape)
    if binary:
        little = tensor.astype(tensor.dtype.newbyteorder("<"), copy=False)
        return _binary(spec.name, datatype, shape, little.tobytes())
    if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
        raise InvalidFieldError(
            f"the output {spec.name} holds numbers that are not finite, which JSON can't: ask for"
            " it as binary_data"
        )
    return ResponseTensor(spec.name, datatype, shape, tensor.reshape(-1).tolist()), b""


def _binary(
    name: str, datatype: str, shape: list[int], data: bytes
) -> tuple[ResponseTensor, bytes]:
    parameters = {"binary_data_size": len(data)}
    return ResponseTensor(name, datatype, shape, parameters=parameters), data


def infer_response(answer: InferResponse, blobs: Sequence[bytes]) -> Response:
    """Return the response: JSON, then the data of the outputs that are binary."""
    head = msgspec.json.encode(answer)
    if not any(tensor.parameters for tensor in answer.outputs):
        return Response(head, content_type="application/json")
    response = Response(b"".join([head, *blobs]), content_type="application/octet-stream")
    response.headers[HEADER_LENGTH] = str(len(head))
    return response
