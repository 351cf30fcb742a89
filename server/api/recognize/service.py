"""What every recognising route does alike: find the model, run it, count and log the answer."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from flask import g, request
from werkzeug.datastructures import RequestCacheControl
from werkzeug.http import parse_cache_control_header

from server.api.recognize.caching import Caching, own_id
from server.api.recognize.options import FrameOptions, frame_age_of, options
from server.config.settings import Settings
from server.errors import InvalidFieldError, LinesideError, MissingFieldError, NotReadyError
from server.http.body.image import read_options
from server.http.request_log import ASKED, report_refusal
from server.observe.metrics import Metrics
from server.recognition import tensor_model as tensors
from server.recognition import tensor_values as values
from server.recognition.answers import (
    Answer,
    FrameAnswered,
    FrameRefused,
    Listener,
    Options,
    RefusalListener,
)
from server.recognition.preprocessing import Tensor
from server.recognition.recognizer import Recognizer
from server.recognition.tensor_model import Model, ModelOutputs
from server.recognition.tensor_values import model_inputs, named_arrays
from server.store.bundles.repository import BundleRepository
from server.store.cache.answers import CachedAnswer
from server.system.background import BackgroundQueue, Task


class RecognitionService:
    """Runs the models of `store`. Reports each answer to `metrics`, to the request's log line and,
    by `afterwards`, to `listeners`; each frame without labels to `refusals`. `caching` stands in
    front: of every image file if the setting `cache` is on, else of those whose route keeps
    answers."""

    def __init__(
        self,
        store: BundleRepository,
        metrics: Metrics,
        settings: Settings,
        listeners: Sequence[Listener] = (),
        *,
        caching: Caching,
        afterwards: BackgroundQueue[Task],
        refusals: Sequence[RefusalListener] = (),
    ) -> None:
        self.store = store
        self.clock_skew = metrics.clock_skew
        self.caching = caching
        self._metrics = metrics
        self._settings = settings
        self._listeners = tuple(listeners)
        self._afterwards = afterwards
        self._refusals = tuple(refusals)

    def options(self, query: FrameOptions) -> tuple[Options, float]:
        """Return what `query` asks of a frame that has arrived now, and the frame's age in seconds.
        Raises what `frame_age_of` and `options` raise."""
        age = frame_age_of(query, self._settings, self.clock_skew)
        return options(query, self._settings, age), age

    def read_options(self, top_k: int | None = None) -> tuple[FrameOptions, Options]:
        """Read what this request's query string and form ask of its frame. top_k: in place of
        theirs, if given. Raises as `options`, and InvalidFieldError for a wrong value."""
        query = read_options(FrameOptions, request)
        if top_k is not None:
            query = msgspec.structs.replace(query, top_k=top_k)
        return query, self.options(query)[0]

    def recognizer(
        self, name: str | None, version: int | None, until: float | None = None
    ) -> Recognizer:
        """The model `name`, which takes images, waited for no longer than `until` (seconds of
        time.monotonic). Raises InvalidFieldError where it does not, and what `BundleRepository.get`
        raises."""
        return takes_images(self.store.get(name, version, until))

    def frame(
        self,
        recognizer: Recognizer,
        data: bytes,
        options: Options,
        *,
        cached_s: int | None = None,
    ) -> Answer:
        """One image file's answer, for Flask's request; from the cache always, or where answers are
        to be kept for `cached_s` seconds. Errors are those of `Recognizer.recognize`."""
        answer = self.answer(
            recognizer, data, options, g.request_id, request.environ, cached_s=cached_s
        )
        g.log_fields = log_fields(answer, options)
        return answer

    def answer(
        self,
        recognizer: Recognizer,
        data: bytes,
        options: Options,
        request_id: str,
        environ: dict[str, Any],
        *,
        cached_s: int | None = None,
    ) -> Answer:
        """As `frame`, for a request that Flask need not know."""
        environ[ASKED] = recognizer.manifest, options
        if cached_s is not None or self._settings.cache:
            control = parse_cache_control_header(
                environ.get("HTTP_CACHE_CONTROL"), None, RequestCacheControl
            )
            mine = own_id(environ, request_id)
            answer = self.caching.frame(recognizer, data, options, mine, control, cached_s)
        else:
            answer = recognizer.recognize(data, options, request_id)

        self._tell_later(answer, options, data, request_id)
        return answer

    def images(self, model: Model, files: Sequence[bytes], options: Options) -> ModelOutputs:
        """As `tensors.run_images`; InvalidFieldError for a model that takes no images."""
        request.environ[ASKED] = model.manifest, options
        outcome = tensors.run_images(takes_images(model), files, options, g.request_id)
        for answer, data in zip(outcome.answers, files, strict=True):
            self._tell_later(answer, options, data, g.request_id)
            g.log_fields = log_fields(answer, options)
        return outcome

    def tensors(self, model: Model, inputs: Sequence[Tensor], options: Options) -> ModelOutputs:
        """As `tensors.run_tensors`."""
        g.log_fields = {"model": f"{model.manifest.name}/{model.manifest.version}"}
        request.environ[ASKED] = model.manifest, options
        outcome = tensors.run_tensors(model, inputs, options)
        for answer in outcome.answers:
            self._tell_later(answer, options, None, g.request_id)
            g.log_fields = log_fields(answer, options)
        return outcome

    def read_numbers(
        self, value: object, name: str | None, version: int | None
    ) -> tuple[Model, list[Tensor]]:
        """Return the model that plain numbers are for (see `_for_numbers`), and its inputs. value:
        nested lists, or such by input name, which need the model's name.

        Raises MissingFieldError without that name, and what `_for_numbers` and `model_inputs`
        raise.
        """
        by_name = isinstance(value, Mapping)
        if by_name and name is None:
            raise MissingFieldError("tensors by name need the name of their `model`")
        array = np.empty(0) if by_name else values.to_array(value, "input")
        model = self._for_numbers(array, name, version)
        return model, model_inputs(model, named_arrays(value, model.pool.inputs))

    def _for_numbers(self, array: Tensor, name: str | None, version: int | None) -> Model:
        """The model that plain numbers are for: the one called `name`; without a name the default
        model if its only input takes this shape, else the first by name of `task: tensor` that
        does.

        Raises InvalidFieldError where none does, and what `BundleRepository.get` raises.
        """
        if name is not None:
            return self.store.get(name, version)
        loading: NotReadyError | None = None
        for candidate in dict.fromkeys((self.store.default, *self.store.tensor_models())):
            try:
                model = self.store.get(candidate)
            except NotReadyError as error:
                loading = error
                continue
            if _takes(model, array):
                return model
        if loading is not None:
            raise loading
        raise InvalidFieldError(
            f"no model takes numbers of the shape {list(np.shape(array))}; name one with `model`"
            " to learn what it takes"
        )

    @property
    def keeps_frames(self) -> bool:
        """Whether anyone is to be told of answered frames."""
        return bool(self._listeners)

    def observed(self, seen: FrameAnswered) -> None:
        """Tells of a frame that was answered outside of any request."""
        self._afterwards.submit(lambda: self._heard(seen))

    def _heard(self, seen: FrameAnswered) -> None:
        self._metrics.answered(seen.answer)
        for listener in self._listeners:
            listener(seen)

    def refused(self, error: LinesideError) -> None:
        """Counts and tells a frame that got no labels in a request that answers others."""
        self._metrics.refuse(error.code)
        report_refusal(self._refusals, error.status, error.code, error.message, error.cause)

    def unanswered(self, refusal: FrameRefused) -> None:
        """Counts and tells a frame that got no labels outside of any request."""
        self._metrics.refuse(refusal.code)
        for listener in self._refusals:
            listener(refusal)

    def _tell_later(
        self, answer: Answer, options: Options, data: bytes | None, request_id: str
    ) -> None:
        at = time.time()
        self._afterwards.submit(lambda: self._tell(at, answer, options, data, request_id))

    def _tell(
        self, at: float, answer: Answer, options: Options, data: bytes | None, request_id: str
    ) -> None:
        self._metrics.answered(answer)
        if self._listeners:
            seen = FrameAnswered(
                at, request_id, answer, options, data, isinstance(answer, CachedAnswer)
            )
            for listener in self._listeners:
                listener(seen)


def log_fields(answer: Answer, options: Options) -> dict[str, object]:
    """What a request's log line says of its answer, and of the frame where that is known."""
    fields: dict[str, object] = {
        "model": f"{answer.model}/{answer.version}",
        "label": answer.best.label,
        "probability": round(answer.best.probability, 4),
    }
    if options.camera:
        fields["camera"] = options.camera
    if options.part:
        fields["part"] = options.part
    return fields


def takes_images(model: Model) -> Recognizer:
    """`model`, where it takes images. Raises InvalidFieldError where it does not."""
    if isinstance(model, Recognizer):
        return model
    raise InvalidFieldError(
        f'the model {model.manifest.name} takes numbers, not an image: send {{"input": [...]}}'
    )


def _takes(model: Model, array: Tensor) -> bool:
    if len(model.pool.inputs) != 1:
        return False
    try:
        tensors.match_inputs(model, {model.pool.inputs[0].name: array})
    except InvalidFieldError:
        return False
    return True
