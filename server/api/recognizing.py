"""What every recognising route does alike: find the model, run it, count and log the answer."""

import time
from collections.abc import Sequence

import numpy as np
from flask import g, request

from server.errors import InvalidFieldError, NotReadyError
from server.observe.metrics import Metrics
from server.recognition import tensors
from server.recognition.observation import Listener, Observation
from server.recognition.preprocessing import Tensor
from server.recognition.recognizer import Answer, Options, Recognizer
from server.recognition.tensors import Model, Outcome
from server.store.bundles import BundleStore


def mark_frame() -> None:
    """Before a request of a recognising blueprint: what goes wrong counts as a refused frame."""
    g.is_frame = request.method == "POST"


class Recognizing:
    """The models of `store`, with each answer told to `metrics`, to the request's log line and to
    `listeners`."""

    def __init__(
        self, store: BundleStore, metrics: Metrics, listeners: Sequence[Listener] = ()
    ) -> None:
        self.store, self._metrics, self._listeners = store, metrics, tuple(listeners)

    def recognizer(self, name: str | None, version: int | None) -> Recognizer:
        """The model `name`, which takes images. Raises InvalidFieldError where it does not, and
        what `BundleStore.get` raises."""
        return takes_images(self.store.get(name, version))

    def frame(self, recognizer: Recognizer, data: bytes, options: Options) -> Answer:
        """One image file's answer. Errors are those of `Recognizer.recognize`."""
        answer = recognizer.recognize(data, options)
        self._tell(answer, options, data)
        return answer

    def images(self, model: Model, files: Sequence[bytes], options: Options) -> Outcome:
        """As `tensors.run_images`; InvalidFieldError for a model that takes no images."""
        outcome = tensors.run_images(takes_images(model), files, options)
        for answer, data in zip(outcome.answers, files, strict=True):
            self._tell(answer, options, data)
        return outcome

    def tensors(self, model: Model, inputs: Sequence[Tensor], options: Options) -> Outcome:
        """As `tensors.run_tensors`."""
        g.log_fields = {"model": f"{model.manifest.name}/{model.manifest.version}"}
        outcome = tensors.run_tensors(model, inputs, options)
        for answer in outcome.answers:
            self._tell(answer, options, None)
        return outcome

    def for_numbers(self, array: Tensor, name: str | None, version: int | None) -> Model:
        """The model that plain numbers are for: the one called `name`; without a name the default
        model if its only input takes this shape, else the first by name of `task: tensor` that
        does.

        Raises InvalidFieldError where none does, and what `BundleStore.get` raises.
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

    def observed(self, seen: Observation) -> None:
        """Tells of a frame that was answered outside of any request."""
        self._metrics.answered(seen.answer)
        for listener in self._listeners:
            listener(seen)

    def refused(self, code: str) -> None:
        """Counts a frame that got no labels in a request that answers others."""
        self._metrics.refused.labels(code).inc()

    def _tell(self, answer: Answer, options: Options, data: bytes | None) -> None:
        self._metrics.answered(answer)
        g.log_fields = {
            "model": f"{answer.model}/{answer.version}",
            "label": answer.best.label,
            "probability": round(answer.best.probability, 4),
        }
        if self._listeners:
            seen = Observation(time.time(), g.request_id, answer, options, data)
            for listener in self._listeners:
                listener(seen)


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
        tensors.fit(model, {model.pool.inputs[0].name: array})
    except InvalidFieldError:
        return False
    return True
