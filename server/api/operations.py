"""Every operation of the HTTP API once, with the types that validate it; `openapi` writes it down.

A test compares this table with the routes that exist.
"""

from typing import Any

import msgspec

from server.api.batch import Batch
from server.api.console import Samples
from server.api.health import Health
from server.api.inference_protocol import (
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
)
from server.api.inference_tensors import InferRequest, InferResponse
from server.api.job_answers import Job, JobAccepted, JobPage
from server.api.jobs import JobForm, JobJson, JobQuery
from server.api.journal import JournalPage, JournalQuery
from server.api.json_body import JsonFrame
from server.api.models import Model, Models, Which
from server.api.query import Query
from server.api.recognize import Recognition, TensorRecognition
from server.api.samples import Said, SamplePage, SampleQuery
from server.api.serving_values import ClassifyRequest, PredictRequest
from server.api.tensorflow_serving import Metadata, ModelStatus, Outputs, Predictions, Results
from server.api.tutorial_jobs import Task, TaskBody, TaskInfo, TaskStarted, TaskState
from server.api.tutorials import (
    Classification,
    FeaturePrediction,
    ModelInfo,
    PredictBody,
    Predicted,
    Recent,
    RecognizedThree,
)
from server.api.upload import Arrived
from server.recognition.sample import Sample

JSON, MULTIPART, FORM = (
    "application/json",
    "multipart/form-data",
    "application/x-www-form-urlencoded",
)
BINARY, TAR = "application/octet-stream", "application/x-tar"
IMAGE_TYPES = ("image/jpeg", "image/png", "image/bmp", "image/webp", "image/tiff")
# A body of each type that the bundle models/iris answers.
FLOWER = [5.1, 3.5, 1.4, 0.2]
EXAMPLES: dict[type, object] = {
    JsonFrame: {"input": FLOWER, "model": "iris", "parameters": {"top_k": 1}},
    JobJson: {"input": FLOWER, "model": "iris"},
    TaskBody: {"input": FLOWER},
    PredictBody: {"features": FLOWER},
    PredictRequest: {"instances": [FLOWER]},
    Which: {"version": 1},
    Said: {"label": "scratched"},
    ClassifyRequest: {"examples": [{"features": FLOWER}]},
    InferRequest: {
        "inputs": [{"name": "features", "shape": [1, 4], "datatype": "FP32", "data": FLOWER}]
    },
}
# What a recognising route may answer beside its result.
FRAME_ERRORS = (400, 404, 413, 415, 422, 503)
NUMBER_ERRORS = (400, 404, 413, 503)


class Files(msgspec.Struct, frozen=True):
    """A form: its file fields, of which one is sent (or, where `several`, any number), and the
    type that its other fields belong to."""

    names: tuple[str, ...]
    fields: type | None = Query
    several: bool = False


class Operation(msgspec.Struct, frozen=True):
    """One method at one path.

    bodies: what it takes, by media type: a type, `Files`, or `bytes`. answers: what it answers
    with 200, by media type; several types are alternatives. errors: the other statuses. foreign:
    its errors have the shape of another protocol. accepted: what it answers with 202. asks: what
    its query string may hold, where `query` is set.
    """

    method: str
    path: str
    tag: str
    summary: str
    answers: dict[str, tuple[Any, ...]]
    query: bool = False
    bodies: dict[str, Any] = {}
    errors: tuple[int, ...] = ()
    foreign: bool = False
    accepted: tuple[Any, ...] = ()
    asks: type[msgspec.Struct] = Query


def _get(
    path: str, tag: str, summary: str, answer: Any, *errors: int, foreign: bool = False
) -> Operation:
    return Operation("get", path, tag, summary, {JSON: (answer,)}, errors=errors, foreign=foreign)


def _post(
    path: str,
    tag: str,
    summary: str,
    answers: tuple[Any, ...],
    bodies: dict[str, Any],
    errors: tuple[int, ...] = FRAME_ERRORS,
    foreign: bool = True,
) -> Operation:
    return Operation("post", path, tag, summary, {JSON: answers}, True, bodies, errors, foreign)


def _change(action: str, summary: str) -> Operation:
    bodies = {} if action == "rollback" else {JSON: Which}
    path = f"/v1/models/{{name}}/{action}"
    return Operation(
        "post",
        path,
        "Lineside",
        summary,
        {JSON: (Model,)},
        bodies=bodies,
        errors=(400, 403, 404, 409, 413, 422, 503),
    )


def _samples() -> list[Operation]:
    tag, one = "Lineside", "/v1/samples/{sample}"
    image = dict.fromkeys((*IMAGE_TYPES, "image/x-portable-anymap"), (bytes,))
    return [
        Operation(
            "get",
            "/v1/samples",
            tag,
            "Frames that were kept for a person to look at",
            {JSON: (SamplePage,)},
            errors=(400, 503),
            query=True,
            asks=SampleQuery,
        ),
        _get(one, tag, "One of them, with its answer", Sample, 404, 503),
        Operation("get", f"{one}/image", tag, "Its image as received", image, errors=(404, 503)),
        Operation(
            "post",
            f"{one}/label",
            tag,
            "Say what it shows",
            {JSON: (Sample,)},
            bodies={JSON: Said},
            errors=(400, 403, 404, 413, 503),
        ),
        Operation("delete", one, tag, "Remove it", {JSON: (Sample,)}, errors=(400, 403, 404, 503)),
    ]


def _jobs() -> list[Operation]:
    raw = dict.fromkeys(IMAGE_TYPES, bytes)
    bodies = {MULTIPART: Files(("file",), JobForm, several=True), **raw, JSON: JobJson}
    path, tag = "/v1/jobs", "Jobs"
    one = "/v1/jobs/{job}"
    return [
        Operation(
            "post",
            path,
            tag,
            "Frames to be answered later; once this is answered, they will be",
            {},
            True,
            bodies,
            (*FRAME_ERRORS, 403),
            accepted=(JobAccepted,),
            asks=JobForm,
        ),
        Operation(
            "get",
            path,
            tag,
            "The jobs of this caller, newest first",
            {JSON: (JobPage,)},
            True,
            errors=(400, 503),
            asks=JobQuery,
        ),
        _get(one, tag, "How a job goes, and its results", Job, 404, 503),
        Operation("delete", one, tag, "Cancels a job", {JSON: (Job,)}, errors=(404, 409, 503)),
    ]


def _tutorial_jobs() -> list[Operation]:
    tag = "Tutorials"
    start = (
        ("/api/recognize_async", {MULTIPART: Files(("file",))}, Task),
        ("/start-task", {JSON: TaskBody}, TaskStarted),
    )
    ask = (("/results/{job}", TaskState), ("/task-status/{job}", TaskInfo))
    return [
        *(
            Operation(
                "post",
                path,
                tag,
                "A frame to be answered later",
                {},
                True,
                bodies,
                FRAME_ERRORS,
                True,
                (answer,),
            )
            for path, bodies, answer in start
        ),
        *(
            _get(path, tag, "How a task goes", answer, 404, 503, foreign=True)
            for path, answer in ask
        ),
    ]


def _own() -> list[Operation]:
    raw = dict.fromkeys(IMAGE_TYPES, bytes)
    one = {MULTIPART: Files(("file", "image"), JsonFrame), **raw, JSON: JsonFrame, FORM: JsonFrame}
    tag = "Lineside"
    return [
        _post(
            "/v1/recognize",
            tag,
            "One frame in, its labels out",
            (Recognition, TensorRecognition),
            one,
            foreign=False,
        ),
        _post(
            "/v1/recognize/batch",
            tag,
            "Several frames, each with its own result or error",
            (Batch,),
            {MULTIPART: Files(("file",), several=True)},
            NUMBER_ERRORS,
            foreign=False,
        ),
        _get("/v1/models", tag, "All models", Models),
        _get("/v1/models/{name}", tag, "One model", Model, 404),
        Operation(
            "post",
            "/v1/models/{name}/upload",
            tag,
            "A version as a tar archive of its files, kept beside the others and not loaded",
            {JSON: (Arrived,)},
            bodies={TAR: bytes, BINARY: bytes},
            errors=(400, 403, 409, 413, 415, 422, 503),
        ),
        _change("load", "The newest version on disk, or the one named, serves"),
        _change("activate", "This version serves, now and after a restart"),
        _change("rollback", "The version that served before serves again"),
        _get("/v1/models/{name}/samples", tag, "A model's sample frames", Samples, 404, 503),
        Operation(
            "get",
            "/v1/models/{name}/samples/{file}",
            tag,
            "One sample frame",
            dict.fromkeys(IMAGE_TYPES, (bytes,)),
            errors=(404, 503),
        ),
        Operation(
            "get",
            "/v1/journal",
            tag,
            "What was answered, filtered: a page, or one file of all",
            {JSON: (JournalPage,), "text/csv": (str,), "application/x-ndjson": (str,)},
            errors=(400, 403, 404, 503),
            query=True,
            asks=JournalQuery,
        ),
        _get("/livez", tag, "Whether the server answers", Health),
        _get("/readyz", tag, "Whether the default model answers", Health, 503),
        Operation("get", "/metrics", tag, "Prometheus's text exposition", {"text/plain": (str,)}),
    ]


def _tutorials() -> list[Operation]:
    tag = "Tutorials"
    return [
        _post(
            "/classify",
            tag,
            "The five best labels",
            (Classification,),
            {MULTIPART: Files(("image",))},
        ),
        _post(
            "/api/recognize",
            tag,
            "The three best labels",
            (RecognizedThree,),
            {MULTIPART: Files(("file",))},
        ),
        Operation(
            "post",
            "/predict",
            tag,
            "The best label of `file`; `image` is answered later; a model's outputs for `input`;"
            " labels for `features`",
            {JSON: (Predicted, FeaturePrediction, dict[str, Any])},
            True,
            {MULTIPART: Files(("file", "image")), JSON: PredictBody},
            FRAME_ERRORS,
            True,
            (TaskStarted,),
        ),
        _post(
            "/api/recognize_cached",
            tag,
            "The three best labels, kept for 60 seconds",
            (RecognizedThree,),
            {MULTIPART: Files(("file",))},
        ),
        Operation(
            "get",
            "/recent",
            tag,
            "The kept answer that the request of this id got",
            {JSON: (RecognizedThree,)},
            errors=(400, 404),
            foreign=True,
            query=True,
            asks=Recent,
        ),
        _get("/api/model/info", tag, "The default model", ModelInfo, 503, foreign=True),
    ]


def _inference_protocol() -> list[Operation]:
    tag = "Open Inference Protocol v2"
    found = [
        _get("/v2", tag, "The server and its extensions", ServerMetadata, foreign=True),
        _get("/v2/health/live", tag, "Whether the server answers", Live, foreign=True),
        _get("/v2/health/ready", tag, "Whether it can infer", Ready, 503, foreign=True),
    ]
    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        found += [
            _get(model, tag, "A model's tensors", ModelMetadata, 404, 503, foreign=True),
            _get(f"{model}/ready", tag, "Whether it can infer", ModelReady, 404, 503, foreign=True),
            Operation(
                "post",
                f"{model}/infer",
                tag,
                "Inference; with Inference-Header-Content-Length binary data follows the JSON",
                {JSON: (InferResponse,), BINARY: (bytes,)},
                True,
                {JSON: InferRequest, BINARY: bytes},
                FRAME_ERRORS,
                True,
            ),
        ]
    return found


def _tensorflow_serving() -> list[Operation]:
    tag = "TensorFlow Serving"
    found = []
    whole = "/v1/models/{name}"
    for model in (whole, f"{whole}/versions/{{version}}", f"{whole}/labels/{{label}}"):
        predicted, classified = (Predictions, Outputs), (Results,)
        found += [
            _post(f"{model}:predict", tag, "Outputs", predicted, {JSON: PredictRequest}),
            _post(
                f"{model}:classify", tag, "Labels and scores", classified, {JSON: ClassifyRequest}
            ),
            Operation(
                "post",
                f"{model}:regress",
                tag,
                "Always an error",
                {},
                errors=(400, 404, 503),
                foreign=True,
            ),
            _get(f"{model}/metadata", tag, "The signature", Metadata, 404, 503, foreign=True),
        ]
        if model != whole:
            found.append(
                _get(model, tag, "A version's status", ModelStatus, 404, 503, foreign=True)
            )
    return found


def operations() -> list[Operation]:
    """The whole table."""
    return [
        *_own(),
        *_jobs(),
        *_samples(),
        *_tutorials(),
        *_tutorial_jobs(),
        *_inference_protocol(),
        *_tensorflow_serving(),
    ]
