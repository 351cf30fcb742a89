"""The operations of Lineside's own API."""

from server.api.audit import AuditPage, AuditQuery
from server.api.health import Health
from server.api.job_answers import Job, JobAccepted, JobPage
from server.api.jobs import JobForm, JobJson, JobQuery
from server.api.journal import JournalPage, JournalQuery
from server.api.models import Model, Models, SampleFrames, VersionBody
from server.api.openapi.operation import (
    BINARY,
    FORM,
    FRAME_ERRORS,
    IMAGE_TYPES,
    JSON,
    MULTIPART,
    NUMBER_ERRORS,
    TAR,
    Files,
    Operation,
    getting,
    posting,
)
from server.api.recognize.batch import Batch
from server.api.recognize.json_frame import JsonFrame
from server.api.recognize.routes import Recognition, TensorRecognition
from server.api.samples import LabelBody, SampleAnswer, SamplePage, SampleQuery
from server.api.upload import UploadResult

TAG = "Lineside"


def own_operations() -> list[Operation]:
    """All of them."""
    return [*_recognition(), *_models(), *_observing(), *_jobs(), *_samples()]


def _recognition() -> list[Operation]:
    raw = dict.fromkeys(IMAGE_TYPES, bytes)
    one = {MULTIPART: Files(("file", "image"), JsonFrame), **raw, JSON: JsonFrame, FORM: JsonFrame}
    return [
        posting(
            "/v1/recognize",
            TAG,
            "One frame in, its labels out",
            (Recognition, TensorRecognition),
            one,
            foreign=False,
        ),
        posting(
            "/v1/recognize/batch",
            TAG,
            "Several frames, each with its own result or error",
            (Batch,),
            {MULTIPART: Files(("file",), several=True)},
            NUMBER_ERRORS,
            foreign=False,
        ),
    ]


def _change(action: str, summary: str) -> Operation:
    bodies = {} if action == "rollback" else {JSON: VersionBody}
    path = f"/v1/models/{{name}}/{action}"
    return Operation(
        "post",
        path,
        TAG,
        summary,
        {JSON: (Model,)},
        query=action != "rollback",
        bodies=bodies,
        errors=(400, 403, 404, 409, 413, 422, 503),
        asks=VersionBody,
    )


def _models() -> list[Operation]:
    return [
        getting("/v1/models", TAG, "All models", Models),
        getting("/v1/models/{name}", TAG, "One model", Model, 404),
        Operation(
            "post",
            "/v1/models/{name}/upload",
            TAG,
            "A version as a tar archive of its files, kept beside the others and not loaded",
            {JSON: (UploadResult,)},
            bodies={TAR: bytes, BINARY: bytes},
            errors=(400, 403, 409, 413, 415, 422, 503),
        ),
        _change("load", "The newest version on disk, or the one named, serves"),
        _change("activate", "This version serves, now and after a restart"),
        _change("rollback", "The version that served before serves again"),
        getting(
            "/v1/models/{name}/samples", TAG, "A model's sample frames", SampleFrames, 404, 503
        ),
        Operation(
            "get",
            "/v1/models/{name}/samples/{file}",
            TAG,
            "One sample frame",
            dict.fromkeys(IMAGE_TYPES, (bytes,)),
            errors=(404, 503),
        ),
    ]


def _observing() -> list[Operation]:
    return [
        Operation(
            "get",
            "/v1/journal",
            TAG,
            "What was answered, filtered: a page, or one file of all",
            {JSON: (JournalPage,), "text/csv": (str,), "application/x-ndjson": (str,)},
            errors=(400, 403, 404, 503),
            query=True,
            asks=JournalQuery,
        ),
        Operation(
            "get",
            "/v1/audit",
            TAG,
            "Who changed which model, when, from where, what before and after",
            {JSON: (AuditPage,)},
            errors=(400, 403, 503),
            query=True,
            asks=AuditQuery,
        ),
        getting("/livez", TAG, "Whether the server answers", Health),
        getting("/readyz", TAG, "Whether the default model answers", Health, 503),
        Operation("get", "/metrics", TAG, "Prometheus's text exposition", {"text/plain": (str,)}),
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
        getting(one, tag, "How a job goes, and its results", Job, 404, 503),
        Operation("delete", one, tag, "Cancels a job", {JSON: (Job,)}, errors=(404, 409, 503)),
    ]


def _samples() -> list[Operation]:
    one = "/v1/samples/{sample}"
    image = dict.fromkeys((*IMAGE_TYPES, "image/x-portable-anymap"), (bytes,))
    return [
        Operation(
            "get",
            "/v1/samples",
            TAG,
            "Frames that were kept for a person to look at",
            {JSON: (SamplePage,)},
            errors=(400, 503),
            query=True,
            asks=SampleQuery,
        ),
        getting(one, TAG, "One of them, with its answer", SampleAnswer, 404, 503),
        Operation("get", f"{one}/image", TAG, "Its image as received", image, errors=(404, 503)),
        Operation(
            "post",
            f"{one}/label",
            TAG,
            "Say what it shows",
            {JSON: (SampleAnswer,)},
            bodies={JSON: LabelBody},
            errors=(400, 403, 404, 413, 503),
        ),
        Operation(
            "delete", one, TAG, "Remove it", {JSON: (SampleAnswer,)}, errors=(400, 403, 404, 503)
        ),
    ]
