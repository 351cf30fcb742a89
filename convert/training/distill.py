"""A larger model's probabilities as a smaller model's targets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from convert.errors import ConvertError
from convert.recipe.readings import READINGS
from convert.sources.keras import keras_readings
from convert.sources.keras_files import load_keras
from convert.sources.model_files import HDF5, KERAS, unpacked
from convert.terminal import tensorflow
from convert.training.inputs import to_batch
from server.errors import BundleError
from server.recognition.engines.litert import Interpreter
from server.recognition.manifest import MANIFEST, Recipe, read_bundle
from server.recognition.tasks.classify import to_probabilities

# uint8 [n, height, width, channels] -> float32 [n, classes] in 0..1
Teacher = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

TEMPERATURE = 3.0
# Of the loss; the rest is the true label's.
TEACHER_SHARE = 0.7


def load_teacher(path: Path, recipe: Recipe, classes: tuple[str, ...], threads: int) -> Teacher:
    """Return the teacher in a bundle's folder or a .keras file.

    A .keras file answers probabilities for the input of `recipe` in the order of `classes`.
    Raises ConvertError if it is neither, or takes another input, knows other classes or does
    not answer probabilities.
    """
    if (path / MANIFEST).is_file():
        return _bundle(path, recipe, classes, threads)
    if path.suffix == ".keras" and path.is_file():
        return _keras(path, recipe, classes)
    raise ConvertError(
        f"--teacher {path} is neither a bundle's folder (models/NAME/VERSION) nor a .keras file"
    )


def _bundle(path: Path, recipe: Recipe, classes: tuple[str, ...], threads: int) -> Teacher:
    try:
        bundle = read_bundle(path)
        interpreter = Interpreter(bundle.model_path, threads)
    except BundleError as error:
        raise ConvertError(f"--teacher {path}: {error}") from None
    names, manifest = tuple(label.name for label in bundle.labels), bundle.manifest
    if names != classes:
        raise ConvertError(
            f"--teacher {path} knows {', '.join(names)}, but the images are of {', '.join(classes)}"
        )
    if manifest.recipe != recipe:
        raise ConvertError(
            f"--teacher {path} is fed otherwise than this model: its recipe is"
            f" {msgspec.json.encode(manifest.recipe).decode()}"
        )

    def probabilities(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        outputs = (interpreter.run([tensor[None]])[0] for tensor in to_batch(pixels, recipe))
        return np.stack([to_probabilities(o, interpreter.outputs[0], manifest) for o in outputs])

    return probabilities


def _keras(path: Path, recipe: Recipe, classes: tuple[str, ...]) -> Teacher:
    try:
        with unpacked(path) as (file, kind):
            if kind not in (KERAS, HDF5):
                raise ConvertError(f"{path} is a {kind} and not a Keras model that loads")
            model = load_keras(tensorflow(), file, path, hdf5=kind == HDF5)
    except ConvertError as error:
        raise ConvertError(f"--teacher {error}") from None
    taken, answered = tuple(model.input_shape[1:]), int(model.output_shape[-1])
    want = (recipe.height, recipe.width, recipe.channels)
    if taken != want or answered != len(classes):
        raise ConvertError(
            f"--teacher {path} makes {answered} values of {list(taken)}, but this training needs"
            f" {len(classes)} of {list(want)}"
        )

    readings = keras_readings(model)
    if len(readings) == 1:
        reading = READINGS[readings[0]]
        recipe = msgspec.structs.replace(recipe, scale=reading.scale, offset=reading.offset)

    def probabilities(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(model.predict_on_batch(to_batch(pixels, recipe)), np.float32)

    grey = np.full((1, *want), 128, np.uint8)
    answer = probabilities(grey)
    if not (answer.min() >= 0 and abs(answer.sum() - 1) < 0.01):
        raise ConvertError(
            f"--teacher {path} answers {answer.min():.3g} to {answer.max():.3g}, adding up to"
            f" {answer.sum():.3g}, for a grey frame: a teacher answers probabilities, so end it"
            " with a softmax"
        )
    return probabilities


def loss(share: float = TEACHER_SHARE, temperature: float = TEMPERATURE) -> Any:
    """Return a Keras loss of y_true [n, 2, classes] (one-hot labels, teacher's probabilities) and
    logits.

    (1 - share) * cross entropy with the label + share * T² * cross entropy of teacher and student
    both softened by T: Hinton, Vinyals, Dean, «Distilling the knowledge in a neural network»,
    2015 (arXiv:1503.02531). The teacher's logits are its log-probabilities, which softmax can't
    tell from them.
    """
    ops, losses = tensorflow().keras.ops, tensorflow().keras.losses

    def distillation(y_true: Any, y_pred: Any) -> Any:
        label, teacher = y_true[:, 0], y_true[:, 1]
        hard = losses.categorical_crossentropy(label, y_pred, from_logits=True)
        soft = ops.softmax(ops.log(ops.maximum(teacher, 1e-7)) / temperature)
        softened = losses.categorical_crossentropy(soft, y_pred / temperature, from_logits=True)
        return (1 - share) * hard + share * temperature**2 * softened

    return distillation
