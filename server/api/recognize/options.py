"""The options of a frame, and how a route that takes frames is declared."""

import time
from functools import lru_cache, partial
from typing import Annotated

import msgspec
from flask import request
from msgspec import Meta

from server.api.recognize.deadlines import check_clock, likely_cause, parse_instant, time_left
from server.config.settings import Settings
from server.http.body.image import query_values, read_options, refuse_unknown, to_options
from server.http.routes import FRAMES, route
from server.observe.cameras import ClockSkew
from server.recognition.answers import Options
from server.values.validation import NUMBER_TOO
from server.values.wording import looks_secret

Name = Annotated[str, Meta(max_length=128, extra=NUMBER_TOO)]
Version = Annotated[int, Meta(ge=1)]
TopK = Annotated[int, Meta(ge=1, le=1000)]
Threshold = Annotated[float, Meta(ge=0, le=1)]

IMAGE_TYPES = ("image/jpeg", "image/png", "image/bmp", "image/webp", "image/tiff")
# An input of the bundle models/iris, for examples of bodies.
EXAMPLE_INPUT = (5.1, 3.5, 1.4, 0.2)


class FrameOptions(msgspec.Struct, frozen=True, kw_only=True):
    """In the query string, as form fields, or as keys of a JSON body.

    model, version: which bundle answers; without, the active product's, or the
    default one. product: of the settings, in place of model. top_k: most labels in the answer.
    threshold: least probability of a label in the answer. camera, part, batch: names that come back
    in the answer; frames of cameras take turns. captured_at: Unix seconds, or RFC 3339 with a zone.
    deadline_ms: milliseconds from `captured_at`, else from arrival, in which an answer is wanted.
    heatmap: an anomaly model's answer has its map as a picture too.
    """

    model: Name | None = None
    version: Version | None = None
    top_k: TopK | None = None
    threshold: Threshold = 0.0
    camera: Name | None = None
    part: Name | None = None
    product: Name | None = None
    batch: Name | None = None
    captured_at: Annotated[str, Meta(max_length=64, extra=NUMBER_TOO)] | None = None
    deadline_ms: Annotated[float, Meta(gt=0, le=600_000)] | None = None
    heatmap: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError, which msgspec makes a ValidationError, for a key or token in the wrong
        place, since names are counted, kept and shown."""
        for field in ("camera", "part", "product", "batch"):
            if looks_secret(getattr(self, field) or ""):
                raise ValueError(f"`{field}` looks like a key: send that as a header, never a name")


class RecognizeOptions(FrameOptions, frozen=True, kw_only=True):
    """Those of one frame that is answered at once. render: the answer is the frame as a JPEG, with
    boxes, heat map and verdict drawn on it; without, the header Accept decides."""

    render: bool | None = None


# Declares a handler that takes frames, or numbers, whose options are in the query string too.
frame_route = partial(
    route,
    "POST",
    rights=FRAMES,
    frame=True,
    query=FrameOptions,
    errors=(400, 404, 413, 415, 422, 503),
)


@lru_cache(maxsize=256)
def parse_frame_options(text: str) -> FrameOptions:
    """Return the options in a WSGI environment's QUERY_STRING, from a cache, since a camera sends
    the same with all its frames. Raises InvalidFieldError naming a value that can't be used, or a
    name that is not known."""
    values = query_values(text)
    refuse_unknown(values, FrameOptions.__struct_fields__)
    return to_options(FrameOptions, values)


def read_frame_options(top_k: int | None = None) -> FrameOptions:
    """Return the options in this request's query string and form. top_k: in place of theirs. Raises
    InvalidFieldError for a wrong value."""
    query = read_options(FrameOptions, request)
    return query if top_k is None else msgspec.structs.replace(query, top_k=top_k)


def frame_age_of(query: FrameOptions, settings: Settings, skew: ClockSkew | None = None) -> float:
    """Return the seconds since `captured_at`, and report the camera's clock to `skew`; 0 without
    `captured_at`, negative if the camera's clock is ahead.

    Raises InvalidFieldError for a moment that can't be read; with a deadline, ClockAheadError for
    one too far ahead.
    """
    captured_at = query.captured_at
    if captured_at is None:
        return 0.0
    age, tolerated = time.time() - parse_instant(captured_at), settings.max_clock_skew_ms / 1000
    if skew is not None:
        skew.note(query.camera or "", -age, tolerated, lambda: likely_cause(age, captured_at))
    if query.deadline_ms is not None:
        check_clock(age, tolerated, captured_at)
    return age


def options(query: FrameOptions, settings: Settings, age: float = 0.0) -> Options:
    """Return the options for a frame of `age` seconds that has arrived now.

    Raises StaleFrameError if its deadline has passed already.
    """
    deadline = (query.deadline_ms or settings.max_wait_ms) / 1000
    return Options(
        top_k=query.top_k or settings.default_top_k,
        threshold=query.threshold,
        deadline=time.monotonic() + time_left(deadline, age, query.captured_at),
        camera=query.camera or "",
        latest_only=settings.latest_only,
        part=query.part or "",
        from_capture=query.captured_at is not None,
        batch=query.batch or "",
    )
