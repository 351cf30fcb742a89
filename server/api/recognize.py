"""POST /v1/recognize: one frame in, its labels out."""

import time
from typing import Annotated

import msgspec
from flask import Blueprint, Response, g
from msgspec import Meta

from server.api.body import read_image, read_options
from server.api.deadlines import frame_age, time_left
from server.api.responses import to_json
from server.config import Settings
from server.observe.metrics import Metrics
from server.recognition.recognizer import Answer, Options
from server.recognition.results import Prediction
from server.store.bundles import BundleStore

Name = Annotated[str, Meta(max_length=128)]


class Query(msgspec.Struct, frozen=True):
    """What a request may ask, beside the image."""

    model: Name | None = None
    version: Annotated[int, Meta(ge=1)] | None = None
    top_k: Annotated[int, Meta(ge=1, le=1000)] | None = None
    threshold: Annotated[float, Meta(ge=0, le=1)] = 0.0
    camera: Name | None = None
    part: Name | None = None
    captured_at: Annotated[str, Meta(max_length=64)] | None = None
    deadline_ms: Annotated[float, Meta(gt=0, le=600_000)] | None = None


class Recognition(msgspec.Struct, frozen=True):
    """The answer to one frame. timing_ms: milliseconds by stage, and in all. captured_age_ms: from
    `captured_at` to the frame's arrival; negative where the camera's clock is ahead."""

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


def _options(query: Query, settings: Settings, age: float) -> Options:
    deadline = (query.deadline_ms or settings.max_wait_ms) / 1000
    return Options(
        top_k=query.top_k or settings.default_top_k,
        threshold=query.threshold,
        deadline=time.monotonic() + time_left(deadline, age),
        camera=query.camera or "",
        latest_only=settings.latest_only,
    )


def _log_fields(answer: Answer) -> dict[str, object]:
    return {
        "model": f"{answer.model}/{answer.version}",
        "label": answer.best.label,
        "probability": round(answer.best.probability, 4),
    }


def blueprint(store: BundleStore, settings: Settings, metrics: Metrics) -> Blueprint:
    """The recognition routes over `store`."""
    routes = Blueprint("recognize", __name__, url_prefix="/v1")

    @routes.before_request
    def mark() -> None:
        g.is_frame = True

    @routes.post("/recognize")
    def recognize() -> Response:
        data = read_image()
        query = read_options(Query)
        recognizer = store.get(query.model, query.version)
        age = frame_age(query.captured_at, time.time(), settings.max_clock_skew_ms / 1000)
        answer = recognizer.recognize(data, _options(query, settings, age))
        metrics.answered(answer)
        g.log_fields = _log_fields(answer)
        return to_json(
            Recognition(
                request_id=g.request_id,
                model=answer.model,
                model_version=answer.version,
                camera=query.camera,
                part=query.part,
                predictions=answer.predictions,
                recognized=bool(answer.predictions),
                verdict=answer.verdict,
                cached=False,
                timing_ms={k: round(v * 1000, 3) for k, v in answer.timing.items()},
                captured_age_ms=round(age * 1000, 3) if query.captured_at else None,
            )
        )

    return routes
