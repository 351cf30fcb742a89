"""The asynchronous routes of published tutorials, with their field names and answers: a frame is
taken with 202, and its result asked for until it is there."""

from typing import Any, Literal

import msgspec
from flask import Blueprint, Response, request

from server.api.jobs import JobIntake
from server.api.recognize.options import FrameOptions
from server.api.recognize.service import mark_frame
from server.errors import MissingFieldError
from server.http.body.image import read_options
from server.http.body.json_body import decode_base64, read_json
from server.http.errors import to_json
from server.recognition.results import Prediction
from server.store.jobs.records import JobRecord

Status = Literal["PENDING", "PROGRESS", "SUCCESS", "FAILURE"]
STAGES = {
    "decode": "Decoding image...",
    "preprocess": "Preprocessing image...",
    "inference": "Running inference...",
}
LABELS = 5


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
    """What came out: five labels, best first; of `input`, the model's outputs as well."""

    status: str
    predictions: tuple[TaskLabel, ...] = ()
    outputs: dict[str, Any] | None = None


class TaskProgress(msgspec.Struct, frozen=True):
    """What is being done."""

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


def _started(message: str, task: str, route: str) -> Response:
    return to_json(TaskStarted(message, task, f"{request.root_path}/{route}/{task}"), 202)


def _labels(predictions: tuple[Prediction, ...]) -> tuple[TaskLabel, ...]:
    return tuple(TaskLabel(p.label, f"{p.probability:.4f}") for p in predictions[:LABELS])


def _result(job: JobRecord) -> TaskResult:
    outcome = job.frames[0].outcome
    if outcome is None:
        return TaskResult("Completed")
    if outcome.answer is not None:
        return TaskResult("Completed", _labels(outcome.answer.predictions))
    if outcome.numbers is not None:
        rows = outcome.numbers.answers
        labels = _labels(rows[0].predictions) if rows else ()
        return TaskResult("Completed", labels, outcome.numbers.outputs)
    return TaskResult("Completed")


def _state(taking: JobIntake, job: JobRecord) -> TaskState:
    if job.state == "succeeded":
        return TaskState(job.id, "SUCCESS", result=_result(job))
    if job.fault is not None:
        return TaskState(job.id, "FAILURE", error=job.fault.message)
    stage = taking.jobs.stage(job.id, 0)
    if job.state == "pending" and not stage:
        return TaskState(job.id, "PENDING")
    return TaskState(job.id, "PROGRESS", TaskProgress(STAGES.get(stage or "", "Waiting...")))


class TutorialJobs:
    """What the routes do; `image` is what /predict does with a form's `image`."""

    def __init__(self, taking: JobIntake) -> None:
        self.taking = taking

    def file(self, field: str) -> str:
        """Takes the file in `field`; returns the task's id. Raises MissingFieldError."""
        if field not in request.files:
            what = "image" if field == "image" else "file"
            raise MissingFieldError(f"No {what} uploaded")
        file = request.files[field]
        query = msgspec.structs.replace(read_options(FrameOptions, request), top_k=LABELS)
        return self.taking.images([(file.filename or field, file.stream.read())], query)

    def image(self) -> Response:
        """Takes the file `image`."""
        task = self.file("image")
        return to_json(
            TaskStarted("Image accepted", task, f"{request.root_path}/results/{task}"), 202
        )

    def body(self) -> str:
        """Takes a JSON body; returns the task's id."""
        body = read_json(TaskBody)
        if (body.image_base64 is None) == (body.input is None):
            raise MissingFieldError("send either `image_base64` or `input`")
        query = msgspec.structs.replace(read_options(FrameOptions, request), top_k=LABELS)
        if body.image_base64 is None:
            return self.taking.numbers(body.input, query)
        data = decode_base64(body.image_base64, "image_base64")
        return self.taking.images([("image", data)], query)


def blueprint(tutorials: TutorialJobs) -> Blueprint:
    """The tutorials' asynchronous routes, but for /predict, which has others too."""
    routes = Blueprint("tutorial_jobs", __name__)
    routes.before_request(mark_frame)
    taking = tutorials.taking

    @routes.post("/api/recognize_async")
    def recognize() -> Response:
        return to_json(Task(tutorials.file("file")), 202)

    @routes.post("/start-task")
    def start() -> Response:
        task = tutorials.body()
        return to_json(
            TaskStarted("Task started", task, f"{request.root_path}/task-status/{task}"), 202
        )

    @routes.get("/results/<job>")
    def results(job: str) -> Response:
        return to_json(_state(taking, taking.get(job)))

    @routes.get("/task-status/<job>")
    def status(job: str) -> Response:
        state = _state(taking, taking.get(job))
        if state.result is not None:
            return to_json(TaskInfo(state.task_id, state.status, result=state.result))
        info = state.error or state.progress or TaskProgress("Waiting...")
        return to_json(TaskInfo(state.task_id, state.status, info))

    return routes
