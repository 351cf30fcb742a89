"""Jobs as the API tells them."""

from datetime import UTC, datetime

import msgspec

from server.api.recognize.options import FrameOptions
from server.api.recognize.routes import Recognition, TensorRecognition, recognition
from server.http.errors import ErrorBody
from server.jobs.service import Jobs
from server.store.jobs.records import FrameOutcome, FrameRecord, JobError, JobRecord, State, Webhook


class JobAccepted(msgspec.Struct, frozen=True):
    """A job that was taken: it outlives whatever happens to the server. status_url: where to ask
    how it goes, on this host, as the header Location tells too."""

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
    """frames: of the job; done: of them, those with a result or an error."""

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


def status_url(job: str, prefix: str = "") -> str:
    """Where to ask how a job goes, on this server; prefix: under which a proxy serves it."""
    return f"{prefix}/v1/jobs/{job}"


def _instant(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _error(fault: JobError | None, request_id: str) -> ErrorBody | None:
    return ErrorBody(fault.code, fault.message, request_id) if fault else None


def job_summary(job: JobRecord, prefix: str = "") -> JobSummary:
    """`job` without its frames. prefix: as in `status_url`."""
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
    """`job` with its frames, and with the stages of those at work where `jobs` knows them. prefix:
    as in `status_url`."""
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
    """An image's result, as /v1/recognize would have answered it; None where it has none."""
    if outcome.answer is None:
        return None
    ask = job.ask
    captured = None if ask.captured_age is None else "given"
    query = FrameOptions(camera=ask.camera, part=ask.part, captured_at=captured)
    return recognition(outcome.answer, query, ask.captured_age or 0.0, job.request_id)


def _outputs(job: JobRecord, outcome: FrameOutcome) -> TensorRecognition | None:
    """The same of plain numbers."""
    if outcome.numbers is None:
        return None
    return TensorRecognition(
        request_id=job.request_id,
        model=outcome.numbers.model,
        model_version=outcome.numbers.version,
        outputs=outcome.numbers.outputs,
        predictions=tuple(row.predictions for row in outcome.numbers.answers) or None,
    )
