"""POST /v1/recognize: one frame in, its labels out."""

from collections.abc import Callable
from typing import Any

import msgspec
from flask import Blueprint, Response, g, request

from server.api.recognize.caching import with_age
from server.api.recognize.input import ImageUrl, Numbers, read_frame
from server.api.recognize.json_frame import JsonFrame
from server.api.recognize.numbers import run_numbers
from server.api.recognize.options import FrameOptions, frame_age_of, options
from server.api.recognize.service import RecognitionService, mark_frame
from server.config.settings import Settings
from server.http.errors import to_json
from server.http.request_log import CAMERA
from server.recognition.answers import Answer, Options
from server.recognition.results import Prediction
from server.recognition.tensor_values import real_outputs
from server.store.cache.answers import CachedAnswer

# What gets the image at a URL, by a deadline in seconds of time.monotonic().
Fetch = Callable[[str, float], bytes]
# In a WSGI environment, the error of a frame that was worked on before Flask saw the request.
FAILED = "lineside.failed"


class Recognition(msgspec.Struct, frozen=True):
    """The answer to one frame. timing_ms: milliseconds by stage, and in all. captured_age_ms: from
    `captured_at` to the frame's arrival; negative where the camera's clock is ahead. warnings: what
    may be wrong with the image, in sentences; absent if nothing is."""

    request_id: str
    model: str
    model_version: int
    camera: str | None
    part: str | None
    predictions: tuple[Prediction, ...]
    recognized: bool
    verdict: str | None
    cached: bool
    timing_ms: dict[str, float]
    captured_age_ms: float | None = None
    warnings: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET


class TensorRecognition(msgspec.Struct, frozen=True):
    """The answer to plain numbers. outputs: by name, nested as the tensor is shaped, a row for
    each of the input; not-a-number and infinity are null. predictions: for a model with labels,
    those of each row."""

    request_id: str
    model: str
    model_version: int
    outputs: dict[str, Any]
    predictions: tuple[tuple[Prediction, ...], ...] | None


def recognition(answer: Answer, query: FrameOptions, age: float, request_id: str) -> Recognition:
    """`answer` as the API tells it; `age` is the frame's on arrival, in seconds."""
    return Recognition(
        request_id=request_id,
        model=answer.model,
        model_version=answer.version,
        camera=query.camera,
        part=query.part,
        predictions=answer.predictions,
        recognized=bool(answer.predictions),
        verdict=answer.verdict,
        cached=isinstance(answer, CachedAnswer),
        timing_ms={k: round(v * 1000, 3) for k, v in answer.timing.items()},
        captured_age_ms=round(age * 1000, 3) if query.captured_at else None,
        warnings=tuple(each.message for each in answer.warnings) or msgspec.UNSET,
    )


def blueprint(recognizing: RecognitionService, settings: Settings, fetch: Fetch) -> Blueprint:
    """The route of single frames; `fetch` gets the image at a URL."""
    routes = Blueprint("recognize", __name__, url_prefix="/v1")
    routes.before_request(mark_frame)

    @routes.post("/recognize")
    def recognize() -> Response:
        failed = request.environ.pop(FAILED, None)
        if failed is not None:
            try:
                raise failed
            finally:
                del failed  # else error, traceback and this frame would keep each other
        frame, query = read_frame(JsonFrame)
        request.environ[CAMERA] = query.camera
        age = frame_age_of(query, settings, recognizing.clock_skew)
        asked = options(query, settings, age)
        if isinstance(frame, Numbers):
            return numbers(frame.value, query, asked)
        recognizer = recognizing.recognizer(query.model, query.version, asked.deadline)
        data = fetch(frame.url, asked.deadline) if isinstance(frame, ImageUrl) else frame
        answer = recognizing.frame(recognizer, data, asked)
        return with_age(to_json(recognition(answer, query, age, g.request_id)), answer)

    def numbers(value: object, query: FrameOptions, asked: Options) -> Response:
        model, outcome = run_numbers(recognizing, value, query, asked)
        return to_json(
            TensorRecognition(
                request_id=g.request_id,
                model=model.manifest.name,
                model_version=model.manifest.version,
                outputs=real_outputs(model, outcome),
                predictions=tuple(answer.predictions for answer in outcome.answers)
                if model.labels
                else None,
            )
        )

    return routes
