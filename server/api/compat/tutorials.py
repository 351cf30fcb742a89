"""The routes of published tutorials on serving image classifiers with Flask, with their field names
and answers, so that a client written for any of them works unchanged.

All take what `FrameOptions` describes in the query string besides.
"""

from functools import partial
from typing import Annotated, Any

import msgspec
from flask import Response, request

from server.api.compat.tutorial_jobs import (
    TUTORIALS,
    TaskStarted,
    TutorialJobRoutes,
    file_of,
)
from server.api.recognize.caching import own_id, with_age
from server.api.recognize.options import EXAMPLE_INPUT, FrameOptions, frame_route
from server.api.recognize.service import RecognitionService
from server.errors import InvalidFieldError, MissingFieldError, NotFoundError
from server.http.body.image import refuse_text
from server.http.body.json_body import read_json
from server.http.routes import FRAMES, JSON, KNOWN, MULTIPART, Files, route, to_json
from server.recognition.answers import Answer
from server.recognition.tensor_values import real_outputs

# Seconds for which the tutorial's route keeps an answer, whatever `cache_s` is.
CACHED_S = 60


class Classified(msgspec.Struct, frozen=True, rename={"label": "class"}):
    """One label of /classify's answer."""

    label: str
    probability: float


class Classification(msgspec.Struct, frozen=True):
    """/classify's answer: five labels, best first."""

    predictions: tuple[Classified, ...]


class Recognized(msgspec.Struct, frozen=True):
    """One label of /api/recognize's answer; `class_id` is its number, from 0 on."""

    class_id: int
    label: str
    probability: float


class RecognizedThree(msgspec.Struct, frozen=True):
    """/api/recognize's answer: three labels, best first."""

    predictions: tuple[Recognized, ...]


class Recent(msgspec.Struct, frozen=True):
    """The query of /recent. id: the X-Request-Id of the request that was answered."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class Predicted(msgspec.Struct, frozen=True):
    """/predict's answer to an image; `class_id` is the label's outside name, such as a WordNet id,
    or its number if it has none."""

    class_id: str
    class_name: str


class FeaturePrediction(msgspec.Struct, frozen=True):
    """/predict's answer to features: the best label, its number, each label's probability."""

    prediction: str
    class_index: int
    confidence: dict[str, float]


class PredictBody(msgspec.Struct, frozen=True):
    """/predict as JSON. `input`: a tensor as nested lists, or an object of them by input name,
    answered by every output's tensor. `features`: the numbers that a model with labels takes."""

    input: Any = None
    features: Annotated[list[float], msgspec.Meta(min_length=1)] | None = None


class ModelInfo(msgspec.Struct, frozen=True):
    """/api/model/info's answer: the default model, and its tensors' dtypes."""

    model_name: str
    version: str
    input_type: str
    output_type: str


_route = partial(route, group=TUTORIALS)
_frame_route = partial(frame_route, group=TUTORIALS)


def _three(answer: Answer) -> RecognizedThree:
    return RecognizedThree(
        tuple(Recognized(p.class_id, p.label, p.probability) for p in answer.predictions[:3])
    )


class TutorialRoutes:
    """The routes that answer at once. later: takes what /predict answers later."""

    def __init__(self, recognizing: RecognitionService, later: TutorialJobRoutes) -> None:
        self._recognizing = recognizing
        self._later = later

    def _answer(self, field: str, top_k: int, *, cached_s: int | None = None) -> Answer:
        """Return the `top_k` best labels of the file in `field`, from the cache if they are to be
        kept for `cached_s` seconds. Raises MissingFieldError without the file."""
        file = file_of(field)
        query, options = self._recognizing.read_options(top_k)
        recognizer = self._recognizing.recognizer(query.model, query.version, options.deadline)
        return self._recognizing.frame(recognizer, file.stream.read(), options, cached_s=cached_s)

    @_frame_route(
        "/classify", body={MULTIPART: Files(("image",), FrameOptions)}, answer=Classification
    )
    def classify(self) -> Response:
        """Return the five best labels."""
        answer = self._answer("image", 5)
        labels = tuple(Classified(p.label, p.probability) for p in answer.predictions)
        return with_age(to_json(Classification(labels)), answer)

    @_frame_route(
        "/api/recognize", body={MULTIPART: Files(("file",), FrameOptions)}, answer=RecognizedThree
    )
    def recognize(self) -> Response:
        """Return the three best labels."""
        answer = self._answer("file", 3)
        return with_age(to_json(_three(answer)), answer)

    @_frame_route(
        "/api/recognize_cached",
        body={MULTIPART: Files(("file",), FrameOptions)},
        answer=RecognizedThree,
    )
    def recognize_cached(self) -> Response:
        """Return the three best labels, and keep them for 60 seconds."""
        answer = self._answer("file", 3, cached_s=CACHED_S)
        return with_age(to_json(_three(answer)), answer)

    @_route(
        "GET", "/recent", rights=FRAMES, query=Recent, answer=RecognizedThree, errors=(400, 404)
    )
    def recent(self) -> Response:
        """Return the kept answer that the request of this id got."""
        wanted = request.args.get("id", "")
        if not wanted:
            raise MissingFieldError("which answer? Send its X-Request-Id as `id`")
        recent = self._recognizing.caching.recent(own_id(request.environ, wanted))
        if recent is None:
            raise NotFoundError(f"no answer of the id {wanted[:64]} is kept (any more)")
        answer, age = recent
        response = to_json(_three(answer))
        response.headers["Age"] = str(int(age))
        return response

    @_frame_route(
        "/predict",
        body={MULTIPART: Files(("file", "image"), FrameOptions), JSON: PredictBody},
        example={"features": EXAMPLE_INPUT},
        answer=(Predicted, FeaturePrediction, dict[str, Any]),
        accepted=TaskStarted,
    )
    def predict(self) -> Response:
        """Return the best label of `file`, outputs for `input`, or labels for `features`; take
        `image` to be answered later."""
        if request.mimetype == JSON:
            return to_json(self._numbers(read_json(PredictBody)))
        if "image" in request.files and "file" not in request.files:
            return self._later.take_image()
        if not request.files:
            refuse_text(request.get_data())
        answer = self._answer("file", 1)
        best = answer.best
        return with_age(to_json(Predicted(best.id or str(best.class_id), best.label)), answer)

    def _numbers(self, body: PredictBody) -> dict[str, Any] | FeaturePrediction:
        """Return the outputs for `input`, or the labels for `features`."""
        if (body.input is None) == (body.features is None):
            raise MissingFieldError("send either `input` or `features`")
        query, options = self._recognizing.read_options(top_k=1000)
        value = body.features if body.input is None else body.input
        model, inputs = self._recognizing.read_numbers(value, query.model, query.version)
        outcome = self._recognizing.tensors(model, inputs, options)
        if body.features is None:
            return real_outputs(model, outcome)
        if not outcome.answers:
            raise InvalidFieldError(
                f"the model {model.manifest.name} has no labels: send `input`, not `features`"
            )
        answer = outcome.answers[0]
        by_number = sorted(answer.predictions, key=lambda prediction: prediction.class_id)
        return FeaturePrediction(
            answer.best.label, answer.best.class_id, {p.label: p.probability for p in by_number}
        )

    @_route("GET", "/api/model/info", rights=KNOWN, errors=(503,))
    def info(self) -> ModelInfo:
        """Return what the default model is."""
        model = self._recognizing.store.get()
        return ModelInfo(
            model.manifest.name,
            str(model.manifest.version),
            model.pool.inputs[0].dtype,
            model.pool.outputs[0].dtype,
        )
