"""POST /v1/recognize, one frame in, its labels out; and /v1/recognize/batch, several frames in one
request, each with its own result or error."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar, cast, get_type_hints

import msgspec
from flask import Response, request

from server.api.recognize.input import (
    ImageUrl,
    JsonFrame,
    Numbers,
    read_form,
    read_frame,
)
from server.api.recognize.options import (
    EXAMPLE_INPUT,
    IMAGE_TYPES,
    FrameOptions,
    RecognizeOptions,
    frame_route,
)
from server.api.recognize.pictures import JPEG, Pictures, wants_picture
from server.api.recognize.service import RecognitionService, refuse_product, with_age
from server.errors import InvalidFieldError, LinesideError, MissingFieldError
from server.http.errors import ErrorBody
from server.http.routes import FORM, JSON, MULTIPART, Files, to_json
from server.http.wsgi import current
from server.recognition.answers import Answer, ImageHealth, Options, Prediction, Vote
from server.recognition.tasks.task import all_tasks, find_task
from server.recognition.tensor_values import real_outputs
from server.store.cache.answers import CachedAnswer
from server.values.wording import LISTED_NAMES_MAX, shown_name

# Returns the image at a URL, by a deadline in seconds of time.monotonic().
Fetch = Callable[[str, float], bytes]

S = TypeVar("S", bound=type[msgspec.Struct])


def with_task_fields(answer: S) -> S:
    """Return the struct type `answer` with the fields of every task's `answer_type`, at its end."""
    own = [task.answer_type for task in all_tasks() if task.answer_type]
    if not own:
        return answer
    fields = [
        (name, kind, msgspec.UNSET)
        for each in own
        for name, kind in get_type_hints(each, include_extras=True).items()
    ]
    namespace = {"__doc__": answer.__doc__}
    kind = msgspec.defstruct(
        answer.__name__, fields, bases=(answer,), namespace=namespace, frozen=True, kw_only=True
    )
    return cast(S, kind)


@with_task_fields
class RegionRecognition(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one of several regions. name: as the bundle's recipe has it. box: left, top,
    width and height in pixels of the frame as sent, upright."""

    name: str
    box: tuple[int, int, int, int]
    predictions: tuple[Prediction, ...]
    recognized: bool
    verdict: str | None
    verdict_reason: str | msgspec.UnsetType = msgspec.UNSET


@with_task_fields
class Recognition(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one frame. verdict_reason: the rule of the bundle's policy that decided; absent
    without one. vote: of the frame's part or camera; absent without one. timing_ms: milliseconds by
    stage, and in all. captured_age_ms: from `captured_at` to the frame's arrival; negative if the
    camera's clock is ahead. warnings: what may be wrong with the image, in sentences; absent if
    nothing is. health: of the picture, by what is usual for its camera; absent if image_health is
    off. regions: the answer to each region of a model that has several, in the recipe's order; the
    answer itself is that of the region with the worst verdict, the first of equals. Absent from
    other models' answers."""

    request_id: str
    model: str
    model_version: int
    camera: str | None
    part: str | None
    product: str | None
    batch: str | None
    predictions: tuple[Prediction, ...]
    recognized: bool
    verdict: str | None
    verdict_reason: str | msgspec.UnsetType = msgspec.UNSET
    vote: Vote | msgspec.UnsetType = msgspec.UNSET
    cached: bool
    timing_ms: dict[str, float]
    captured_age_ms: float | None = None
    warnings: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    regions: tuple[RegionRecognition, ...] | msgspec.UnsetType = msgspec.UNSET
    health: ImageHealth | msgspec.UnsetType = msgspec.UNSET


class TensorRecognition(msgspec.Struct, frozen=True):
    """The answer to plain numbers. outputs: by name, nested as the tensor is shaped, a row for
    each of the input; not-a-number and infinity are null. predictions: for a model with labels,
    those of each row."""

    request_id: str
    model: str
    model_version: int
    outputs: dict[str, Any]
    predictions: tuple[tuple[Prediction, ...], ...] | None


class BatchResult(msgspec.Struct, frozen=True):
    """One file's answer, or what went wrong with it; the other is null."""

    file: str
    result: Recognition | None = None
    error: ErrorBody | None = None


class Batch(msgspec.Struct, frozen=True):
    """The answers in the order of the files, those of one form field together."""

    request_id: str
    results: tuple[BatchResult, ...]


def recognition(
    answer: Answer, query: FrameOptions, product: str, age: float, request_id: str
) -> Recognition:
    """Return `answer` as the API answers it. product: that judged, or ''. age: the frame's on
    arrival, in seconds."""
    regions = (
        tuple(
            RegionRecognition(name=each.name, box=each.box, **_common_fields(part, query))
            for each, part in zip(answer.regions, answer.parts(), strict=True)
        )
        if answer.regions
        else msgspec.UNSET
    )
    return Recognition(
        request_id=request_id,
        model=answer.model,
        model_version=answer.version,
        camera=query.camera,
        part=query.part,
        product=product or None,
        batch=query.batch,
        vote=answer.vote or msgspec.UNSET,
        cached=isinstance(answer, CachedAnswer),
        timing_ms={k: round(v * 1000, 3) for k, v in answer.timing.items()},
        captured_age_ms=round(age * 1000, 3) if query.captured_at else None,
        health=answer.health or msgspec.UNSET,
        warnings=tuple(each.message for each in answer.warnings) or msgspec.UNSET,
        regions=regions,
        **_common_fields(answer, query),
    )


def _common_fields(answer: Answer, query: FrameOptions) -> dict[str, Any]:
    """Return the fields that the answers to a frame and to one of its regions have."""
    own = find_task(answer.task).answer_fields(answer)
    return {
        "predictions": answer.predictions,
        "recognized": bool(answer.predictions),
        "verdict": answer.verdict,
        "verdict_reason": answer.verdict_reason or msgspec.UNSET,
        **{
            name: value
            for name, value in own.items()
            if query.heatmap or not name.startswith("heatmap")
        },
    }


def uploaded(max_files: int) -> list[tuple[str, bytes]]:
    """Return the files of this request's form as (name, content), in the order of `Batch`. Raises
    MissingFieldError without a file, InvalidFieldError for more than `max_files`."""
    files = [
        (file.filename or name, file.stream.read())
        for name, file in request.files.items(multi=True)
    ]
    if not files:
        texts = ", ".join(map(shown_name, list(request.form)[:LISTED_NAMES_MAX]))
        has = f"; it has the text fields {texts}" if texts else ""
        raise MissingFieldError(
            f"the form has no file{has}: send one or more, as multipart/form-data"
        )
    if len(files) > max_files:
        raise InvalidFieldError(f"{len(files)} files were sent, and at most {max_files} are taken")
    return files


class RecognizeRoutes:
    """Frames that are answered at once. max_batch: files of one batch. fetch: returns the image at
    a URL."""

    def __init__(
        self, recognizing: RecognitionService, max_batch: int, fetch: Fetch, pictures: Pictures
    ) -> None:
        self._recognizing = recognizing
        self._pictures = pictures
        self._max_batch = max_batch
        self._fetch = fetch

    @frame_route(
        "/v1/recognize",
        query=RecognizeOptions,
        body={
            MULTIPART: Files(("file", "image"), JsonFrame),
            **dict.fromkeys(IMAGE_TYPES, bytes),
            JSON: JsonFrame,
            FORM: JsonFrame,
        },
        example={"input": EXAMPLE_INPUT, "model": "iris", "parameters": {"top_k": 1}},
        answer={JSON: (Recognition, TensorRecognition), JPEG: bytes},
    )
    def recognize(self) -> Response:
        """Return the labels of one frame, also as a picture, or a model's outputs for numbers."""
        frame, query = read_frame(JsonFrame)
        drawn = wants_picture(query.render, request.headers.get("Accept", ""))
        current().camera = query.camera
        options, age = self._recognizing.options(query)
        if isinstance(frame, Numbers):
            if query.render:
                raise InvalidFieldError("`render` draws on an image, and `input` has numbers")
            return self._numbers(frame.value, query, options)
        recognizer, options = self._recognizing.choose(query, options)
        request_id = current().request_id
        with self._pictures.place() if drawn else nullcontext():
            data = (
                self._fetch(frame.url, options.deadline) if isinstance(frame, ImageUrl) else frame
            )
            answer = self._recognizing.frame(recognizer, data, options, request.environ)
            if drawn:
                response = self._pictures.respond(recognizer, data, answer, options, request_id)
            else:
                response = to_json(recognition(answer, query, options.product, age, request_id))
        return with_age(response, answer)

    def _numbers(self, value: object, query: FrameOptions, options: Options) -> Response:
        refuse_product(query)
        model, inputs = self._recognizing.read_numbers(value, query.model, query.version)
        outcome = self._recognizing.tensors(model, inputs, options)
        return to_json(
            TensorRecognition(
                request_id=current().request_id,
                model=model.manifest.name,
                model_version=model.manifest.version,
                outputs=real_outputs(model, outcome),
                predictions=tuple(answer.predictions for answer in outcome.answers)
                if model.labels
                else None,
            )
        )

    @frame_route(
        "/v1/recognize/batch",
        body={MULTIPART: Files(("file",), FrameOptions, several=True)},
        errors=(400, 404, 413, 503),
    )
    def batch(self) -> Batch:
        """Return the labels of several frames, or the error of each.

        They are answered one after the other, so that a large batch takes its turns with single
        frames. All share one deadline.
        """
        context = current()
        files = uploaded(self._max_batch)
        query = read_form(FrameOptions)
        context.camera = query.camera
        options, age = self._recognizing.options(query)
        recognizer, options = self._recognizing.choose(query, options)

        def one(name: str, data: bytes) -> BatchResult:
            try:
                answer = self._recognizing.frame(recognizer, data, options, request.environ)
            except LinesideError as error:
                self._recognizing.report_error(error)
                body = ErrorBody(error.code, error.message, context.request_id)
                return BatchResult(name, error=body)
            result = recognition(answer, query, options.product, age, context.request_id)
            return BatchResult(name, result)

        return Batch(context.request_id, tuple(one(name, data) for name, data in files))
