"""For every recognizing route: finds the model, runs it, counts, logs and reports the answer."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from flask import Response
from werkzeug.datastructures import RequestCacheControl
from werkzeug.http import parse_cache_control_header

from server.api.recognize.caching import Caching, own_id
from server.api.recognize.options import (
    FrameOptions,
    frame_age_of,
    options,
    read_frame_options,
)
from server.config.cameras import CameraTable
from server.config.products import ProductTable
from server.config.settings import Settings
from server.errors import InvalidFieldError, LinesideError, MissingFieldError, NotReadyError
from server.http.request_log import completion, report_refusal
from server.http.wsgi import RequestContext, context_of, current
from server.line.products import Products
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
    Vote,
)
from server.recognition.preprocessing import Tensor
from server.recognition.recognizer import Recognizer
from server.recognition.tasks.task import Reader
from server.recognition.tensor_model import Model, ModelOutputs
from server.recognition.tensor_values import model_inputs, named_arrays
from server.store.bundles.repository import BundleRepository
from server.store.cache.answers import CachedAnswer
from server.system.background import BackgroundQueue, Task


class RecognitionService:
    """Runs the models of `store`. Reports each answer to `metrics`, to the request's log line and,
    by `afterwards`, to `listeners`; each frame without labels to `refusals`. The listeners
    `before_answer` are called before a frame is answered. `judge_health` returns an answer with the
    health of its picture, by its frame's options. `count_run` counts runs of models without labels,
    as `Inferences.ran`. `caching` stands in
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
        products: Products,
        before_answer: Sequence[Listener] = (),
        judge_health: Callable[[Answer, Options], Answer] | None = None,
        count_vote: Callable[[FrameAnswered], Vote | None] | None = None,
        count_run: Callable[[str, int, Mapping[str, float], float], None] = lambda *_: None,
    ) -> None:
        self.store = store
        self.clock_skew = metrics.clock_skew
        self.caching = caching
        self._metrics = metrics
        self._settings = settings
        self._listeners = tuple(listeners)
        self._afterwards = afterwards
        self._refusals = tuple(refusals)
        self._products = products
        self._count_vote = count_vote
        self._count_run = count_run
        self._before_answer = tuple(before_answer)
        self._judge_health = judge_health

    def options(self, query: FrameOptions) -> tuple[Options, float]:
        """Return the options of a frame that has arrived now, and the frame's age in seconds.
        Raises what `frame_age_of` and `options` raise."""
        age = frame_age_of(query, self._settings, self.clock_skew)
        return options(query, self._settings, age), age

    def read_options(self, top_k: int | None = None) -> tuple[FrameOptions, Options]:
        """Return this request's options, as sent and for a frame that has arrived now. Raises what
        `read_frame_options` and `options` raise."""
        query = read_frame_options(top_k)
        return query, self.options(query)[0]

    def product_of(self, query: FrameOptions) -> ProductTable | None:
        """Return the product of a frame. Raises what `Products.of_frame` does."""
        if query.product is None and not self._settings.product:
            return None
        return self._products.of_frame(query.product, query.model)

    def choose(self, query: FrameOptions, options: Options) -> tuple[Recognizer, Options]:
        """Return the model for a frame, and its options with its product. Raises what
        `Products.of_frame`, `Products.reader` and `recognizer` raise."""
        return self._choose(self.product_of(query), query.model, query.version, options)

    def _choose(
        self,
        product: ProductTable | None,
        model: str | None,
        version: int | None,
        options: Options,
    ) -> tuple[Recognizer, Options]:
        if product is not None:
            model, options = product.model, msgspec.structs.replace(options, product=product.name)
        recognizer = self.recognizer(model, version, options.deadline)
        self._reader(recognizer, options)
        return recognizer, options

    def _reader(self, recognizer: Recognizer, options: Options) -> Reader[Any]:
        """Return the reader by the policy in force. Raises what `Products.reader` does."""
        product = options.product
        return self._products.reader(product, recognizer) if product else recognizer.reader

    def pulled(
        self, camera: CameraTable, data: bytes, options: Options, request_id: str
    ) -> tuple[Answer, Options]:
        """Return the answer to a frame of a camera that the server reads, and the options with its
        product: that of `options`, else the active one if the camera has no model. Raises what
        `choose` and `Recognizer.recognize` raise."""
        model = camera.model or None
        product = self._products.of_frame(options.product or None, model)
        recognizer, options = self._choose(product, model, None, options)
        reader = self._reader(recognizer, options)
        return recognizer.recognize(data, options, request_id, reader), options

    def recognizer(
        self, name: str | None, version: int | None, until: float | None = None
    ) -> Recognizer:
        """Return the model `name`, loaded by `until` (seconds of time.monotonic). Raises
        InvalidFieldError if it takes no images, and what `BundleRepository.get` raises."""
        return _image_model(self.store.get(name, version, until))

    def frame(
        self,
        recognizer: Recognizer,
        data: bytes,
        options: Options,
        environ: dict[str, Any],
        *,
        cached_s: int | None = None,
    ) -> Answer:
        """Return the answer to an image file of the request with the WSGI environment `environ`.
        cached_s: seconds for which the answer is cached although the setting `cache` is off. Raises
        what `Recognizer.recognize` raises."""
        context = self._begin(context_of(environ), recognizer, options)
        # One reader, so that key and answer go by one policy, whatever is put in force meanwhile.
        reader = self._reader(recognizer, options)
        if cached_s is not None or self._settings.cache:
            control = parse_cache_control_header(
                environ.get("HTTP_CACHE_CONTROL"), None, RequestCacheControl
            )
            answer_id = own_id(context, context.request_id)
            answer = self.caching.frame(
                recognizer, reader, data, options, answer_id, control, cached_s
            )
        else:
            answer = recognizer.recognize(data, options, context.request_id, reader)
        return self._end(context, answer, options, data)

    def images(self, model: Model, files: Sequence[bytes], options: Options) -> ModelOutputs:
        """Run image files as `tensors.run_images` does. Raises InvalidFieldError if the model takes
        no images, or not as many."""
        most = self._settings.max_batch
        if not 0 < len(files) <= most:
            raise InvalidFieldError(f"{len(files)} images were sent: 1 to {most} are taken")
        context = self._begin(current(), model, options)
        outcome = tensors.run_images(_image_model(model), files, options, context.request_id)
        answers = [
            self._end(context, answer, options, data)
            for answer, data in zip(outcome.answers, files, strict=True)
        ]
        return msgspec.structs.replace(outcome, answers=tuple(answers))

    def tensors(self, model: Model, inputs: Sequence[Tensor], options: Options) -> ModelOutputs:
        """Run input tensors as `tensors.run_tensors` does."""
        context = self._begin(current(), model, options)
        context.log_fields = {"model": f"{model.manifest.name}/{model.manifest.version}"}
        outcome = tensors.run_tensors(model, inputs, options)
        for answer in outcome.answers:
            self._end(context, answer, options, None)
        if not outcome.answers:
            name, version, at = model.manifest.name, model.manifest.version, time.time()
            for timing in outcome.timings:
                self._count_run(name, version, timing, at)
        return outcome

    def _begin(self, context: RequestContext, model: Model, options: Options) -> RequestContext:
        context.manifest = model.manifest
        context.options = options
        return context

    def _end(
        self, context: RequestContext, answer: Answer, options: Options, data: bytes | None
    ) -> Answer:
        cached = isinstance(answer, CachedAnswer)
        answer = self.report_answered(
            FrameAnswered(
                time.time(), context.request_id, answer, options, data, cached, context.trace
            )
        )
        context.log_fields = log_fields(answer, options)
        return answer

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
        """Return the model that plain numbers are for: the one called `name`; without a name the
        default model if its only input takes this shape, else the first by name of `task: tensor`
        that does.

        Raises InvalidFieldError if none does, and what `BundleRepository.get` raises.
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
            if _accepts(model, array):
                return model
        if loading is not None:
            raise loading
        raise InvalidFieldError(
            f"no model takes numbers of the shape {list(np.shape(array))}; name one with `model`"
            " to learn what it takes"
        )

    @property
    def has_listeners(self) -> bool:
        """True if there are listeners to answered frames."""
        return bool(self._listeners)

    def report_answered(self, frame: FrameAnswered) -> Answer:
        """Report an answered frame to the listeners: to some now, to the others soon, when it is
        counted too. Return its answer, with the health of its picture and its vote."""
        if self._judge_health is not None and frame.answer.measured is not None:
            answer = self._judge_health(frame.answer, frame.options)
            frame = msgspec.structs.replace(frame, answer=answer)
        if self._count_vote and (vote := self._count_vote(frame)) is not None:
            answer = msgspec.structs.replace(frame.answer, vote=vote)
            frame = msgspec.structs.replace(frame, answer=answer)
        for listener in self._before_answer:
            listener(frame)
        self._afterwards.submit(lambda: self._report(frame))
        return frame.answer

    def _report(self, frame: FrameAnswered) -> None:
        self._metrics.answered(frame.answer)
        for listener in self._listeners:
            listener(frame)

    def report_error(self, error: LinesideError) -> None:
        """Count and report a frame of this request that got no labels, while others did."""
        self._metrics.refuse(error.code)
        done = completion(error.status)
        report_refusal(self._refusals, current(), done, error.code, error.message, error.cause)

    def report_refused(self, refusal: FrameRefused) -> None:
        """Count and report a frame that got no labels outside of any request."""
        self._metrics.refuse(refusal.code)
        for listener in self._refusals:
            listener(refusal)


def age_header(answer: Answer) -> tuple[tuple[str, str], ...]:
    """Return the header Age (RFC 9111, 5.1), in whole seconds, of another request's answer."""
    return (("Age", str(int(answer.age))),) if isinstance(answer, CachedAnswer) else ()


def with_age(response: Response, answer: Answer) -> Response:
    """Add `age_header` to `response`, and return it."""
    response.headers.extend(age_header(answer))
    return response


def log_fields(answer: Answer, options: Options) -> dict[str, object]:
    """Return what a request's log line says of its answer and its frame."""
    best = answer.best
    fields: dict[str, object] = {
        "model": f"{answer.model}/{answer.version}",
        "label": best.label if best else None,
        "probability": round(best.probability, 4) if best else None,
    }
    for name in ("camera", "part", "product", "batch"):
        if value := getattr(options, name):
            fields[name] = value
    return fields


def refuse_product(query: FrameOptions) -> None:
    """Raise InvalidFieldError if `query` names a product where no product can judge."""
    if query.product is not None:
        raise InvalidFieldError(
            "product can't be sent here: it judges images, sent to a route whose path names no"
            " model"
        )


def _image_model(model: Model) -> Recognizer:
    """Return `model`. Raises InvalidFieldError if it takes no images."""
    if isinstance(model, Recognizer):
        return model
    raise InvalidFieldError(
        f'the model {model.manifest.name} takes numbers, not an image: send {{"input": [...]}}'
    )


def _accepts(model: Model, array: Tensor) -> bool:
    if len(model.pool.inputs) != 1:
        return False
    try:
        tensors.match_inputs(model, {model.pool.inputs[0].name: array})
    except InvalidFieldError:
        return False
    return True
