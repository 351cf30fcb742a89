"""/v1/jobs: frames that are answered later. Once taken with 202, none is lost."""

import math
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from flask import Response, request
from msgspec import Meta

from server.api.recognize.deadlines import time_left
from server.api.recognize.input import FrameBody, ImageUrl, Numbers, read_form, read_frame
from server.api.recognize.options import (
    EXAMPLE_INPUT,
    IMAGE_TYPES,
    FrameOptions,
    frame_age_of,
    frame_route,
)
from server.api.recognize.routes import Fetch, Recognition, TensorRecognition, recognition, uploaded
from server.api.recognize.service import RecognitionService, refuse_product
from server.config.settings import Settings
from server.errors import ForbiddenError, JobNotFoundError
from server.http.body.image import read_options
from server.http.errors import ErrorBody
from server.http.routes import JOBS, JSON, MULTIPART, Files, Group, route, to_json
from server.http.wsgi import current
from server.jobs.service import Jobs
from server.recognition.answers import Options
from server.recognition.frame import read_header
from server.store.jobs.records import (
    FrameOutcome,
    FrameRecord,
    JobError,
    JobOptions,
    JobRecord,
    NewFrame,
    NewJob,
    State,
    Webhook,
)


class JobForm(FrameOptions, frozen=True, kw_only=True):
    """Options of a job, as form fields or in the query string. webhook: a URL that the job's end is
    reported to, if the operator has allowed its host."""

    webhook: Annotated[str, Meta(max_length=2048)] | None = None


class JobJson(FrameBody, frozen=True, kw_only=True):
    """A job of one frame as JSON."""

    webhook: Annotated[str, Meta(max_length=2048)] | None = None


class JobQuery(msgspec.Struct, frozen=True):
    """Filters of the list of jobs. status: only jobs in it. limit: most jobs of a page. before:
    `next` of the page before."""

    status: State | None = None
    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    before: Annotated[int, Meta(ge=1, le=2**62)] | None = None


class JobAccepted(msgspec.Struct, frozen=True):
    """A job that was taken: it outlives whatever happens to the server. status_url: the path that
    answers how it goes, which the header Location has too."""

    job_id: str
    status: State
    status_url: str


class JobFrame(msgspec.Struct, frozen=True):
    """One frame of a job. stage: `decode`, `preprocess` or `inference` while a worker has it.
    workers_lost: workers that died with it. result (of an image), outputs (of plain numbers) or
    error: once there is one."""

    file: str
    status: State
    stage: str | None
    workers_lost: int
    result: Recognition | None = None
    outputs: TensorRecognition | None = None
    error: ErrorBody | None = None


class JobProgress(msgspec.Struct, frozen=True):
    """The progress of a job. frames: of the job; done: of them, those with a result or an error."""

    frames: int
    done: int


class JobSummary(msgspec.Struct, frozen=True):
    """A job without its frames. Times are RFC 3339 in UTC. error: of the first frame that failed,
    or of the whole job."""

    job_id: str
    status: State
    status_url: str
    request_id: str
    created_at: str
    started_at: str | None
    finished_at: str | None
    progress: JobProgress
    error: ErrorBody | None
    webhook: Webhook | None


class Job(JobSummary, frozen=True):
    """A job with its frames, in the order in which they were sent."""

    frames: tuple[JobFrame, ...]


class JobPage(msgspec.Struct, frozen=True):
    """Jobs, newest first. next: `before` of the page after this one, null on the last."""

    jobs: tuple[JobSummary, ...]
    next: int | None


class JobIntake:
    """Makes jobs of requests; `jobs` keeps them."""

    def __init__(
        self, jobs: Jobs, recognizing: RecognitionService, settings: Settings, fetch: Fetch
    ) -> None:
        self.jobs = jobs
        self._recognizing = recognizing
        self._settings = settings
        self.fetch = fetch

    def images(
        self, files: Sequence[tuple[str, bytes]], query: FrameOptions, webhook: str | None = None
    ) -> str:
        """Take image files, as (name, content), for the model that `query` names.

        Return the job's id. Raises what /v1/recognize raises before it decodes a frame, and what
        `Jobs.submit` does.
        """
        recognizer, options = self._recognizing.choose(query, Options())
        if options.product:
            model = recognizer.manifest.name
            query = msgspec.structs.replace(query, product=options.product, model=model)
        if len(files) == 1:  # of several, each has its own error
            read_header(files[0][1], self._settings.image_limits)
        frames = tuple(NewFrame(name, "image", data) for name, data in files)
        return self._submit(frames, query, webhook)

    def numbers(self, value: object, query: FrameOptions, webhook: str | None = None) -> str:
        """Take plain numbers: nested lists, or such by input name. As `images`."""
        refuse_product(query)
        model, _ = self._recognizing.read_numbers(value, query.model, query.version)
        query = msgspec.structs.replace(query, model=model.manifest.name)
        frame = NewFrame("input", "numbers", msgspec.json.encode(value))
        return self._submit((frame,), query, webhook)

    def _submit(
        self, frames: tuple[NewFrame, ...], query: FrameOptions, webhook: str | None
    ) -> str:
        _check_right()
        if webhook is not None:
            self.jobs.check_webhook(webhook)
        age = frame_age_of(query, self._settings, self._recognizing.clock_skew)
        expires = None
        if query.deadline_ms is not None:
            expires = time.time() + time_left(query.deadline_ms / 1000, age, query.captured_at)
        context = current()
        ask = JobOptions(
            top_k=query.top_k or self._settings.default_top_k,
            model=query.model,
            version=query.version,
            threshold=query.threshold,
            camera=query.camera,
            part=query.part,
            captured_age=age if query.captured_at else None,
            expires=expires,
            heatmap=query.heatmap,
            product=query.product,
            batch=query.batch,
            trace=context.trace,
        )
        owner = context.caller.name if context.caller else None
        job = NewJob(uuid.uuid4().hex, context.request_id, ask, frames, owner, webhook)
        self.jobs.submit(job)
        context.log_fields = {"job": job.id, "frames": len(frames)}
        return job.id

    def get(self, job: str) -> JobRecord:
        """Return a job that the caller may see. Raises JobNotFoundError."""
        record = self.jobs.get(job)
        if (owner := visible_owner()) is not None and record.owner != owner:
            raise JobNotFoundError(f"there is no job {job}, or its results have expired")
        return record


def visible_owner() -> str | None:
    """Return the owner of the jobs that the caller may see; None if it may see everyone's, since no
    key is asked for or the caller is an administrator."""
    caller = current().caller
    return None if caller is None or "admin" in caller.rights else caller.name


def _check_right() -> None:
    """Raise ForbiddenError without the right of frames: administrators see and cancel jobs, and
    make none."""
    caller = current().caller
    if caller is not None and "recognize" not in caller.rights:
        raise ForbiddenError(f"{caller.name} has no right to make jobs; it needs recognize")


def status_url(job: str, prefix: str = "") -> str:
    """Return the path that answers how a job goes. prefix: under which a proxy serves it."""
    return f"{prefix}/v1/jobs/{job}"


def _instant(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _error(fault: JobError | None, request_id: str) -> ErrorBody | None:
    return ErrorBody(fault.code, fault.message, request_id) if fault else None


def job_summary(job: JobRecord, prefix: str = "") -> JobSummary:
    """Return `job` without its frames. prefix: as in `status_url`."""
    return JobSummary(
        job_id=job.id,
        status=job.state,
        status_url=status_url(job.id, prefix),
        request_id=job.request_id,
        created_at=_instant(job.created) or "",
        started_at=_instant(job.started),
        finished_at=_instant(job.finished),
        progress=JobProgress(len(job.frames), sum(f.state != "pending" for f in job.frames)),
        error=_error(job.fault, job.request_id),
        webhook=job.webhook,
    )


def job_detail(job: JobRecord, jobs: Jobs | None = None, prefix: str = "") -> Job:
    """Return `job` with its frames, and with the stages of those at work if `jobs` is given.
    prefix: as in `status_url`."""
    frames = tuple(_frame(job, frame, jobs) for frame in job.frames)
    return Job(**msgspec.structs.asdict(job_summary(job, prefix)), frames=frames)


def _frame(job: JobRecord, frame: FrameRecord, jobs: Jobs | None) -> JobFrame:
    stage = jobs.stage(job.id, frame.number) if jobs and frame.state == "pending" else None
    outcome = frame.outcome
    return JobFrame(
        file=frame.name,
        status="running" if stage else frame.state,
        stage=stage,
        workers_lost=frame.losses,
        result=_result(job, outcome) if outcome else None,
        outputs=_outputs(job, outcome) if outcome else None,
        error=_error(outcome.fault if outcome else None, job.request_id),
    )


def _result(job: JobRecord, outcome: FrameOutcome) -> Recognition | None:
    """Return an image's result, as /v1/recognize would have answered it; None if it has none."""
    if outcome.answer is None:
        return None
    ask = job.ask
    captured = None if ask.captured_age is None else "given"
    query = FrameOptions(
        camera=ask.camera,
        part=ask.part,
        batch=ask.batch,
        captured_at=captured,
        heatmap=ask.heatmap,
    )
    age = ask.captured_age or 0.0
    return recognition(outcome.answer, query, ask.product or "", age, job.request_id)


def _outputs(job: JobRecord, outcome: FrameOutcome) -> TensorRecognition | None:
    """Return the result of plain numbers; None if it has none."""
    if outcome.numbers is None:
        return None
    return TensorRecognition(
        request_id=job.request_id,
        model=outcome.numbers.model,
        model_version=outcome.numbers.version,
        outputs=outcome.numbers.outputs,
        predictions=tuple(row.predictions for row in outcome.numbers.answers) or None,
    )


_JOB = "/v1/jobs/<job>"
_GROUP = Group("Jobs")


class JobRoutes:
    """Takes and answers jobs. max_batch: files of one job."""

    def __init__(self, intake: JobIntake, max_batch: int) -> None:
        self._intake = intake
        self._jobs = intake.jobs
        self._max_batch = max_batch

    @frame_route(
        "/v1/jobs",
        rights=JOBS,
        group=_GROUP,
        query=JobForm,
        body={
            MULTIPART: Files(("file",), JobForm, several=True),
            **dict.fromkeys(IMAGE_TYPES, bytes),
            JSON: JobJson,
        },
        example={"input": EXAMPLE_INPUT, "model": "iris"},
        accepted=JobAccepted,
    )
    def submit(self) -> Response:
        """Take frames to be answered later; once this is answered, they will be."""
        if request.mimetype != JSON and request.files:
            files = uploaded(self._max_batch)
            query = read_form(JobJson)
            job = self._intake.images(files, query, query.webhook)
        else:
            frame, query = read_frame(JobJson)
            if isinstance(frame, Numbers):
                job = self._intake.numbers(frame.value, query, query.webhook)
            else:
                if isinstance(frame, ImageUrl):
                    frame = self._intake.fetch(frame.url, math.inf)
                job = self._intake.images([("image", frame)], query, query.webhook)
        url = status_url(job, request.root_path)
        answer = to_json(JobAccepted(job, "pending", url), 202)
        answer.headers["Location"] = url
        return answer

    @route("GET", "/v1/jobs", rights=JOBS, group=_GROUP, query=JobQuery, errors=(400, 503))
    def page(self) -> JobPage:
        """Return the jobs of this caller, newest first."""
        query = read_options(JobQuery, request)
        jobs = self._jobs.page(visible_owner(), query.status, query.before, query.limit)
        more = jobs[-1].number if len(jobs) == query.limit else None
        return JobPage(tuple(job_summary(job, request.root_path) for job in jobs), more)

    @route("GET", _JOB, rights=JOBS, group=_GROUP, errors=(404, 503))
    def get(self, job: str) -> Job:
        """Return how a job goes, and its results."""
        return job_detail(self._intake.get(job), self._jobs, request.root_path)

    @route("DELETE", _JOB, rights=JOBS, group=_GROUP, errors=(404, 409, 503))
    def cancel(self, job: str) -> Job:
        """Cancel a job."""
        self._intake.get(job)
        return job_detail(self._jobs.cancel(job), self._jobs, request.root_path)
