"""Familiarity, added to a quantised .tflite: the first output stays, the last tells strangers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from convert import pipeline
from convert.bundle_writer import load
from convert.data.dataset import labelled
from convert.familiarity import MIN_FRAMES, add_familiarity, feature_model
from convert.pipeline import Request
from convert.quantization.editor import read_last
from convert.quantization.quantize import quantize
from convert.recipe.choice import default_recipe
from convert.sources import keras as sources
from convert.sources.shapes import describe
from server.recognition.answers import Options
from server.recognition.engines.litert import Interpreter
from server.recognition.manifest import FAMILIARITY, Recipe
from server.values.labels import Label

SIDE = 32


@pytest.fixture(scope="module")
def network(tf: Any) -> bytes:
    """A float32 .tflite with a residual block: [1, SIDE, SIDE, 3] -> 3 probabilities that add up
    the channels."""
    layers = tf.keras.layers
    image = layers.Input((SIDE, SIDE, 3))
    seed = tf.keras.initializers.GlorotUniform(seed=1)
    first = layers.Conv2D(32, 3, 2, "same", activation="relu", kernel_initializer=seed)(image)
    second = layers.Conv2D(32, 3, 1, "same", activation="relu", kernel_initializer=seed)(first)
    block = layers.Add()([first, second])
    mean = layers.GlobalAveragePooling2D()(image)
    texture = layers.GlobalAveragePooling2D()(block)
    answer = layers.Dense(3, activation="softmax", name="answer")
    model = tf.keras.Model(image, answer(layers.Concatenate()([mean, texture])))
    # Blue is the image's third channel and the first class.
    weights = np.zeros((35, 3), np.float32)
    weights[:3] = 12 * np.eye(3)[::-1]
    model.get_layer("answer").set_weights([weights, np.zeros(3)])
    return sources.from_keras(model)


@pytest.fixture(scope="module")
def recipe(network: bytes) -> Recipe:
    return default_recipe(describe(network))


def noise(count: int) -> NDArray[np.uint8]:
    """Frames of noise: another texture than the coloured, blurred ones."""
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["dynamic", "float32", "int8"])
def test_strangers_are_told_and_answers_stay(
    network: bytes, recipe: Recipe, colours_frames: Path, mode: str
) -> None:
    from convert.data.frames import tensors

    paths = [item.path for item in labelled(colours_frames, LABELS).frames]
    model = quantize(network, mode, calibration=tensors(paths, recipe), io_dtype="float32")
    made = add_familiarity(model, recipe, None, paths)
    assert made is not None
    before, after = (Interpreter(Path("x"), 1, data) for data in (model, made.data))
    assert after.outputs[-1].signature == FAMILIARITY
    strangers = np.stack(
        [after.run([frame])[-1].reshape(()) for frame in tensors(noise(20), recipe)]
    )
    assert strangers.max() < 0.5
    assert (read_last(made.data, paths, recipe) >= 0.5).mean() > 0.9
    for frame in tensors(paths[:5], recipe):
        np.testing.assert_array_equal(before.run([frame])[0], after.run([frame])[0])


LABELS = tuple(Label(name) for name in ("blue", "green", "red"))


def test_bundle_has_it_and_flags_strangers(
    network: bytes, recipe: Recipe, colours_frames: Path, tmp_path: Path
) -> None:
    request = Request(
        float_model=network,
        labels=LABELS,
        recipe=recipe,
        output="probabilities",
        name="colours",
        out=tmp_path,
        seconds=0.1,
        validation=labelled(colours_frames, LABELS),
    )
    lines: list[str] = []
    model = load(pipeline.build(request, lines.append))
    settings = model.manifest.familiarity
    assert settings is not None
    assert (settings.learned_from, settings.false_unfamiliar) == (36, 0.005)
    assert any("called unfamiliar" in line for line in lines)
    assert model.manifest.golden
    report = json.loads((model.bundle.folder / "report.json").read_text())["familiarity"]
    assert sum(report["histogram"]) == 36
    assert sum(report["histogram"][:20]) == report["unfamiliar"]["count"]
    assert report["false_unfamiliar"] == 0.005
    page = (model.bundle.folder / "report.html").read_text()
    assert "Familiarity of the frames of this report" in page
    _, png = cv2.imencode(".png", noise(1)[0])
    assert model.recognize(png.tobytes(), Options()).details.familiar is False


def test_network_without_convolutions_has_none(
    colours_tflite: bytes, request_of: Request, colours_frames: Path
) -> None:
    assert feature_model(colours_tflite) is None
    lines: list[str] = []
    request = replace(request_of, validation=labelled(colours_frames, LABELS))
    model = load(pipeline.build(request, lines.append))
    assert model.manifest.familiarity is None
    assert any("familiarity: none" in line for line in lines)
    page = (model.bundle.folder / "report.html").read_text()
    assert "this model has no output for familiarity" in page


def test_few_frames_give_none(network: bytes, recipe: Recipe, colours_frames: Path) -> None:
    paths = [item.path for item in labelled(colours_frames, LABELS).frames]
    assert add_familiarity(network, recipe, None, paths[: MIN_FRAMES - 1]) is None
