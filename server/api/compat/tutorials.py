"""The routes of published tutorials on serving image classifiers with Flask, with their field names
and answers, so that a client written for any of them works unchanged.

All take what `FrameOptions` describes in the query string besides.
"""

from typing import Annotated, Any

import msgspec
from flask import Blueprint, Response, request

from server.api.compat.tutorial_jobs import TutorialJobs
from server.api.recognize.caching import own_id, with_age
from server.api.recognize.input import JSON
from server.api.recognize.numbers import run_numbers
from server.api.recognize.options import FrameOptions, frame_age_of, options
from server.api.recognize.service import RecognitionService, mark_frame
from server.config.settings import Settings
from server.errors import InvalidFieldError, MissingFieldError, NotFoundError
from server.http.body.image import read_options, refuse_text
from server.http.body.json_body import read_json
from server.http.errors import to_json
from server.recognition.answers import Answer
from server.recognition.results import Prediction
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
    """What /recent is asked. id: the X-Request-Id of the request that was answered."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class Predicted(msgspec.Struct, frozen=True):
    """/predict's answer to an image; `class_id` is the label's outside name, such as a WordNet id,
    or its number where it has none."""

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


def _outside_id(prediction: Prediction) -> str:
    return prediction.id or str(prediction.class_id)


class Tutorials:
    """What the routes do, once their request is read."""

    def __init__(self, recognizing: RecognitionService, settings: Settings) -> None:
        self._recognizing, self._settings = recognizing, settings

    def answer(self, field: str, top_k: int, *, cached_s: int | None = None) -> Answer:
        """The `top_k` best labels of the file in `field`, from the cache where they are to be kept
        for `cached_s` seconds. Raises MissingFieldError without the file."""
        if field not in request.files:
            what = "image" if field == "image" else "file"
            raise MissingFieldError(f"No {what} uploaded")
        query = msgspec.structs.replace(read_options(FrameOptions, request), top_k=top_k)
        asked = options(
            query, self._settings, frame_age_of(query, self._settings, self._recognizing.clock_skew)
        )
        recognizer = self._recognizing.recognizer(query.model, query.version, asked.deadline)
        data = request.files[field].stream.read()
        return self._recognizing.frame(recognizer, data, asked, cached_s=cached_s)

    def recent(self) -> Response:
        """The answer that the request named by `id` got, while it is kept."""
        wanted = request.args.get("id", "")
        if not wanted:
            raise MissingFieldError("which answer? Send its X-Request-Id as `id`")
        found = self._recognizing.caching.recent(own_id(request.environ, wanted))
        if found is None:
            raise NotFoundError(f"no answer of the id {wanted[:64]} is kept (any more)")
        answer, age = found
        response = to_json(_three(answer))
        response.headers["Age"] = str(int(age))
        return response

    def numbers(self, body: PredictBody) -> dict[str, Any] | FeaturePrediction:
        """The outputs for `input`, or the labels for `features`."""
        if (body.input is None) == (body.features is None):
            raise MissingFieldError("send either `input` or `features`")
        query = msgspec.structs.replace(read_options(FrameOptions, request), top_k=1000)
        asked = options(
            query, self._settings, frame_age_of(query, self._settings, self._recognizing.clock_skew)
        )
        value = body.features if body.input is None else body.input
        model, outcome = run_numbers(self._recognizing, value, query, asked)
        if body.features is None:
            return real_outputs(model, outcome)
        if not outcome.answers:
            raise InvalidFieldError(
                f"the model {model.manifest.name} has no labels: send `input`, not `features`"
            )
        answer = outcome.answers[0]
        return FeaturePrediction(
            answer.best.label,
            answer.best.class_id,
            {p.label: p.probability for p in sorted(answer.predictions, key=_by_number)},
        )


def _three(answer: Answer) -> RecognizedThree:
    return RecognizedThree(
        tuple(Recognized(p.class_id, p.label, p.probability) for p in answer.predictions[:3])
    )


def _by_number(prediction: Prediction) -> int:
    return prediction.class_id


def blueprint(
    recognizing: RecognitionService, settings: Settings, jobs: TutorialJobs | None = None
) -> Blueprint:
    """The tutorials' routes; `jobs` takes what /predict answers later."""
    routes = Blueprint("tutorials", __name__)
    routes.before_request(mark_frame)
    tutorials = Tutorials(recognizing, settings)

    @routes.post("/classify")
    def classify() -> Response:
        answer = tutorials.answer("image", 5)
        labels = tuple(Classified(p.label, p.probability) for p in answer.predictions)
        return with_age(to_json(Classification(labels)), answer)

    @routes.post("/api/recognize")
    def recognize() -> Response:
        answer = tutorials.answer("file", 3)
        return with_age(to_json(_three(answer)), answer)

    @routes.post("/api/recognize_cached")
    def recognize_cached() -> Response:
        answer = tutorials.answer("file", 3, cached_s=CACHED_S)
        return with_age(to_json(_three(answer)), answer)

    @routes.get("/recent")
    def recent() -> Response:
        return tutorials.recent()

    @routes.post("/predict")
    def predict() -> Response:
        if request.mimetype == JSON:
            return to_json(tutorials.numbers(read_json(PredictBody)))
        if jobs is not None and "image" in request.files and "file" not in request.files:
            return jobs.image()
        if not request.files:
            refuse_text(request.get_data())
        answer = tutorials.answer("file", 1)
        return with_age(to_json(Predicted(_outside_id(answer.best), answer.best.label)), answer)

    @routes.get("/api/model/info")
    def info() -> Response:
        model = recognizing.store.get()
        return to_json(
            ModelInfo(
                model.manifest.name,
                str(model.manifest.version),
                model.pool.inputs[0].dtype,
                model.pool.outputs[0].dtype,
            )
        )

    return routes
