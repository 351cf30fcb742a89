"""The Open Inference Protocol v2 (REST), which Triton, KServe and their clients speak.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md. A model that
takes images takes them either as its input tensor, already scaled, or as files: one BYTES tensor
named `image` or as the input.
"""

import time

import msgspec
from flask import Blueprint, Response, request

from server import __version__
from server.api.compat.open_inference_tensors import (
    BYTES,
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
from server.api.recognize.options import FrameOptions, frame_age_of, options
from server.api.recognize.service import RecognitionService, mark_frame
from server.config.settings import Settings
from server.errors import InvalidFieldError, NotReadyError
from server.http.body.image import read_options
from server.http.errors import to_json
from server.recognition import tensor_model as tensors
from server.recognition.answers import Options
from server.recognition.preprocessing import Tensor, TensorSpec
from server.recognition.recognizer import Recognizer
from server.recognition.tensor_model import Model, ModelOutputs
from server.recognition.tensor_values import names_of
from server.values.wording import shown

IMAGE = "image"
LONGEST_TIMEOUT = 10**12


class ServerMetadata(msgspec.Struct, frozen=True):
    """What this server is and speaks."""

    name: str = "lineside"
    version: str = __version__
    extensions: tuple[str, ...] = ("binary_tensor_data", "classification")


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
    """`model` as the protocol describes it."""
    rows = tensors.batched(model)
    return ModelMetadata(
        model.manifest.name,
        (str(model.manifest.version),),
        "tensorflow_lite",
        tuple(_metadata(spec, rows) for spec in model.pool.inputs),
        tuple(_metadata(spec, rows) for spec in model.pool.outputs),
        {"image_input": IMAGE} if isinstance(model, Recognizer) else {},
    )


class Inference:
    """Inference requests, once they are read."""

    def __init__(self, recognizing: RecognitionService, settings: Settings) -> None:
        self._recognizing, self._settings = recognizing, settings

    def infer(self, name: str, version: int | None) -> Response:
        """Answers this request by the model `name`. Raises InvalidFieldError for what the model
        does not take or give, and what `RecognitionService` raises."""
        model = self._recognizing.store.get(name, version)
        wanted, given = read_infer(self._settings.max_batch)
        asked = self._asked(wanted)
        outputs = _wanted_outputs(model, wanted)
        outcome = self._run(model, wanted, given, asked)
        default = flag(wanted.parameters, "binary_data_output")
        encoded = [
            encode_output(
                outcome.outputs[i],
                model.pool.outputs[i],
                model.labels,
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

    def _asked(self, wanted: InferRequest) -> Options:
        query = read_options(FrameOptions, request)
        asked = options(
            query, self._settings, frame_age_of(query, self._settings, self._recognizing.clock_skew)
        )
        timeout = wanted.parameters.get("timeout")
        if timeout is None:
            return asked
        if not whole_number(timeout) or not 0 <= timeout <= LONGEST_TIMEOUT:
            raise InvalidFieldError(
                f"timeout should be microseconds in 0..{LONGEST_TIMEOUT}, not {shown(timeout)}"
            )
        if not timeout:
            return asked
        deadline = min(asked.deadline, time.monotonic() + timeout / 1e6)
        return msgspec.structs.replace(asked, deadline=deadline)

    def _run(
        self,
        model: Model,
        wanted: InferRequest,
        given: list[Tensor | list[bytes]],
        asked: Options,
    ) -> ModelOutputs:
        first, specs = wanted.inputs[0], model.pool.inputs
        if first.datatype == BYTES and isinstance(model, Recognizer):
            files, most = given[0], self._settings.max_batch
            if len(given) > 1 or first.name not in (IMAGE, specs[0].name, specs[0].signature):
                raise InvalidFieldError(
                    f"images go alone, in one BYTES tensor named {IMAGE} or {specs[0].name}"
                )
            if not isinstance(files, list) or not 0 < len(files) <= most:
                raise InvalidFieldError(f"{len(files)} images were sent: 1 to {most} are taken")
            return self._recognizing.images(model, files, asked)
        arrays: dict[str, Tensor] = {}
        for item, tensor in zip(wanted.inputs, given, strict=True):
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
        return self._recognizing.tensors(model, tensors.match_inputs(model, arrays), asked)


def _wanted_outputs(model: Model, wanted: InferRequest) -> list[tuple[int, InferOutput]]:
    """The outputs to answer with, each with its place in the model's; all where none is named."""
    specs = model.pool.outputs
    if not wanted.outputs:
        return [(i, InferOutput(spec.name)) for i, spec in enumerate(specs)]
    found = []
    for item in wanted.outputs:
        spec = tensors.find_tensor(specs, item.name)
        if spec is None:
            raise InvalidFieldError(
                f"there is no output {item.name}: the model gives {names_of(specs)}"
            )
        found.append((specs.index(spec), item))
    return found


def blueprint(recognizing: RecognitionService, settings: Settings) -> Blueprint:
    """The protocol's routes."""
    routes = Blueprint("inference_protocol", __name__, url_prefix="/v2")
    routes.before_request(mark_frame)
    store, inference = recognizing.store, Inference(recognizing, settings)

    @routes.get("", strict_slashes=False)
    def server() -> Response:
        return to_json(ServerMetadata())

    @routes.get("/health/live")
    def live() -> Response:
        return to_json(Live())

    @routes.get("/health/ready")
    def ready() -> Response:
        well, reason = store.ready()
        if not well:
            raise NotReadyError(reason, retry_after=1)
        return to_json(Ready())

    @routes.get("/models/<model:name>")
    @routes.get("/models/<model:name>/versions/<int:version>")
    def metadata(name: str, version: int | None = None) -> Response:
        return to_json(model_metadata(store.get(name, version)))

    @routes.get("/models/<model:name>/ready")
    @routes.get("/models/<model:name>/versions/<int:version>/ready")
    def model_ready(name: str, version: int | None = None) -> Response:
        return to_json(ModelReady(store.get(name, version).manifest.name))

    @routes.post("/models/<model:name>/infer")
    @routes.post("/models/<model:name>/versions/<int:version>/infer")
    def infer(name: str, version: int | None = None) -> Response:
        return inference.infer(name, version)

    return routes
