"""/v1/jobs: frames answered later. Taken with 202, and from then on never lost."""

import math
import time
import uuid
from collections.abc import Sequence
from typing import Annotated

import msgspec
from flask import Response, g, request
from msgspec import Meta

from server.api.job_answers import (
    Job,
    JobAccepted,
    JobPage,
    job_detail,
    job_summary,
    status_url,
)
from server.api.recognize.deadlines import time_left
from server.api.recognize.input import ImageUrl, JsonFrame, Numbers, read_form, read_frame
from server.api.recognize.options import (
    EXAMPLE_INPUT,
    IMAGE_TYPES,
    FrameOptions,
    frame_age_of,
    frame_route,
)
from server.api.recognize.routes import Fetch, uploaded
from server.api.recognize.service import RecognitionService
from server.config.settings import Settings
from server.errors import ForbiddenError, JobNotFoundError
from server.http.access.caller import Caller
from server.http.body.image import read_options
from server.http.errors import to_json
from server.http.routes import JOBS, JSON, MULTIPART, Files, Group, route
from server.jobs.service import Jobs
from server.recognition.frame import read_header
from server.store.jobs.records import JobOptions, JobRecord, NewFrame, NewJob, State


class JobForm(FrameOptions, frozen=True, kw_only=True):
    """What a job may ask, as form fields or in the query string. webhook: a URL that is told of
    the job's end, where the operator has allowed its host."""

    webhook: Annotated[str, Meta(max_length=2048)] | None = None


class JobJson(JsonFrame, frozen=True, kw_only=True):
    """A job of one frame as JSON."""

    webhook: Annotated[str, Meta(max_length=2048)] | None = None


class JobQuery(msgspec.Struct, frozen=True):
    """status: only jobs in it. limit: most jobs of a page. before: `next` of the page before."""

    status: State | None = None
    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    before: Annotated[int, Meta(ge=1, le=2**62)] | None = None


class JobIntake:
    """From a request to a job. `jobs` keeps it."""

    def __init__(
        self, jobs: Jobs, recognizing: RecognitionService, settings: Settings, fetch: Fetch
    ) -> None:
        self.jobs, self._recognizing = jobs, recognizing
        self._settings, self._fetch = settings, fetch
        self._limits = settings.image_limits

    def images(
        self, files: Sequence[tuple[str, bytes]], query: FrameOptions, webhook: str | None = None
    ) -> str:
        """Takes image files, as (name, content), for the model that `query` names.

        Returns the job's id. Raises what /v1/recognize raises before it decodes a frame, and what
        `Jobs.submit` does.
        """
        self._recognizing.recognizer(query.model, query.version)
        if len(files) == 1:  # of several, each has its own error
            read_header(files[0][1], self._limits)
        frames = tuple(NewFrame(name, "image", data) for name, data in files)
        return self._submit(frames, query, webhook)

    def numbers(self, value: object, query: FrameOptions, webhook: str | None = None) -> str:
        """Takes plain numbers: nested lists, or such by input name. As `images`."""
        model, _ = self._recognizing.read_numbers(value, query.model, query.version)
        query = msgspec.structs.replace(query, model=model.manifest.name)
        frame = NewFrame("input", "numbers", msgspec.json.encode(value))
        return self._submit((frame,), query, webhook)

    def fetched(self, image: ImageUrl) -> bytes:
        """The image at a URL."""
        return self._fetch(image.url, math.inf)

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
        ask = JobOptions(
            top_k=query.top_k or self._settings.default_top_k,
            model=query.model,
            version=query.version,
            threshold=query.threshold,
            camera=query.camera,
            part=query.part,
            captured_age=age if query.captured_at else None,
            expires=expires,
        )
        caller: Caller | None = g.get("caller")
        owner = caller.name if caller else None
        job = NewJob(uuid.uuid4().hex, g.request_id, ask, frames, owner, webhook)
        self.jobs.submit(job)
        g.log_fields = {"job": job.id, "frames": len(frames)}
        return job.id

    def get(self, job: str) -> JobRecord:
        """The job, where the caller may know of it. Raises JobNotFoundError."""
        found = self.jobs.get(job)
        if (owner := owner_wanted()) is not None and found.owner != owner:
            raise JobNotFoundError(f"there is no job {job}, or its results have expired")
        return found


def owner_wanted() -> str | None:
    """Whose jobs the caller may know of; None for everyone's, where doors are open or the caller
    is an administrator."""
    caller: Caller | None = g.get("caller")
    return None if caller is None or "admin" in caller.rights else caller.name


def _check_right() -> None:
    """Administrators see and cancel jobs; making one takes the right of any frame."""
    caller: Caller | None = g.get("caller")
    if caller is not None and "recognize" not in caller.rights:
        raise ForbiddenError(f"{caller.name} has no right to make jobs; it needs recognize")


_JOB = "/v1/jobs/<job>"
_GROUP = Group("Jobs")


class JobRoutes:
    """Jobs. max_batch: files of one job."""

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
                data = self._intake.fetched(frame) if isinstance(frame, ImageUrl) else frame
                job = self._intake.images([("image", data)], query, query.webhook)
        url = status_url(job, request.root_path)
        answer = to_json(JobAccepted(job, "pending", url), 202)
        answer.headers["Location"] = url
        return answer

    @route(
        "GET",
        "/v1/jobs",
        rights=JOBS,
        group=_GROUP,
        query=JobQuery,
        answer=JobPage,
        errors=(400, 503),
    )
    def page(self) -> Response:
        """Return the jobs of this caller, newest first."""
        query = read_options(JobQuery, request)
        jobs = self._jobs.page(owner_wanted(), query.status, query.before, query.limit)
        more = jobs[-1].number if len(jobs) == query.limit else None
        return to_json(JobPage(tuple(job_summary(job, request.root_path) for job in jobs), more))

    @route("GET", _JOB, rights=JOBS, group=_GROUP, answer=Job, errors=(404, 503))
    def get(self, job: str) -> Response:
        """Return how a job goes, and its results."""
        return to_json(job_detail(self._intake.get(job), self._jobs, request.root_path))

    @route("DELETE", _JOB, rights=JOBS, group=_GROUP, answer=Job, errors=(404, 409, 503))
    def cancel(self, job: str) -> Response:
        """Cancel a job."""
        self._intake.get(job)
        return to_json(job_detail(self._jobs.cancel(job), self._jobs, request.root_path))
