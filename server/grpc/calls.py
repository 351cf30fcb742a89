"""The protocol's calls: what each asks over HTTP, and how the answer is written as a message."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from server.api.compat.open_inference import TIMEOUT_MAX_US
from server.api.compat.open_inference_tensors import (
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    whole_number,
)
from server.api.recognize.options import FrameOptions
from server.errors import InvalidFieldError, LinesideError, ModelNotFoundError
from server.grpc import messages
from server.grpc.in_process import Answer, Request
from server.grpc.tensors import input_data, output_data, parameters_of
from server.grpc.wire import Message, Values
from server.values.wording import shown

# What a segment of a path may be, and a version in one.
NAME, VERSION = re.compile("[^/:]+"), re.compile("[0-9]{1,18}")
# The path of a request that is refused before its model is known.
NOBODY = "/v2/models/-/infer"
INDEX = "/v2/repository/index"
# Is not the path of a model of this name.
ALL_STATISTICS = "/v2/models/stats"
# Sizes of a tensor's shape that are looked at; models have up to six.
SIZES_MAX = 64
# Names of a frame's options, which are parameters of a call and in the query string over HTTP.
OPTIONS = frozenset(FrameOptions.__struct_fields__) - {"model", "version"}

Ask = Callable[[Values, float], Request]


class Call(msgspec.Struct, frozen=True):
    """One method of the service. request, response: kinds of messages. ask: returns what a message
    asks over HTTP, of the message and the seconds until the caller's deadline; raises a
    LinesideError if that can't be asked. answer: returns the values of the response. refused: the
    path at which an error of `ask` is logged. statuses: of errors that are an answer too, and not
    an error."""

    request: Message
    response: Message
    ask: Ask
    answer: Callable[[Answer], Values]
    refused: tuple[str, str]
    statuses: tuple[int, ...] = ()


def model_path(name: str, version: str, tail: str = "") -> str:
    """Return the path of a model, or of a version if one is named. Raises ModelNotFoundError for
    what can be no name or no version."""
    if not NAME.fullmatch(name):
        raise ModelNotFoundError(f"there is no model {shown(name)}")
    if version and not VERSION.fullmatch(version):
        raise ModelNotFoundError(f"version {shown(version)} of {name} is not served")
    middle = f"/versions/{int(version)}" if version else ""
    return f"/v2/models/{name}{middle}{tail}"


def _get(path: str) -> Ask:
    return lambda message, left: Request(method="GET", path=path)


def _get_model(tail: str) -> Ask:
    def ask(message: Values, left: float) -> Request:
        name, version = message.get("name", ""), message.get("version", "")
        path = model_path(name, version, tail)
        if path == ALL_STATISTICS:
            raise ModelNotFoundError(f"there is no model {shown(name)}")
        return Request(method="GET", path=path)

    return ask


def _json(answer: Answer) -> Values:
    values: Values = msgspec.json.decode(answer.json)
    return values


def _well(name: str) -> Callable[[Answer], Values]:
    return lambda answer: {name: answer.status < 400}


def _timeout(parameters: Mapping[str, Any], left: float) -> dict[str, int]:
    """Return the parameter `timeout`, in microseconds: the caller's deadline, if that is sooner
    than the parameter that was sent."""
    sent: Any = parameters.get("timeout")
    microseconds = max(1.0, left * 1e6)
    if microseconds > TIMEOUT_MAX_US:
        return {}
    # Also if it is one that can't be used, which is said then.
    if sent is not None and not (whole_number(sent) and (sent == 0 or sent > microseconds)):
        return {}
    return {"timeout": int(microseconds)}


def _shape(item: Values) -> list[int]:
    """Return the shape of an input. Raises InvalidFieldError for one of too many sizes."""
    sizes = item.get("shape", ())
    if len(sizes) > SIZES_MAX:
        raise InvalidFieldError(
            f"the input {shown(item.get('name', ''))} has a shape of {len(sizes):,} sizes, and at"
            f" most {SIZES_MAX} are taken"
        )
    return [int(size) for size in sizes]


def _infer(message: Values, left: float) -> Request:
    """Return the request to infer, with all tensors as binary data."""
    path = model_path(message.get("model_name", ""), message.get("model_version", ""), "/infer")
    data = input_data(message)
    parameters = parameters_of(message)
    query = {
        name: str(parameters.pop(name))
        for name in OPTIONS & parameters.keys()
        if parameters[name] is not None
    }
    inputs = [
        InferInput(
            item.get("name", ""),
            _shape(item),
            item.get("datatype", ""),
            {"binary_data_size": len(each)},
        )
        for item, each in zip(message.get("inputs", ()), data, strict=True)
    ]
    outputs = [
        InferOutput(item.get("name", ""), {**parameters_of(item), "binary_data": True})
        for item in message.get("outputs", ())
    ]
    parameters |= {"binary_data_output": True} | _timeout(parameters, left)
    head = InferRequest(inputs, message.get("id"), parameters, outputs or None)
    return Request(
        method="POST", path=path, query=query, json=msgspec.json.encode(head), data=data or [b""]
    )


def _statistics(message: Values, left: float) -> Request:
    """Return the request for the statistics of a model; of all without a name."""
    name, version = message.get("name", ""), message.get("version", "")
    path = model_path(name, version, "/stats") if name else ALL_STATISTICS
    return Request(method="GET", path=path)


def _index(message: Values, left: float) -> Request:
    body = {"ready": message.get("ready", False)}
    return Request(method="POST", path=INDEX, json=msgspec.json.encode(body))


def _change(verb: str) -> Ask:
    """Return what asks for a change of what is loaded. A parameter of bytes, which is a model's
    file, is one that is not taken."""

    def ask(message: Values, left: float) -> Request:
        name = message.get("model_name", "")
        model_path(name, "")
        parameters = {
            key: None if isinstance(value, memoryview) else value
            for key, value in parameters_of(message).items()
        }
        path, body = f"/v2/repository/models/{name}/{verb}", {"parameters": parameters}
        return Request(method="POST", path=path, json=msgspec.json.encode(body))

    return ask


_read_response = msgspec.json.Decoder(InferResponse).decode


def _inferred(answer: Answer) -> Values:
    response = _read_response(answer.json)
    return {
        **msgspec.structs.asdict(response),
        "outputs": [msgspec.structs.asdict(each) for each in response.outputs],
        "raw_output_contents": output_data(response.outputs, answer.data),
    }


def refused_request(call: Call, error: LinesideError) -> Request:
    """Return the request that has `error` logged and counted as the refusal of `call`."""
    method, path = call.refused
    return Request(method=method, path=path, refused=error)


_SERVER, _MODEL = ("GET", "/v2"), ("GET", "/v2/models/-")
_CHANGE = ("POST", "/v2/repository/models/-/load")
_LIVE = messages.LIVE
CALLS: dict[str, Call] = {
    "ServerLive": Call(messages.EMPTY, _LIVE, _get("/v2/health/live"), _well("live"), _SERVER),
    "ServerReady": Call(
        messages.EMPTY, messages.READY, _get("/v2/health/ready"), _well("ready"), _SERVER, (503,)
    ),
    "ModelReady": Call(
        messages.NAMED_MODEL,
        messages.READY,
        _get_model("/ready"),
        _well("ready"),
        _MODEL,
        (404, 503),
    ),
    "ServerMetadata": Call(messages.EMPTY, messages.SERVER_METADATA, _get("/v2"), _json, _SERVER),
    "ModelMetadata": Call(
        messages.NAMED_MODEL, messages.MODEL_METADATA, _get_model(""), _json, _MODEL
    ),
    "ModelInfer": Call(
        messages.INFER_REQUEST, messages.INFER_RESPONSE, _infer, _inferred, ("POST", NOBODY)
    ),
    "ModelConfig": Call(
        messages.NAMED_MODEL,
        messages.MODEL_CONFIG,
        _get_model("/config"),
        lambda answer: {"config": _json(answer)},
        _MODEL,
    ),
    "ModelStatistics": Call(messages.NAMED_MODEL, messages.STATISTICS, _statistics, _json, _MODEL),
    "RepositoryIndex": Call(
        messages.INDEX_REQUEST,
        messages.INDEX,
        _index,
        lambda answer: {"models": _json(answer)},
        ("POST", INDEX),
    ),
    "RepositoryModelLoad": Call(
        messages.REPOSITORY_REQUEST, messages.EMPTY, _change("load"), _json, _CHANGE
    ),
    "RepositoryModelUnload": Call(
        messages.REPOSITORY_REQUEST, messages.EMPTY, _change("unload"), _json, _CHANGE
    ),
}
