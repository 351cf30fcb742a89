"""Models on frames, through the server's own decoding, preprocessing and interpreters."""

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from convert.data.dataset import LabelledFrame
from convert.data.frames import decoded
from convert.errors import ConvertError
from convert.evaluation.metrics import Probabilities
from convert.evaluation.results import Evaluation, FamiliarityResult, ModelResult
from convert.evaluation.verdicts import classified_frames, prove, refuse_regions
from convert.quantization.tune import Latency, in_turns, measure
from convert.sources.shapes import Output
from server.recognition.frame import Pixels
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import MODEL, Bundle, Familiarity, Manifest, Recipe, VerdictPolicy
from server.recognition.preprocessing import (
    Tensor,
    apply_table,
    mean_grey,
    scaling_table,
    to_input_pixels,
)
from server.recognition.tasks.classify import ClassReader, ClassValues
from server.system.resources import available_cores
from server.values.labels import Label


@dataclass(frozen=True, slots=True)
class Model:
    """A classifier in memory: its file's content, how it is fed and read, and its labels in order.
    policy: that its answers are judged by. familiarity: how its output of that name was made. Both
    are None without. file: its name in a bundle, which says what kind it is of."""

    name: str
    data: bytes
    recipe: Recipe
    output: Output
    labels: tuple[Label, ...]
    policy: VerdictPolicy | None = None
    familiarity: Familiarity | None = None
    file: str = MODEL


def from_bundle(bundle: Bundle) -> Model:
    """Return the model of a classifier's bundle, named NAME/VERSION. Raises ConvertError for a
    bundle of another task or engine, or of several regions."""
    manifest = bundle.manifest
    name = f"{manifest.name}/{manifest.version}"
    if manifest.task != "classify":
        raise ConvertError(
            f"{name} has the task {manifest.task}: `evaluate` takes classifiers and detectors,"
            " `compare` takes classifiers"
        )
    assert manifest.recipe is not None
    refuse_regions(manifest)
    if bundle.model_file != MODEL:
        raise ConvertError(
            f"{name} has a {bundle.model_file}: `evaluate` and `compare` take classifiers with a"
            f" {MODEL}"
        )
    data = bundle.model_path.read_bytes()
    return Model(
        name,
        data,
        manifest.recipe,
        manifest.output,
        bundle.labels,
        manifest.verdict,
        manifest.familiarity,
    )


class Runner:
    """A model with as many interpreters of one thread as there are threads that use it.

    Raises BundleError if its engine can't run it.
    """

    def __init__(self, model: Model, size: int) -> None:
        with tempfile.NamedTemporaryFile(suffix=Path(model.file).suffix) as file:
            file.write(model.data)
            file.flush()
            self.pool = InterpreterPool(Path(file.name), size)
        # Only output and policy of it are read.
        manifest = Manifest(
            name="x",
            version=1,
            sha256={},
            quantization="float32",
            output=model.output,
            verdict=model.policy,
        )
        self.reader = ClassReader(Bundle(Path("x"), manifest, model.labels), self.pool)
        self.recipe = model.recipe
        self._table: Tensor = scaling_table(model.recipe, self.pool.inputs[0])

    def run(self, pixels: Pixels) -> ClassValues:
        """`to_input_pixels`'s pixels -> what the model says of them, finite or not."""
        tensor = apply_table(pixels, self._table, self.recipe.layout)
        with self.pool.lease() as interpreter:
            outputs = interpreter.run([tensor])
        return self.reader.read(outputs)


@dataclass(frozen=True, slots=True)
class Predictions:
    """Several models on the same frames.

    probabilities: one float32 [frames, classes] a model. brightness: mean grey level 0..255 of
    each frame as the first model sees it. values, reader: what the first model says of each frame,
    and what makes verdicts of it.
    """

    probabilities: tuple[Probabilities, ...]
    brightness: NDArray[np.float64]
    values: tuple[ClassValues, ...]
    reader: ClassReader


def predict(models: Sequence[Model], paths: Sequence[Path]) -> Predictions:
    """Run every model on every frame; a frame is decoded once for all models fed alike.

    Raises ConvertError naming a file that is not a readable image.
    """
    threads = available_cores()
    runners = [Runner(model, threads) for model in models]

    def one(path: Path) -> tuple[list[ClassValues], float]:
        seen: dict[Recipe, Pixels] = {}
        rows = []
        for runner in runners:
            look = _look(runner.recipe)
            if look not in seen:
                seen[look] = to_input_pixels(decoded(path, look), look)
            rows.append(runner.run(seen[look]))
        return rows, mean_grey(seen[_look(runners[0].recipe)])

    with ThreadPoolExecutor(threads) as workers, ExitStack() as stack:
        # Without it a damaged frame would be reported only after all the others had run.
        stack.callback(workers.shutdown, cancel_futures=True)
        rows = list(workers.map(one, paths))
    return Predictions(
        tuple(np.stack([row[0][i].probabilities for row in rows]) for i in range(len(models))),
        np.array([row[1] for row in rows]),
        tuple(row[0][0] for row in rows),
        runners[0].reader,
    )


def _look(recipe: Recipe) -> Recipe:
    """Return the part of a recipe that decides the input's pixels, without the scaling."""
    return msgspec.structs.replace(recipe, dtype="float32", scale=1.0, offset=0.0)


def evaluate(
    model: Model,
    reference: Model | None,
    frames: Sequence[LabelledFrame],
    *,
    mode: str,
    seconds: float,
) -> Evaluation:
    """Evaluate a model, and its float model if there is one, on labelled frames.

    mode: the model's quantisation. seconds: for measuring latency, both models in turns.

    Raises ConvertError for no frames and for one that is not a readable image.
    """
    if not frames:
        raise ConvertError("there are no frames to judge the model on")
    models = [model] if reference is None else [model, reference]
    answers = predict(models, [item.path for item in frames])
    # By place, since two models may have one name.
    latency = latencies(models, seconds)
    sides = [
        ModelResult(
            ("float32", mode)[i == 0], answers.probabilities[i], len(m.data), latency[str(i)]
        )
        for i, m in enumerate(models)
    ]
    result, *reference_side = sides
    return Evaluation(
        model.name,
        model.labels,
        tuple(frames),
        model.recipe,
        answers.brightness,
        result,
        reference_side[0] if reference_side else None,
        familiarity=_familiarity(model, answers.values),
        verdicts=prove(
            answers.reader, classified_frames(frames, model.labels, model.policy), answers.values
        )
        if model.policy
        else None,
    )


def latencies(models: Sequence[Model], seconds: float) -> dict[str, Latency]:
    """Return the latency of each model by its place, as `tune.measure` measures it."""
    if all(model.file == MODEL for model in models):
        return measure({str(i): m.data for i, m in enumerate(models)}, seconds=seconds)

    def prepared(model: Model) -> Callable[[], object]:
        runner = Runner(model, 1)
        tensors = [np.zeros(np.abs(spec.shape), spec.dtype) for spec in runner.pool.inputs]

        def invoke() -> None:
            with runner.pool.lease() as session:
                session.run(tensors)

        return invoke

    return in_turns({str(i): prepared(m) for i, m in enumerate(models)}, seconds)


def _familiarity(model: Model, values: Sequence[ClassValues]) -> FamiliarityResult | None:
    if model.familiarity is None:
        return None
    found = np.array([each.familiarity for each in values], np.float32)
    return FamiliarityResult(model.familiarity, found)
