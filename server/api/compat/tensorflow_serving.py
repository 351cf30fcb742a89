"""TensorFlow Serving's REST API: predict, classify, metadata, status; by version and by label.

Source: tensorflow/serving, g3doc/api_rest.md. The status of a whole model shares its path with
Lineside's own description of it, see `server.api.models`. The label `stable` is the version that
serves.
"""

from functools import partial
from typing import Annotated, Any

import msgspec
from flask import Response

from server.api.compat.tensorflow_serving_json import (
    CLASSIFY_SIGNATURES,
    DEFAULT_SIGNATURE,
    ClassifyRequest,
    Inputs,
    PredictRequest,
    check_signature,
    columns_of,
    columns_to_inputs,
    predictions,
    read_serving,
    rows_to_inputs,
    serving_json,
)
from server.api.recognize.options import EXAMPLE_INPUT, frame_route
from server.api.recognize.service import RecognitionService, refuse_product
from server.errors import InvalidFieldError, ModelNotFoundError
from server.http.routes import FRAMES, KNOWN, Group, route
from server.recognition import tensor_model as tensors
from server.recognition.preprocessing import TensorSpec
from server.recognition.tensor_model import Model, ModelOutputs
from server.store.bundles.layout import versions
from server.store.bundles.repository import BundleRepository

STABLE = "stable"
TYPES = {
    "bool": "DT_BOOL",
    "float16": "DT_HALF",
    "float32": "DT_FLOAT",
    "float64": "DT_DOUBLE",
    "int8": "DT_INT8",
    "int16": "DT_INT16",
    "int32": "DT_INT32",
    "int64": "DT_INT64",
    "uint8": "DT_UINT8",
    "uint16": "DT_UINT16",
    "uint32": "DT_UINT32",
    "uint64": "DT_UINT64",
}


class Status(msgspec.Struct, frozen=True):
    """The reason for a version's state."""

    error_code: str = "OK"
    error_message: str = ""


class VersionStatus(msgspec.Struct, frozen=True):
    """One version: AVAILABLE if it answers, even if its first request loads it; LOADING; END if it
    may not serve."""

    version: str
    state: str
    status: Status


class ModelStatus(msgspec.Struct, frozen=True):
    """The versions of a model."""

    model_version_status: tuple[VersionStatus, ...]


class Predictions(msgspec.Struct, frozen=True):
    """The answer to `instances`: a value or, for several outputs, an object for each."""

    predictions: list[Any]


class Outputs(msgspec.Struct, frozen=True):
    """The answer to `inputs`: the output or, for several, an object of them."""

    outputs: Any


class Results(msgspec.Struct, frozen=True):
    """The answer to `examples`: for each, its pairs of label and score, best first."""

    results: list[list[Annotated[list[str | float], msgspec.Meta(min_length=2, max_length=2)]]]


class ModelSpec(msgspec.Struct, frozen=True):
    name: str
    signature_name: str
    version: str


class Metadata(msgspec.Struct, frozen=True):
    """The model and its signature's tensors, as GetModelMetadataResponse in JSON."""

    model_spec: ModelSpec
    metadata: dict[str, Any]


def version_statuses(store: BundleRepository, name: str) -> tuple[VersionStatus, ...]:
    """Return the version of `name` that serves or is about to, and those that were refused."""
    serving = store.served().get(name)
    failures = store.failures(name)
    statuses = [
        VersionStatus(str(failure.version), "END", Status("UNKNOWN", failure.reason))
        for failure in failures
    ]
    if serving is not None:
        statuses.append(VersionStatus(str(serving.manifest.version), "AVAILABLE", Status()))
    elif not failures:
        newest = versions(store.folder)[name][0]
        state = "LOADING" if name == store.default else "AVAILABLE"
        statuses.append(VersionStatus(str(newest), state, Status()))
    return tuple(statuses)


def _tensor_info(spec: TensorSpec, rows: bool) -> dict[str, Any]:
    shape = (-1, *spec.shape[1:]) if rows else spec.shape
    return {
        "dtype": TYPES["float32" if spec.quantized else spec.dtype],
        "tensor_shape": {
            "dim": [{"size": str(size), "name": ""} for size in shape],
            "unknown_rank": False,
        },
        "name": spec.name,
    }


def metadata_of(model: Model) -> Metadata:
    """Return `model` as GetModelMetadata describes it; quantized tensors are real numbers here."""
    rows = tensors.batched(model)

    def infos(specs: tuple[TensorSpec, ...]) -> dict[str, Any]:
        return {spec.signature or spec.name: _tensor_info(spec, rows) for spec in specs}

    signature = {
        "inputs": infos(model.pool.inputs),
        "outputs": infos(model.pool.outputs),
        "method_name": "tensorflow/serving/predict",
    }
    return Metadata(
        ModelSpec(model.manifest.name, "", str(model.manifest.version)),
        {"signature_def": {"signature_def": {DEFAULT_SIGNATURE: signature}}},
    )


def _statuses_of(
    store: BundleRepository, name: str, version: int | None
) -> tuple[VersionStatus, ...]:
    known = version_statuses(store, name) if name in versions(store.folder) else ()
    statuses = tuple(status for status in known if status.version == str(version))
    if not statuses:
        raise ModelNotFoundError(f"Could not find version {version} of model {name}")
    return statuses


_GROUP = Group("TensorFlow Serving", "/v1/models/[^/]+(:|/metadata$|/(versions|labels)/)")
_route = partial(route, group=_GROUP)
_frame_route = partial(frame_route, group=_GROUP)
_MODEL = "/v1/models/<model:name>"
_VERSIONS = (f"{_MODEL}/versions/<int:version>", f"{_MODEL}/labels/<model:label>")


def _with(ending: str) -> tuple[str, ...]:
    """Return the rules of a whole model, of a version and of a label, with `ending`."""
    return tuple(rule + ending for rule in (_MODEL, *_VERSIONS))


class TensorFlowServingRoutes:
    def __init__(self, recognizing: RecognitionService) -> None:
        self._recognizing = recognizing
        self._store = recognizing.store

    def _model(self, name: str, version: int | None, label: str | None) -> Model:
        """Return the model that serves. Raises ModelNotFoundError, NotReadyError."""
        if label not in (None, STABLE):
            raise ModelNotFoundError(
                f"Unrecognized servable version label: {label}; there is {STABLE}"
            )
        return self._store.get(name, version)

    def _run(self, model: Model, inputs: Inputs, top_k: int = 1) -> ModelOutputs:
        query, options = self._recognizing.read_options()
        refuse_product(query)
        options = msgspec.structs.replace(options, top_k=top_k)
        files = [item for item in inputs if isinstance(item, bytes)]
        if not files:
            return self._recognizing.tensors(
                model, [item for item in inputs if not isinstance(item, bytes)], options
            )
        return self._recognizing.images(model, files, options)

    @_frame_route(
        *_with(":predict"),
        body=PredictRequest,
        example={"instances": [EXAMPLE_INPUT]},
        answer=(Predictions, Outputs),
    )
    def predict(self, name: str, version: int | None = None, label: str | None = None) -> Response:
        """Return the outputs for instances or inputs."""
        model = self._model(name, version, label)
        wanted = read_serving(PredictRequest)
        check_signature(wanted.signature_name)
        if (wanted.instances is None) == (wanted.inputs is None):
            raise InvalidFieldError("send either 'instances', by row, or 'inputs', by column")
        if wanted.instances is None:
            outcome = self._run(model, columns_to_inputs(model, wanted.inputs))
            return serving_json({"outputs": columns_of(model, outcome)})
        if not tensors.batched(model):
            raise InvalidFieldError("this model takes no rows: send 'inputs' in their place")
        outcome = self._run(model, rows_to_inputs(model, wanted.instances))
        return serving_json({"predictions": predictions(model, outcome)})

    @_frame_route(
        *_with(":classify"),
        body=ClassifyRequest,
        example={"examples": [{"features": EXAMPLE_INPUT}]},
    )
    def classify(self, name: str, version: int | None = None, label: str | None = None) -> Results:
        """Return all labels of each example with their scores, best first."""
        model = self._model(name, version, label)
        wanted = read_serving(ClassifyRequest)
        check_signature(wanted.signature_name, CLASSIFY_SIGNATURES)
        if not model.scored_labels or not tensors.batched(model):
            raise InvalidFieldError(f"the model {model.manifest.name} has no labels to answer with")
        if twice := sorted({name for row in wanted.examples for name in row} & set(wanted.context)):
            raise InvalidFieldError(f"{twice[0]} is in the context and in an example")
        rows = [{**wanted.context, **row} for row in wanted.examples]
        outcome = self._run(model, rows_to_inputs(model, rows), len(model.labels))
        results: list[list[list[str | float]]] = [
            [[label.label, label.probability] for label in answer.predictions]
            for answer in outcome.answers
        ]
        return Results(results)

    @_route("POST", *_with(":regress"), rights=FRAMES, frame=True, errors=(400, 404, 503))
    def regress(self, name: str, version: int | None = None, label: str | None = None) -> Response:
        """Return an error: no model has a regression signature."""
        self._model(name, version, label)
        raise InvalidFieldError("no model here has a regression signature: use :predict")

    @_route("GET", *_with("/metadata"), rights=KNOWN, errors=(404, 503))
    def metadata(self, name: str, version: int | None = None, label: str | None = None) -> Metadata:
        """Return a model's signature."""
        return metadata_of(self._model(name, version, label))

    @_route("GET", *_VERSIONS, rights=KNOWN, errors=(404, 503))
    def status(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> ModelStatus:
        """Return a version's status."""
        if label is not None:
            version = self._model(name, None, label).manifest.version
        return ModelStatus(_statuses_of(self._store, name, version))
