"""The routes of published tutorials on serving image classifiers with Flask, with their field names
and answers, so that a client written for any of them works unchanged.

Some answer at once; the others take a frame with 202, and a client polls for its result. All take
what `FrameOptions` describes in the query string besides.
"""

from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from flask import Response, request
from werkzeug.datastructures import FileStorage

from server.api.jobs import JobIntake
from server.api.recognize.caching import own_id
from server.api.recognize.options import (
    EXAMPLE_INPUT,
    FrameOptions,
    frame_route,
    read_frame_options,
)
from server.api.recognize.service import RecognitionService, refuse_product, with_age
from server.errors import InvalidFieldError, MissingFieldError, NotFoundError
from server.http.body.image import refuse_text
from server.http.body.json_body import decode_base64, read_json
from server.http.routes import FRAMES, JOBS, JSON, KNOWN, MULTIPART, Files, Group, route, to_json
from server.http.wsgi import current
from server.recognition.answers import Answer, Prediction
from server.recognition.tensor_values import real_outputs
from server.store.jobs.records import JobRecord

# Seconds for which the tutorial's route keeps an answer, whatever `cache_s` is.
CACHED_S = 60
# Labels of a task's result.
TASK_LABELS = 5
STAGES = {
    "decode": "Decoding image...",
    "preprocess": "Preprocessing image...",
    "inference": "Running inference...",
}
Status = Literal["PENDING", "PROGRESS", "SUCCESS", "FAILURE"]


class Classified(msgspec.Struct, frozen=True, rename={"label": "class"}):
    """One label of /classify's answer."""

    label: str
    probability: float


class Classification(msgspec.Struct, frozen=True):
    """/classify's answer: five labels, best first."""

    predictions: tuple[Classified, ...]


class Recognized(msgspec.Struct, frozen=True):
    """One label of /api/recognize's answer; `class_id` is its number, from 0 on."""

    class_id: int
    label: str
    probability: float


class RecognizedThree(msgspec.Struct, frozen=True):
    """/api/recognize's answer: three labels, best first."""

    predictions: tuple[Recognized, ...]


class Recent(msgspec.Struct, frozen=True):
    """The query of /recent. id: the X-Request-Id of the request that was answered."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class Predicted(msgspec.Struct, frozen=True):
    """/predict's answer to an image; `class_id` is the label's outside name, such as a WordNet id,
    or its number if it has none. Both are null if the image shows nothing that has a label."""

    class_id: str | None = None
    class_name: str | None = None


class FeaturePrediction(msgspec.Struct, frozen=True):
    """/predict's answer to features: the best label and its number, both null if there is none, and
    each label's probability."""

    prediction: str | None
    class_index: int | None
    confidence: dict[str, float]


class PredictBody(msgspec.Struct, frozen=True):
    """/predict as JSON. `input`: a tensor as nested lists, or an object of them by input name,
    answered by every output's tensor. `features`: the numbers that a model with labels takes."""

    input: Any = None
    features: Annotated[list[float], msgspec.Meta(min_length=1)] | None = None


class ModelInfo(msgspec.Struct, frozen=True):
    """/api/model/info's answer: the default model, and its tensors' dtypes."""

    model_name: str
    version: str
    input_type: str
    output_type: str


class Task(msgspec.Struct, frozen=True):
    """/api/recognize_async's answer."""

    task_id: str


class TaskStarted(msgspec.Struct, frozen=True):
    """/predict's answer to `image`, and /start-task's. status_url: on this server."""

    message: str
    task_id: str
    status_url: str


class TaskBody(msgspec.Struct, frozen=True):
    """/start-task's body: an image (a data: URL is taken too), or a tensor as nested lists or an
    object of them by input name."""

    image_base64: str | None = None
    input: Any = None


class TaskLabel(msgspec.Struct, frozen=True):
    """One of the labels; `probability` has four digits."""

    label: str
    probability: str


class TaskResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result: five labels, best first; of `input`, the model's outputs as well."""

    status: str
    predictions: tuple[TaskLabel, ...] = ()
    outputs: dict[str, Any] | None = None


class TaskProgress(msgspec.Struct, frozen=True):
    """The step that is being done."""

    status: str


class TaskState(msgspec.Struct, frozen=True, omit_defaults=True):
    """/results/ID's answer."""

    task_id: str
    status: Status
    progress: TaskProgress | None = None
    result: TaskResult | None = None
    error: str | None = None


class TaskInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """/task-status/ID's answer: `result` once there is one, else `info`."""

    task_id: str
    status: Status
    info: TaskProgress | str | None = None
    result: TaskResult | None = None


def _three(answer: Answer) -> RecognizedThree:
    return RecognizedThree(
        tuple(Recognized(p.class_id, p.label, p.probability) for p in answer.predictions[:3])
    )


def _started(message: str, task: str, path: str) -> Response:
    return to_json(TaskStarted(message, task, f"{request.root_path}/{path}/{task}"), 202)


def _file_of(field: str) -> FileStorage:
    """Return the file in `field` of this request's form. Raises MissingFieldError."""
    if field not in request.files:
        raise MissingFieldError(f"No {field} uploaded")
    return request.files[field]


def _labels(predictions: tuple[Prediction, ...]) -> tuple[TaskLabel, ...]:
    return tuple(TaskLabel(p.label, f"{p.probability:.4f}") for p in predictions[:TASK_LABELS])


def _result(job: JobRecord) -> TaskResult:
    outcome = job.frames[0].outcome
    if outcome is not None and outcome.answer is not None:
        return TaskResult("Completed", _labels(outcome.answer.predictions))
    if outcome is not None and outcome.numbers is not None:
        rows = outcome.numbers.answers
        labels = _labels(rows[0].predictions) if rows else ()
        return TaskResult("Completed", labels, outcome.numbers.outputs)
    return TaskResult("Completed")


def _state(intake: JobIntake, job: JobRecord) -> TaskState:
    if job.state == "succeeded":
        return TaskState(job.id, "SUCCESS", result=_result(job))
    if job.fault is not None:
        return TaskState(job.id, "FAILURE", error=job.fault.message)
    stage = intake.jobs.stage(job.id, 0)
    if job.state == "pending" and not stage:
        return TaskState(job.id, "PENDING")
    return TaskState(job.id, "PROGRESS", TaskProgress(STAGES.get(stage or "", "Waiting...")))


_GROUP = Group("Tutorials", r"/(classify|predict|recent|start-task)$|/api/|/(results|task-status)/")
_route = partial(route, group=_GROUP)
_frame_route = partial(frame_route, group=_GROUP)
_state_route = partial(_route, "GET", rights=JOBS, errors=(404, 503))
_FILE = {MULTIPART: Files(("file",), FrameOptions)}


class TutorialRoutes:
    """Answers at once through `recognizing`, or later through `intake`."""

    def __init__(self, recognizing: RecognitionService, intake: JobIntake) -> None:
        self._recognizing = recognizing
        self._intake = intake

    def _answer(self, field: str, top_k: int, *, cached_s: int | None = None) -> Answer:
        """Return the `top_k` best labels of the file in `field`, from the cache if they are to be
        kept for `cached_s` seconds. Raises MissingFieldError without the file."""
        file = _file_of(field)
        query, options = self._recognizing.read_options(top_k)
        recognizer, options = self._recognizing.choose(query, options)
        return self._recognizing.frame(
            recognizer, file.stream.read(), options, request.environ, cached_s=cached_s
        )

    def _take(self, field: str) -> str:
        """Take the file in `field`; return the task's id. Raises MissingFieldError."""
        file = _file_of(field)
        query = read_frame_options(TASK_LABELS)
        return self._intake.images([(file.filename or field, file.stream.read())], query)

    @_frame_route(
        "/classify", body={MULTIPART: Files(("image",), FrameOptions)}, answer=Classification
    )
    def classify(self) -> Response:
        """Return the five best labels."""
        answer = self._answer("image", 5)
        labels = tuple(Classified(p.label, p.probability) for p in answer.predictions)
        return with_age(to_json(Classification(labels)), answer)

    @_frame_route("/api/recognize", body=_FILE, answer=RecognizedThree)
    def recognize(self) -> Response:
        """Return the three best labels."""
        answer = self._answer("file", 3)
        return with_age(to_json(_three(answer)), answer)

    @_frame_route("/api/recognize_cached", body=_FILE, answer=RecognizedThree)
    def recognize_cached(self) -> Response:
        """Return the three best labels, and keep them for 60 seconds."""
        answer = self._answer("file", 3, cached_s=CACHED_S)
        return with_age(to_json(_three(answer)), answer)

    @_route(
        "GET", "/recent", rights=FRAMES, query=Recent, answer=RecognizedThree, errors=(400, 404)
    )
    def recent(self) -> Response:
        """Return the kept answer that the request of this id got."""
        wanted = request.args.get("id", "")
        if not wanted:
            raise MissingFieldError("which answer? Send its X-Request-Id as `id`")
        recent = self._recognizing.caching.recent(own_id(current(), wanted))
        if recent is None:
            raise NotFoundError(f"no answer of the id {wanted[:64]} is kept (any more)")
        answer, age = recent
        response = to_json(_three(answer))
        response.headers["Age"] = str(int(age))
        return response

    @_frame_route(
        "/predict",
        body={MULTIPART: Files(("file", "image"), FrameOptions), JSON: PredictBody},
        example={"features": EXAMPLE_INPUT},
        answer=(Predicted, FeaturePrediction, dict[str, Any]),
        accepted=TaskStarted,
    )
    def predict(self) -> Response:
        """Return the best label of `file`, outputs for `input`, or labels for `features`; take
        `image` to be answered later."""
        if request.mimetype == JSON:
            return to_json(self._numbers(read_json(PredictBody)))
        if "image" in request.files and "file" not in request.files:
            return _started("Image accepted", self._take("image"), "results")
        if not request.files:
            refuse_text(request.get_data())
        answer = self._answer("file", 1)
        best = answer.best
        name = Predicted(best.id or str(best.class_id), best.label) if best else Predicted()
        return with_age(to_json(name), answer)

    def _numbers(self, body: PredictBody) -> dict[str, Any] | FeaturePrediction:
        """Return the outputs for `input`, or the labels for `features`."""
        if (body.input is None) == (body.features is None):
            raise MissingFieldError("send either `input` or `features`")
        query, options = self._recognizing.read_options(top_k=1000)
        refuse_product(query)
        value = body.features if body.input is None else body.input
        model, inputs = self._recognizing.read_numbers(value, query.model, query.version)
        outcome = self._recognizing.tensors(model, inputs, options)
        if body.features is None:
            return real_outputs(model, outcome)
        if not outcome.answers:
            raise InvalidFieldError(
                f"the model {model.manifest.name} has no labels: send `input`, not `features`"
            )
        answer = outcome.answers[0]
        by_number = sorted(answer.predictions, key=lambda prediction: prediction.class_id)
        return FeaturePrediction(
            answer.best.label if answer.best else None,
            answer.best.class_id if answer.best else None,
            {p.label: p.probability for p in by_number},
        )

    @_route("GET", "/api/model/info", rights=KNOWN, errors=(503,))
    def info(self) -> ModelInfo:
        """Return what the default model is."""
        model = self._recognizing.store.get()
        return ModelInfo(
            model.manifest.name,
            str(model.manifest.version),
            model.pool.inputs[0].dtype,
            model.pool.outputs[0].dtype,
        )

    @_frame_route("/api/recognize_async", body=_FILE, accepted=Task)
    def recognize_later(self) -> Response:
        """Take a frame to be answered later."""
        return to_json(Task(self._take("file")), 202)

    @_frame_route(
        "/start-task", body=TaskBody, example={"input": EXAMPLE_INPUT}, accepted=TaskStarted
    )
    def start(self) -> Response:
        """Take an image or numbers as JSON, to be answered later."""
        body = read_json(TaskBody)
        if (body.image_base64 is None) == (body.input is None):
            raise MissingFieldError("send either `image_base64` or `input`")
        query = read_frame_options(TASK_LABELS)
        if body.image_base64 is None:
            task = self._intake.numbers(body.input, query)
        else:
            data = decode_base64(body.image_base64, "image_base64")
            task = self._intake.images([("image", data)], query)
        return _started("Task started", task, "task-status")

    @_state_route("/results/<job>")
    def results(self, job: str) -> TaskState:
        """Return how a task goes."""
        return _state(self._intake, self._intake.get(job))

    @_state_route("/task-status/<job>")
    def status(self, job: str) -> TaskInfo:
        """Return how a task goes, with its result or what is being done."""
        state = _state(self._intake, self._intake.get(job))
        if state.result is not None:
            return TaskInfo(state.task_id, state.status, result=state.result)
        info = state.error or state.progress or TaskProgress("Waiting...")
        return TaskInfo(state.task_id, state.status, info)
