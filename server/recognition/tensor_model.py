"""Models that take plain numbers, and the raw tensors of those that take images."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import msgspec
import numpy as np

from server.errors import BundleError, InvalidFieldError
from server.recognition import results
from server.recognition.admission import Admission
from server.recognition.answers import Answer, Options
from server.recognition.frame import Limits
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import Bundle
from server.recognition.preprocessing import Tensor, TensorSpec
from server.recognition.reader_guard import ReaderGuard, Sender
from server.recognition.recognizer import OnStage, Recognizer, StageTimer, make_answer
from server.values.wording import counted

DTYPES = frozenset(
    {"bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"}
    | {"float16", "float32", "float64"}
)
# A first dimension of one of these is the batch: rows go through the model one by one.
ONE_OR_ANY = (-1, 1)


class TensorModel:
    """A verified bundle of `task: tensor` with its interpreters; `labels`, where it has some, name
    the last dimension of its first output.

    Raises BundleError where labels and model do not belong together, or where a dimension other
    than the batch is open.
    """

    def __init__(
        self,
        bundle: Bundle,
        pool: InterpreterPool,
        admission: Admission,
        on_stage: OnStage | None = None,
    ) -> None:
        self.bundle, self.pool, self.admission, self.on_stage = bundle, pool, admission, on_stage
        self.manifest, self.labels = bundle.manifest, bundle.labels
        for spec in (*pool.inputs, *pool.outputs):
            if spec.dtype not in DTYPES:
                raise BundleError(f"{bundle.folder}: the tensor {spec.name} is not of numbers")
        for spec in pool.inputs:
            if any(size < 0 for size in spec.shape[1:]):
                raise BundleError(
                    f"{bundle.folder}: the input {spec.name} takes {list(spec.shape)}, where only"
                    " the first dimension may be open"
                )
        classes = pool.outputs[0].shape[-1:]
        if self.labels and classes != (len(self.labels),):
            raise BundleError(
                f"{bundle.folder}: labels.txt has {counted(len(self.labels), 'label')} but the"
                f" model's first output is {list(pool.outputs[0].shape)}"
            )

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
) -> Model:
    """Returns the bundle as what its task says, warmed up and with its golden frames checked.

    Raises BundleError where it may not serve.
    """
    if bundle.manifest.task == "tensor":
        model = TensorModel(bundle, pool, admission, on_stage)
        model.warm_up()
        return model
    recognizer = Recognizer(bundle, pool, admission, limits, on_stage, guard)
    recognizer.warm_up()
    recognizer.check_golden()
    return recognizer


class ModelOutputs(msgspec.Struct, frozen=True):
    """What came out of a model.

    outputs: its outputs in its order and dtypes, [rows, ...], or the model's own shapes where it
    has no batch dimension. answers: one a row of a model with labels, else none.
    """

    outputs: tuple[Tensor, ...]
    answers: tuple[Answer, ...]


def batched(model: Model) -> bool:
    """Returns whether the first dimension of all the model's tensors counts rows."""
    specs = (*model.pool.inputs, *model.pool.outputs)
    return all(spec.shape[:1] and spec.shape[0] in ONE_OR_ANY for spec in specs)


def run_tensors(model: Model, inputs: Sequence[Tensor], options: Options) -> ModelOutputs:
    """Input tensors in the model's order, as `match_inputs` leaves them -> the outcome.

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
    """Image files -> the outcome, one row each. Errors are those of `Recognizer.recognize`."""
    sender = Sender(options.camera, request_id, options.deadline)

    def work(data: bytes) -> Callable[[StageTimer], tuple[Tensor, ...]]:
        return lambda timer: (model.output(data, timer, options.deadline, sender),)

    return _gather([_admitted(model, work(data), options) for data in files])


Row: TypeAlias = tuple[tuple[Tensor, ...], Answer | None]


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
    if not model.labels:
        return outputs, None
    probabilities = results.to_probabilities(outputs[0], model.pool.outputs[0], model.manifest)
    if not np.isfinite(probabilities).all():
        raise InvalidFieldError("the input is out of the model's range: its output is not finite")
    return outputs, make_answer(model.bundle, probabilities, options, timer)


def _gather(rows: Sequence[Row]) -> ModelOutputs:
    outputs = tuple(
        parts[0] if len(parts) == 1 else np.concatenate(parts)
        for parts in zip(*(outputs for outputs, _ in rows), strict=True)
    )
    return ModelOutputs(outputs, tuple(answer for _, answer in rows if answer is not None))


def find_tensor(specs: Sequence[TensorSpec], name: str) -> TensorSpec | None:
    """Returns the tensor called `name`, by the model file's name or by its signature's."""
    return next((spec for spec in specs if name in (spec.name, spec.signature)), None)


def match_inputs(model: Model, given: Mapping[str, Tensor]) -> list[Tensor]:
    """Tensors by name -> the model's inputs in its order, each with its rows.

    A tensor without the batch dimension counts as one row. Raises InvalidFieldError naming the
    input that is missing, unknown or of another shape.
    """
    specs, rows = model.pool.inputs, batched(model)
    names = ", ".join(spec.signature or spec.name for spec in specs)
    for name in given:
        if find_tensor(specs, name) is None:
            raise InvalidFieldError(f"there is no input {name}: the model takes {names}")
    inputs = []
    for spec in specs:
        tensor = next((t for name, t in given.items() if name in (spec.name, spec.signature)), None)
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
