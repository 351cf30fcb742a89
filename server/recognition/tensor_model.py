"""Models that take plain numbers, and the raw tensors of those that take images."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import msgspec
import numpy as np

from server.errors import InvalidFieldError
from server.recognition.admission import Admission
from server.recognition.answers import Answer, Options
from server.recognition.frame import Limits
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import Bundle
from server.recognition.preprocessing import Tensor, TensorSpec
from server.recognition.reader_guard import ReaderGuard, Sender
from server.recognition.recognizer import LoadedModel, OnStage, Recognizer, Seen, StageTimer
from server.recognition.tasks.task import NotFiniteError, find_task

# A first dimension of one of these is the batch: rows go through the model one by one.
ONE_OR_ANY = (-1, 1)


class TensorModel(LoadedModel):
    """A model that takes only tensors."""

    def warm_up(self) -> None:
        """Runs each interpreter once on zeros."""
        empty = [np.zeros(np.abs(spec.shape), spec.dtype) for spec in self.pool.inputs]
        self.pool.each(lambda interpreter: interpreter.run(empty))


Model: TypeAlias = Recognizer | TensorModel


def make_model(
    bundle: Bundle,
    pool: InterpreterPool,
    admission: Admission,
    limits: Limits,
    on_stage: OnStage | None = None,
    guard: ReaderGuard | None = None,
    *,
    measures: bool = False,
) -> Model:
    """Makes the model of a bundle, warms it up, and checks its golden frames. measures: as of
    Recognizer.

    Raises BundleError if it may not serve.
    """
    if not find_task(bundle.manifest.task).takes_images:
        model = TensorModel(bundle, pool, admission, on_stage)
        model.warm_up()
        return model
    recognizer = Recognizer(bundle, pool, admission, limits, on_stage, guard, measures=measures)
    recognizer.warm_up()
    recognizer.check_golden()
    return recognizer


class ModelOutputs(msgspec.Struct, frozen=True):
    """Outputs of a model.

    outputs: in its order and dtypes, [rows, ...], or in the model's own shapes if it has no batch
    dimension. answers: one a row of a model with labels, else none. timings: of each row, as of
    `Answer`.
    """

    outputs: tuple[Tensor, ...]
    answers: tuple[Answer, ...]
    timings: tuple[dict[str, float], ...] = ()


def batched(model: Model) -> bool:
    """Returns whether the first dimension of all the model's tensors counts rows."""
    specs = (*model.pool.inputs, *model.pool.outputs)
    return all(spec.shape[:1] and spec.shape[0] in ONE_OR_ANY for spec in specs)


def run_tensors(model: Model, inputs: Sequence[Tensor], options: Options) -> ModelOutputs:
    """Runs the model on input tensors in its order, as `match_inputs` returns them.

    Each row is admitted by itself, so that a large request takes its turns with the frames.
    Errors are those of `Admission.run`, and InvalidFieldError for numbers so large that a model
    with labels gives no finite output.
    """

    def work(row: Sequence[Tensor]) -> Callable[[StageTimer], tuple[Tensor, ...]]:
        def run(timer: StageTimer) -> tuple[Tensor, ...]:
            alone = model.admission.alone
            with model.pool.lease(alone=alone) as interpreter, timer.stage("inference"):
                return interpreter.run(row)

        return run

    if not batched(model):
        return _gather([_admitted(model, work(inputs), options)])
    count = len(inputs[0])
    return _gather(
        [
            _admitted(model, work([tensor[i : i + 1] for tensor in inputs]), options)
            for i in range(count)
        ]
    )


def run_images(
    model: Recognizer, files: Sequence[bytes], options: Options, request_id: str = ""
) -> ModelOutputs:
    """Runs the model on image files, one row each. Errors are those of `Recognizer.recognize`, and
    InvalidFieldError if the model is shown a frame in several views."""
    if len(model.views) > 1:
        raise InvalidFieldError(
            f"the model {model.manifest.name} is shown {len(model.views)} views of a frame, whose"
            " outputs are not one: send its input tensor, or the frame to /v1/recognize"
        )
    sender = Sender(options.camera, request_id, options.deadline)

    def work(data: bytes) -> Callable[[StageTimer], tuple[Tensor, ...]]:
        return lambda timer: model.outputs(data, timer, options.deadline, sender)

    return _gather([_admitted(model, work(data), options) for data in files])


Row: TypeAlias = tuple[tuple[Tensor, ...], Answer | None, dict[str, float]]


def _admitted(
    model: Model, work: Callable[[StageTimer], tuple[Tensor, ...]], options: Options
) -> Row:
    timer = StageTimer(model.on_stage)

    def admitted(waited: float) -> tuple[Tensor, ...]:
        timer.add("wait", waited)
        return work(timer)

    outputs = model.admission.run(
        admitted, options.deadline, options.camera, latest_only=options.latest_only
    )
    model.admission.check_in_time(options.deadline, "the model ran")
    if not (model.labels or model.task.takes_images):
        return outputs, None, timer.total()
    try:
        values = model.reader.decode(outputs)
    except NotFiniteError:
        raise InvalidFieldError(
            "the input is out of the model's range: its output is not finite"
        ) from None
    answer = model.make_answer(Seen(values, timer.placement), options, timer)
    return outputs, answer, answer.timing


def _gather(rows: Sequence[Row]) -> ModelOutputs:
    outputs = tuple(
        parts[0] if len(parts) == 1 else np.concatenate(parts)
        for parts in zip(*(outputs for outputs, _, _ in rows), strict=True)
    )
    return ModelOutputs(
        outputs,
        tuple(answer for _, answer, _ in rows if answer is not None),
        tuple(timing for _, _, timing in rows),
    )


def find_tensor(specs: Sequence[TensorSpec], name: str) -> TensorSpec | None:
    """Returns the tensor called `name`, by the model file's name or by its signature's."""
    return next((spec for spec in specs if name in (spec.name, spec.signature)), None)


def match_inputs(model: Model, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Returns the model's inputs in its order, each with its rows, from `tensors` by name.

    A tensor without the batch dimension counts as one row. Raises InvalidFieldError naming the
    input that is missing, unknown or of another shape.
    """
    specs, rows = model.pool.inputs, batched(model)
    names = ", ".join(spec.signature or spec.name for spec in specs)
    for name in tensors:
        if find_tensor(specs, name) is None:
            raise InvalidFieldError(f"there is no input {name}: the model takes {names}")
    inputs = []
    for spec in specs:
        tensor = next(
            (t for name, t in tensors.items() if name in (spec.name, spec.signature)), None
        )
        if tensor is None:
            raise InvalidFieldError(f"the input {spec.signature or spec.name} is missing")
        inputs.append(_fit_one(tensor, spec, rows))
    if rows and len({len(tensor) for tensor in inputs}) != 1:
        raise InvalidFieldError(f"the inputs {names} should have as many rows as each other")
    return inputs


def _fit_one(tensor: Tensor, spec: TensorSpec, rows: bool) -> Tensor:
    if not rows:
        if tensor.shape == tuple(np.abs(spec.shape)):
            return tensor
    elif tensor.shape == spec.shape[1:]:
        return tensor[None]
    elif tensor.shape[1:] == spec.shape[1:] and tensor.ndim and len(tensor):
        return tensor
    want = ", ".join(map(str, ("N", *spec.shape[1:]) if rows else spec.shape))
    raise InvalidFieldError(
        f"the input {spec.signature or spec.name} takes [{want}], and {list(tensor.shape)} was sent"
    )
