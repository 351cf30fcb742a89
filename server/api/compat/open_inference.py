"""The Open Inference Protocol v2 (REST), which Triton, KServe and their clients speak.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md. A model that
takes images takes them either as its input tensor, already scaled, or as files: one BYTES tensor
named `image` or as the input.
"""

import time
from functools import partial

import msgspec
from flask import Response

from server import __version__
from server.api.compat.open_inference_tensors import (
    NAMES,
    InferOutput,
    InferRequest,
    InferResponse,
    encode_output,
    flag,
    infer_response,
    read_infer,
    whole_number,
)
from server.api.recognize.options import EXAMPLE_INPUT, frame_route
from server.api.recognize.service import RecognitionService, refuse_product
from server.errors import InvalidFieldError, NotReadyError
from server.http.routes import BINARY, JSON, KNOWN, OPEN, Group, route
from server.recognition import tensor_model as tensors
from server.recognition.answers import Options
from server.recognition.preprocessing import Tensor, TensorSpec
from server.recognition.recognizer import Recognizer
from server.recognition.tensor_model import Model, ModelOutputs
from server.recognition.tensor_values import names_of
from server.values.wording import shown

IMAGE = "image"
TIMEOUT_MAX_US = 10**12

GROUP = Group("Open Inference Protocol v2", r"/v2(/|$)")
_route = partial(route, group=GROUP)
MODEL = "/v2/models/<model:name>"
VERSION = f"{MODEL}/versions/<int:version>"


class ServerMetadata(msgspec.Struct, frozen=True):
    """The server's version, and the extensions of the protocol that it has."""

    name: str = "lineside"
    version: str = __version__
    extensions: tuple[str, ...] = (
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "model_repository",
        "model_repository(unload_dependents)",
        "statistics",
    )


class Live(msgspec.Struct, frozen=True):
    """The server answers."""

    live: bool = True


class Ready(msgspec.Struct, frozen=True):
    """The default model answers. `live` is what the specification's text calls the same."""

    ready: bool = True
    live: bool = True


class ModelReady(msgspec.Struct, frozen=True):
    """The model answers."""

    name: str
    ready: bool = True


class TensorMetadata(msgspec.Struct, frozen=True):
    """A tensor; -1 in its shape is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(msgspec.Struct, frozen=True):
    """A model and its tensors. parameters: for one that takes images, `image_input`, the name
    under which it takes them as BYTES."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    parameters: dict[str, str] = {}


def _metadata(spec: TensorSpec, rows: bool) -> TensorMetadata:
    shape = (-1, *spec.shape[1:]) if rows else spec.shape
    return TensorMetadata(spec.name, NAMES[spec.dtype], shape)


def model_metadata(model: Model) -> ModelMetadata:
    rows = tensors.batched(model)
    return ModelMetadata(
        model.manifest.name,
        (str(model.manifest.version),),
        model.pool.engine.platform,
        tuple(_metadata(spec, rows) for spec in model.pool.inputs),
        tuple(_metadata(spec, rows) for spec in model.pool.outputs),
        {"image_input": IMAGE} if isinstance(model, Recognizer) else {},
    )


def _wanted_outputs(model: Model, wanted: InferRequest) -> list[tuple[int, InferOutput]]:
    """Return the outputs to answer with, each with its place in the model's; all if none is
    named."""
    specs = model.pool.outputs
    if not wanted.outputs:
        return [(i, InferOutput(spec.name)) for i, spec in enumerate(specs)]
    outputs = []
    for item in wanted.outputs:
        spec = tensors.find_tensor(specs, item.name)
        if spec is None:
            raise InvalidFieldError(
                f"there is no output {item.name}: the model gives {names_of(specs)}"
            )
        outputs.append((specs.index(spec), item))
    return outputs


class OpenInferenceRoutes:
    """The protocol's routes. max_batch: images of one request."""

    def __init__(self, recognizing: RecognitionService, max_batch: int) -> None:
        self._recognizing = recognizing
        self._store = recognizing.store
        self._max_batch = max_batch

    @_route("GET", "/v2", rights=KNOWN)
    def server(self) -> ServerMetadata:
        """Return the server's version and its extensions."""
        return ServerMetadata()

    @_route("GET", "/v2/health/live", rights=OPEN, probe=True)
    def live(self) -> Live:
        """Return whether the server answers."""
        return Live()

    @_route("GET", "/v2/health/ready", rights=OPEN, errors=(503,), probe=True)
    def ready(self) -> Ready:
        """Return whether the default model can infer.

        Raises NotReadyError if it does not.
        """
        well, reason = self._store.ready()
        if not well:
            raise NotReadyError(reason, retry_after=1)
        return Ready()

    @_route("GET", *(MODEL, VERSION), rights=KNOWN, errors=(404, 503))
    def metadata(self, name: str, version: int | None = None) -> ModelMetadata:
        """Return a model's tensors."""
        return model_metadata(self._store.get(name, version))

    @_route("GET", *(f"{MODEL}/ready", f"{VERSION}/ready"), rights=KNOWN, errors=(404, 503))
    def model_ready(self, name: str, version: int | None = None) -> ModelReady:
        """Return whether a model can infer."""
        return ModelReady(self._store.get(name, version).manifest.name)

    @frame_route(
        *(f"{MODEL}/infer", f"{VERSION}/infer"),
        group=GROUP,
        body={JSON: InferRequest, BINARY: bytes},
        example={
            "inputs": [
                {"name": "features", "shape": [1, 4], "datatype": "FP32", "data": EXAMPLE_INPUT}
            ]
        },
        answer={JSON: InferResponse, BINARY: bytes},
    )
    def infer(self, name: str, version: int | None = None) -> Response:
        """Infer; with Inference-Header-Content-Length, binary data follows the JSON.

        Raises InvalidFieldError for what the model does not take or give, and what
        `RecognitionService` raises.
        """
        model = self._store.get(name, version)
        wanted, tensors_sent = read_infer(self._max_batch)
        options = self._options(wanted)
        outputs = _wanted_outputs(model, wanted)
        outcome = self._run(model, wanted, tensors_sent, options)
        default = flag(wanted.parameters, "binary_data_output")
        encoded = [
            encode_output(
                outcome.outputs[i],
                model.pool.outputs[i],
                model.scored_labels,
                {**item.parameters, "binary_data": flag(item.parameters, "binary_data", default)},
            )
            for i, item in outputs
        ]
        return infer_response(
            InferResponse(
                model.manifest.name,
                str(model.manifest.version),
                [tensor for tensor, _ in encoded],
                wanted.id,
            ),
            [data for _, data in encoded],
        )

    def _options(self, wanted: InferRequest) -> Options:
        query, options = self._recognizing.read_options()
        refuse_product(query)
        timeout = wanted.parameters.get("timeout")
        if timeout is None:
            return options
        if not whole_number(timeout) or not 0 <= timeout <= TIMEOUT_MAX_US:
            raise InvalidFieldError(
                f"timeout should be microseconds in 0..{TIMEOUT_MAX_US}, not {shown(timeout)}"
            )
        if not timeout:
            return options
        deadline = min(options.deadline, time.monotonic() + timeout / 1e6)
        return msgspec.structs.replace(options, deadline=deadline)

    def _run(
        self,
        model: Model,
        wanted: InferRequest,
        tensors_sent: list[Tensor | list[bytes]],
        options: Options,
    ) -> ModelOutputs:
        files, specs = tensors_sent[0], model.pool.inputs
        if isinstance(files, list) and isinstance(model, Recognizer):
            names = (IMAGE, specs[0].name, specs[0].signature)
            if len(tensors_sent) > 1 or wanted.inputs[0].name not in names:
                raise InvalidFieldError(
                    f"images go alone, in one BYTES tensor named {IMAGE} or {specs[0].name}"
                )
            return self._recognizing.images(model, files, options)
        arrays: dict[str, Tensor] = {}
        for item, tensor in zip(wanted.inputs, tensors_sent, strict=True):
            spec = tensors.find_tensor(specs, item.name)
            if spec is None:
                raise InvalidFieldError(
                    f"there is no input {item.name}: the model takes {names_of(specs)}"
                )
            if isinstance(tensor, list) or item.datatype != NAMES[spec.dtype]:
                raise InvalidFieldError(
                    f"the input {item.name} is {NAMES[spec.dtype]}, and {item.datatype} was sent"
                )
            if spec.name in arrays:
                raise InvalidFieldError(f"the input {item.name} was sent twice")
            arrays[spec.name] = tensor
        return self._recognizing.tensors(model, tensors.match_inputs(model, arrays), options)
