"""Real models of a few kilobytes, made by TensorFlow once a session, and bundles around them.

`colors` answers red, green or blue by the mean of each channel, so that every answer is known
beforehand.
"""

import hashlib
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from server.recognition.manifest import LABELS, MANIFEST, MODEL_FILES, WEIGHTS, Recipe
from server.recognition.tasks import load_task

SIDE = 32
COLORS = ("red", "green", "blue")
RECIPE = Recipe(width=SIDE, height=SIDE, scale=1 / 255)
MakeModel = Callable[[str], Path]


def _layers(tf: Any, kind: str) -> Callable[[Any], Any]:
    """The function from a [1, SIDE, SIDE, 3] image in 0..1 to the outputs of the model `kind`."""
    kernel = tf.constant(np.random.default_rng(0).normal(0, 0.01, (3, 3, 96, 96)), tf.float32)
    widen = tf.constant(np.random.default_rng(1).normal(0, 0.1, (1, 1, 3, 96)), tf.float32)

    def run(image: Any) -> Any:
        if kind == "bright_map":
            return tf.cast(tf.reduce_mean(image, 3) > 0.5, tf.int64)
        if kind == "bright_cells":
            bright = tf.cast(tf.reduce_mean(image, 3) > 0.5, tf.float32)
            return tf.stack([1 - bright, bright], 3)
        means = tf.reduce_mean(image, [1, 2])
        if kind == "slow":
            # Work that leaves its input's means as they are.
            hidden = tf.nn.relu(tf.nn.conv2d(image, widen, 1, "SAME"))
            for _ in range(3):
                hidden = tf.nn.relu(tf.nn.conv2d(hidden, kernel, 1, "SAME"))
            means = means + 1e-6 * tf.reduce_mean(hidden)
        if kind == "endless_if_bright":
            most = tf.cast(1e9 * tf.reduce_max(image), tf.int32)
            (count,) = tf.while_loop(lambda i: i < most, lambda i: (i + 1,), (tf.constant(0),))
            means = means + 1e-30 * tf.cast(count, tf.float32)
        logits = 20.0 * means
        if kind in ("logits", "sigmoid"):
            return logits - 10.0
        if kind == "nan":
            return tf.nn.softmax(tf.math.log(-1.0 - means))
        if kind == "nan_if_bright":
            return tf.nn.softmax(tf.math.log(0.5 - means))
        if kind == "spots":
            # An anomaly model: what is bright is no good, at 8 x 8 pixels a place.
            places = tf.nn.avg_pool2d(tf.reduce_mean(image, 3, keepdims=True), 8, 8, "VALID")
            return {"score": tf.reduce_max(places, [1, 2, 3]), "map": places}
        if kind == "familiar":
            # What is brighter is the more familiar.
            brightest = tf.reduce_max(image, [1, 2, 3])[:, None]
            return {"answer": tf.nn.softmax(logits), "familiarity": brightest}
        if kind == "two_outputs":
            return tf.nn.softmax(logits), logits
        return tf.nn.softmax(logits)

    return run


def _convert(tf: Any, kind: str) -> bytes:
    module = tf.Module()
    channels_first, kind = kind.startswith("nchw_"), kind.removeprefix("nchw_")
    layers, shape = _layers(tf, kind), [1, SIDE, SIDE, 3]
    if channels_first:
        shape = [1, 3, SIDE, SIDE]

    def run(image: Any) -> Any:
        return layers(tf.transpose(image, [0, 2, 3, 1]) if channels_first else image)

    function = tf.function(run, input_signature=[tf.TensorSpec(shape, tf.float32)])
    concrete = function.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    if kind in ("int8", "uint8"):
        rng = np.random.default_rng(0)

        def calibration() -> Iterator[list[Any]]:
            yield [np.zeros(shape, np.float32)]
            yield [np.ones(shape, np.float32)]
            for _ in range(20):
                color = rng.random([3 if side == 3 else 1 for side in shape], np.float32)
                yield [np.broadcast_to(color, shape).copy()]

        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = calibration
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.as_dtype(kind)
    return bytes(converter.convert())


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """A function from a kind to the file of that model: `colors`, `logits`, `sigmoid`, `int8`,
    `uint8`, `two_outputs`, `spots` (an anomaly model), `familiar` (the brighter the more),
    `slow` (10 ms on a PC), `bright_map` (1 for each bright pixel, else 0), `bright_cells` (scores
    of both), or one whose output is
    not finite: `nan`, or `nan_if_bright`, not for a black image; or one that works for minutes on
    any but a black image: `endless_if_bright`. With `nchw_` before it, its channels come first.
    Skips where tensorflow is absent."""
    folder = tmp_path_factory.mktemp("tiny_models")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf = pytest.importorskip("tensorflow", reason="tensorflow makes these models")

    def make(kind: str) -> Path:
        path = folder / f"{kind}.tflite"
        if not path.exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                path.write_bytes(_convert(tf, kind))
        return path

    return make


def write_bundle(
    folder: Path,
    model: Path,
    labels: tuple[str, ...] = COLORS,
    recipe: Recipe | None = RECIPE,
    golden: tuple[tuple[str, bytes], ...] = (),
    **manifest: Any,
) -> Path:
    """A bundle at `folder` (NAME/VERSION) with the given manifest fields; returns `folder`. The
    model's file is of the kind of `model`; a `.xml` has its `.bin` beside it.

    golden: files that lie in the bundle beside the model, as (path, content).
    """
    folder.mkdir(parents=True)
    file = next(name for name in MODEL_FILES if name.endswith(model.suffix))
    shutil.copy(model, folder / file)
    weights = (WEIGHTS,) if model.suffix == ".xml" else ()
    for name in weights:
        shutil.copy(model.with_suffix(".bin"), folder / name)
    (folder / LABELS).write_text("".join(f"{label}\n" for label in labels), "utf-8")
    for name, content in golden:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    names = (file, LABELS, *weights, *(name for name, _ in golden))
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    fields = {
        "name": folder.parent.name,
        "version": int(folder.name),
        "sha256": digests,
        "recipe": recipe,
        "quantization": "float32",
        **manifest,
    }
    kind = load_task(fields.get("task", "classify")).manifest_type
    (folder / MANIFEST).write_bytes(msgspec.json.encode(kind(**fields)))
    return folder


def change_manifest(folder: Path, **fields: Any) -> None:
    """Sets fields of the bundle.json in `folder`; a value of None takes the field out."""
    values = msgspec.json.decode((folder / MANIFEST).read_bytes()) | fields
    kept = {name: value for name, value in values.items() if value is not None}
    (folder / MANIFEST).write_bytes(msgspec.json.encode(kept))


@pytest.fixture(scope="session")
def colors(tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the one bundle colors/1, not to be changed."""
    models = tmp_path_factory.mktemp("models")
    write_bundle(models / "colors" / "1", tiny_model("colors"))
    return models
