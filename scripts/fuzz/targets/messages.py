"""Messages of gRPC, requests with tensors, JSON bodies, MQTT payloads and Modbus registers."""

import io
import json
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
from flask import Flask

from fuzz.mutation import Draw
from fuzz.target import Target, promise
from server.api.compat.open_inference_tensors import HEADER_LENGTH, InferRequest, read_infer
from server.api.compat.tensorflow_serving_json import ClassifyRequest, PredictRequest
from server.api.jobs import JobJson
from server.api.keys import NewKey
from server.api.policy import PolicyBody
from server.api.recognize.input import FrameBody
from server.api.samples import LabelBody
from server.config.outputs import ModbusServerOutput
from server.errors import NotFoundError
from server.grpc.calls import CALLS
from server.grpc.wire import read_message, write_message
from server.http.body.json_body import decode_base64, decode_json
from server.http.body.multipart import take_bodies
from server.jobs.messages import read_report
from server.line.outputs.modbus import COILS, TEXT_REGISTERS, ModbusServer, text_from
from server.line.triggers.mqtt import PAYLOAD_BYTES_MAX
from server.line.triggers.mqtt import read_message as read_trigger
from server.recognition import tensor_values
from server.values.validation import InvalidValueError

BODY_BYTES_MAX = 1 << 20
NUMBERS_BYTES_MAX = 1 << 20
ELEMENTS_MAX = 32
METHODS = tuple(CALLS)
BODIES: tuple[Any, ...] = (
    *(FrameBody, JobJson, NewKey, PolicyBody, LabelBody, InferRequest, PredictRequest),
    *(ClassifyRequest, dict[str, Any]),
)


def _grpc(data: bytes) -> None:
    """The method in the first byte, then the message."""
    call = CALLS[METHODS[data[0] % len(METHODS)] if data else METHODS[0]]
    asked = call.ask(read_message(call.request, data[1:], NUMBERS_BYTES_MAX), 5.0)
    promise(asked.path.startswith("/v2"), f"it asks for {asked.path}")


def _grpc_seeds() -> tuple[bytes, ...]:
    values = np.arange(12, dtype=np.float32)
    inputs: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [3, 4]}
    infer: dict[str, Any] = {
        "model_name": "iris",
        "model_version": "1",
        "id": "an-id",
        "parameters": {"timeout": {"int64_param": 5}, "top_k": {"string_param": "3"}},
        "inputs": [inputs],
        "outputs": [{"name": "y", "parameters": {"classification": {"int64_param": 2}}}],
        "raw_input_contents": [values.tobytes()],
    }
    contents: dict[str, Any] = {"fp32_contents": values}
    typed = {**infer, "inputs": [{**inputs, "contents": contents}]}
    typed.pop("raw_input_contents")
    whole = {
        "name": "i",
        "datatype": "INT64",
        "shape": [2],
        "contents": {"int64_contents": [1, -1]},
    }
    texts = {"name": "b", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [b"a"]}}
    messages: list[tuple[str, dict[str, Any]]] = [
        ("ModelInfer", infer),
        ("ModelInfer", typed),
        ("ModelInfer", {**typed, "inputs": [whole, texts]}),
        ("ModelReady", {"name": "iris", "version": "1"}),
        ("ModelStatistics", {"name": ""}),
        ("RepositoryIndex", {"ready": True}),
        ("RepositoryModelLoad", {"model_name": "a", "parameters": {"x": {"bytes_param": b"1"}}}),
    ]
    return tuple(
        bytes([METHODS.index(name)]) + write_message(CALLS[name].request, message)
        for name, message in messages
    )


class _Infer:
    """Bodies of Triton's infer: the JSON and the data of tensors. The first line of an input is the
    header that says how long the JSON is."""

    def __init__(self) -> None:
        self._app = Flask("fuzz")
        take_bodies(self._app, BODY_BYTES_MAX)

    def run(self, data: bytes) -> None:
        header, _, body = data.partition(b"\n")
        environ = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": "/v2/models/iris/infer",
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "80",
            "wsgi.url_scheme": "http",
            "CONTENT_LENGTH": str(len(body)),
            "CONTENT_TYPE": "application/octet-stream",
            "wsgi.input": io.BytesIO(body),
        }
        if header:
            name = "HTTP_" + HEADER_LENGTH.upper().replace("-", "_")
            environ[name] = header.decode("latin-1")
        with self._app.request_context(environ):
            request, tensors = read_infer(ELEMENTS_MAX)
        for item, tensor in zip(request.inputs, tensors, strict=True):
            if isinstance(tensor, list):
                promise(len(tensor) <= ELEMENTS_MAX, f"{len(tensor)} elements")
            else:
                promise(list(tensor.shape) == item.shape, f"the shape {tensor.shape}")


def _infer_seeds() -> tuple[bytes, ...]:
    item = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2.5, -3, 1e3]}
    nested = {"name": "x", "shape": [2, 2], "datatype": "INT8", "data": [[1, 2], [3, 4]]}
    encoded = {"name": "x", "shape": [1], "datatype": "BYTES", "data": ["AAEC"]}
    plain = [json.dumps({"inputs": [each]}).encode() for each in (item, nested, encoded)]
    seeds = [b"\n" + text for text in plain]
    for kind, shape, raw in (
        ("FP32", [1, 4], np.arange(4, dtype=np.float32).tobytes()),
        ("BOOL", [3], b"\0\1\2"),
        ("FP16", [2], b"\0\x3c\0\x3c"),
        ("BYTES", [2], b"\3\0\0\0abc\0\0\0\0"),
    ):
        sized = {"binary_data_size": len(raw)}
        tensor = {"name": "x", "shape": shape, "datatype": kind, "parameters": sized}
        outputs = [{"name": "y", "parameters": {"binary_data": True, "classification": 3}}]
        head = json.dumps({"inputs": [tensor], "outputs": outputs, "id": "1"}).encode()
        seeds.append(b"%d\n" % len(head) + head + raw)
    return tuple(seeds)


def _json(data: bytes) -> None:
    """Decode a body. data: its kind in the first byte, then the body."""
    kind = BODIES[data[0] % len(BODIES)] if data else dict
    body = decode_json(kind, data[1:], not_finite=bool(data[0] & 0x80) if data else False)
    if isinstance(body, FrameBody) and body.image_base64:
        decode_base64(body.image_base64, "image_base64")
    if isinstance(body, PredictRequest):
        array = tensor_values.to_array(body.instances or body.inputs, "input")
        for dtype in ("float32", "int8", "uint64", "bool"):
            with suppress(NotFoundError):
                tensor_values.cast_exact(array, dtype, "input")


def _json_seeds() -> tuple[bytes, ...]:
    bodies: list[tuple[Any, Any]] = [
        (FrameBody, {"image_base64": "/9j/4AAQ", "camera": "st4", "deadline_ms": 200, "top_k": 3}),
        (FrameBody, {"input": [[5.1, 3.5]], "model": "iris", "captured_at": 1767225600.25}),
        (JobJson, {"image_url": "http://127.0.0.1/a.jpg", "webhook": "http://127.0.0.1/hook"}),
        (NewKey, {"name": "station-4", "rights": ["recognize"], "rate": "10/second"}),
        (PolicyBody, {"policy": {"accept": ["good"], "min_probability": 0.9}, "version": 1}),
        (LabelBody, {"label": "good"}),
        (InferRequest, {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}),
        (PredictRequest, {"instances": [[1, 2.5], [3, -4]], "signature_name": "serving_default"}),
        (PredictRequest, {"inputs": {"x": [[1, True]]}}),
        (ClassifyRequest, {"examples": [{"x": 1.5}], "context": {"y": [2]}}),
        (dict[str, Any], {"a": [1, {"b": None}]}),
    ]
    return tuple(bytes([BODIES.index(kind)]) + json.dumps(body).encode() for kind, body in bodies)


def _trigger(data: bytes) -> None:
    message = read_trigger(data)
    promise(max(map(len, (message.part, message.product, message.batch))) <= 128, "a long name")


def _modbus(data: bytes) -> None:
    """Requests of a PLC: function, address, how many values, the values."""
    table = ModbusServerOutput(name="plc", trigger_camera="st4")
    server = ModbusServer(table, lambda: False, lambda camera, trigger: None)
    draw = Draw(data)
    while draw.left:
        function, address, count = draw.pick(FUNCTIONS), draw.whole(0, 17), draw.whole(0, 8)
        values = [draw.whole(0, 0xFFFF) for _ in range(count)]
        # pymodbus refuses addresses beyond those that are declared.
        values = values[: TEXT_REGISTERS + 1 - address]
        written: Any = [bool(value) for value in values] if function in COILS else values
        step = server._access(function, 0, address, count, [0] * 56, written or None)
        with suppress(StopIteration):
            step.send(None)
    text = text_from([int.from_bytes(pair) for pair in zip(data[::2], data[1::2], strict=False)])
    promise("\0" not in text, "a zero byte in a text")


FUNCTIONS = (1, 2, 3, 4, 5, 6, 15, 16)


def _report(data: bytes) -> None:
    read_report(data)


def targets() -> tuple[Target, ...]:
    trigger = b'{"part": "A-1", "product": "nut", "batch": "7", "id": 12}'
    report = msgspec.json.encode(
        {"state": "running", "worker": "a:1", "stage": "decode", "beat": 1}
    )
    part = b"\5\0\0\0\1\0\1\0" + b"\7\1\0\4\0" + "Bügel-7".encode()
    types = (b"FP32", b"INT64", b"BYTES", b"UINT8", b"BOOL", b"FP16")
    return (
        Target("grpc", _grpc, _grpc_seeds(), (*types, b"\xff" * 9 + b"\1", b"\x80" * 12, b"\3\4")),
        Target("infer", _Infer().run, _infer_seeds(), (*types, b'"binary_data_size"', b'"shape"')),
        Target("json", _json, _json_seeds(), (b'"captured_at"', b'"b64"', b'"x"', b"[[[[1]]]]")),
        Target(
            "mqtt-trigger",
            _trigger,
            (trigger, b"", b'{"id": "x"}'),
            (b'"part"', b'"id"'),
            (InvalidValueError,),
            size_max=PAYLOAD_BYTES_MAX + 10,
        ),
        Target("modbus", _modbus, (part, bytes(range(120)))),
        Target("job-report", _report, (report,)),
    )
