"""POST /v1/recognize/batch: several frames in one request, each with its own result or error."""

import msgspec
from flask import Blueprint, Response, g, request

from server.api.recognize.input import read_form
from server.api.recognize.options import FrameOptions, frame_age_of, options
from server.api.recognize.routes import Recognition, recognition
from server.api.recognize.service import RecognitionService, mark_frame
from server.config.settings import Settings
from server.errors import InvalidFieldError, LinesideError, MissingFieldError
from server.http.errors import ErrorBody, to_json
from server.http.request_log import CAMERA
from server.values.wording import LISTED, shown_name


class BatchResult(msgspec.Struct, frozen=True):
    """One file's answer, or what went wrong with it; the other is null."""

    file: str
    result: Recognition | None = None
    error: ErrorBody | None = None


class Batch(msgspec.Struct, frozen=True):
    """The answers in the order of the files, those of one form field together."""

    request_id: str
    results: tuple[BatchResult, ...]


def uploaded(most: int) -> list[tuple[str, bytes]]:
    """The files of this request's form as (name, content), in the order of `Batch`."""
    files = [
        (file.filename or name, file.stream.read())
        for name, file in request.files.items(multi=True)
    ]
    if not files:
        texts = ", ".join(map(shown_name, list(request.form)[:LISTED]))
        has = f"; it has the text fields {texts}" if texts else ""
        raise MissingFieldError(
            f"the form has no file{has}: send one or more, as multipart/form-data"
        )
    if len(files) > most:
        raise InvalidFieldError(f"{len(files)} files were sent, and at most {most} are taken")
    return files


def blueprint(recognizing: RecognitionService, settings: Settings) -> Blueprint:
    """The route of several frames at once. They are answered one after the other, so that a large
    batch takes its turns with single frames; all share one deadline."""
    routes = Blueprint("batch", __name__, url_prefix="/v1/recognize")
    routes.before_request(mark_frame)

    @routes.post("/batch")
    def batch() -> Response:
        files = uploaded(settings.max_batch)
        query = read_form(FrameOptions)
        request.environ[CAMERA] = query.camera
        age = frame_age_of(query, settings, recognizing.clock_skew)
        asked = options(query, settings, age)
        recognizer = recognizing.recognizer(query.model, query.version, asked.deadline)

        def one(name: str, data: bytes) -> BatchResult:
            try:
                answer = recognizing.frame(recognizer, data, asked)
            except LinesideError as error:
                recognizing.refused(error)
                return BatchResult(name, error=ErrorBody(error.code, error.message, g.request_id))
            return BatchResult(name, recognition(answer, query, age, g.request_id))

        return to_json(Batch(g.request_id, tuple(one(name, data) for name, data in files)))

    return routes
