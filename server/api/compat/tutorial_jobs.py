"""The asynchronous routes of published tutorials, with their field names and answers: a frame is
taken with 202, and a client polls for its result."""

from functools import partial
from typing import Any, Literal

import msgspec
from flask import Response, request
from werkzeug.datastructures import FileStorage

from server.api.jobs import JobIntake
from server.api.recognize.options import (
    EXAMPLE_INPUT,
    FrameOptions,
    frame_route,
    read_frame_options,
)
from server.errors import MissingFieldError
from server.http.body.json_body import decode_base64, read_json
from server.http.routes import JOBS, MULTIPART, Files, Group, route, to_json
from server.recognition.answers import Prediction
from server.store.jobs.records import JobRecord

Status = Literal["PENDING", "PROGRESS", "SUCCESS", "FAILURE"]
STAGES = {
    "decode": "Decoding image...",
    "preprocess": "Preprocessing image...",
    "inference": "Running inference...",
}
LABELS = 5
TUTORIALS = Group(
    "Tutorials", r"/(classify|predict|recent|start-task)$|/api/|/(results|task-status)/"
)


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


def _started(message: str, task: str, path: str) -> Response:
    return to_json(TaskStarted(message, task, f"{request.root_path}/{path}/{task}"), 202)


def file_of(field: str) -> FileStorage:
    """Return the file in `field` of this request's form. Raises MissingFieldError."""
    if field not in request.files:
        raise MissingFieldError(f"No {field} uploaded")
    return request.files[field]


def _labels(predictions: tuple[Prediction, ...]) -> tuple[TaskLabel, ...]:
    return tuple(TaskLabel(p.label, f"{p.probability:.4f}") for p in predictions[:LABELS])


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


_start_route = partial(frame_route, group=TUTORIALS)
_state_route = partial(route, "GET", group=TUTORIALS, rights=JOBS, errors=(404, 503))


class TutorialJobRoutes:
    """The routes that answer later, but for /predict, which answers others at once."""

    def __init__(self, intake: JobIntake) -> None:
        self._intake = intake

    def _take(self, field: str) -> str:
        """Take the file in `field`; return the task's id. Raises MissingFieldError."""
        file = file_of(field)
        query = read_frame_options(LABELS)
        return self._intake.images([(file.filename or field, file.stream.read())], query)

    def take_image(self) -> Response:
        """Take the file `image`, as /predict does."""
        return _started("Image accepted", self._take("image"), "results")

    @_start_route(
        "/api/recognize_async", body={MULTIPART: Files(("file",), FrameOptions)}, accepted=Task
    )
    def recognize(self) -> Response:
        """Take a frame to be answered later."""
        return to_json(Task(self._take("file")), 202)

    @_start_route(
        "/start-task", body=TaskBody, example={"input": EXAMPLE_INPUT}, accepted=TaskStarted
    )
    def start(self) -> Response:
        """Take an image or numbers as JSON, to be answered later."""
        body = read_json(TaskBody)
        if (body.image_base64 is None) == (body.input is None):
            raise MissingFieldError("send either `image_base64` or `input`")
        query = read_frame_options(LABELS)
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
