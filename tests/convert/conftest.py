"""Fixtures of the conversion tests: a tiny classifier of colours, frames for it, and ImageNet."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from server_process import SHARED

from convert.__main__ import main
from convert.bundle_writer import labels_text
from convert.pipeline import Request
from convert.recipe.choice import default_recipe
from convert.sources import keras as sources
from convert.sources.shapes import describe
from convert.terminal import suppress_native_output, tensorflow
from server.values.labels import Label

COLOURS = ("blue", "green", "red")
SIDE = 32


@pytest.fixture(scope="session")
def tf() -> Any:
    """The module tensorflow."""
    if find_spec("tensorflow") is None:
        pytest.skip("tensorflow is not installed")
    return tensorflow()


@pytest.fixture(scope="session")
def keras_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Keras home with the offline weights, set as KERAS_HOME; skips where a machine has none."""
    if not (SHARED / "keras" / "models").is_dir():
        pytest.skip("../shared/keras is not on this machine")
    # Keras writes its keras.json there, so the weights alone are the shared ones.
    home = tmp_path_factory.mktemp("keras")
    (home / "models").symlink_to(SHARED / "keras" / "models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def no_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Keras home without any weights. A training there does not look at its labels, which takes a
    large network."""
    return tmp_path_factory.mktemp("keras")


@pytest.fixture
def without_weights(no_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Keras home without any weights, as if other tests had not asked for them."""
    monkeypatch.setenv("KERAS_HOME", str(no_weights))


@pytest.fixture(scope="session")
def colours_keras(tf: Any) -> Any:
    """A Keras model that tells blue, green and red pictures of 32 x 32 pixels apart: each class
    adds up its channel, with a little noise in the weights."""
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            layers.Input((SIDE, SIDE, 3)),
            layers.Flatten(),
            layers.Dense(len(COLOURS), activation="softmax"),
        ]
    )
    noise = np.random.default_rng(0).normal(0, 0.004, (SIDE, SIDE, 3, 3))
    # Blue is the image's third channel and the first class.
    weights = noise + 6 / SIDE**2 * np.eye(3)[::-1]
    model.layers[-1].set_weights([weights.reshape(-1, 3), np.zeros(3)])
    return model


@pytest.fixture(scope="session")
def colours_tflite(colours_keras: Any) -> bytes:
    """The same as a float32 .tflite."""
    return sources.from_keras(colours_keras)


@pytest.fixture(scope="session")
def colours_files(
    colours_keras: Any, colours_tflite: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the model as colours.keras, .h5 and .tflite, a SavedModel in `saved`, and its
    labels.txt."""
    folder = tmp_path_factory.mktemp("colours")
    with suppress_native_output():
        colours_keras.save(folder / "colours.keras")
        colours_keras.save(folder / "colours.h5")
        colours_keras.export(folder / "saved", verbose=False)
    (folder / "colours.tflite").write_bytes(colours_tflite)
    (folder / "labels.txt").write_text(labels_text([Label(name) for name in COLOURS]))
    return folder


@pytest.fixture(scope="session")
def colours_frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve grainy pictures of each colour, one sub-folder a colour, some of them pale."""
    root, rng = tmp_path_factory.mktemp("frames"), np.random.default_rng(1)
    for channel, name in enumerate(COLOURS):
        (root / name).mkdir()
        for number in range(12):
            pixels = rng.integers(40, 90, (48, 64, 3))
            pixels[..., channel] += 150 - 12 * number
            blurred = cv2.GaussianBlur(pixels.astype(np.uint8), (9, 9), 0)
            suffix = ("jpg", "png", "bmp")[number % 3]
            cv2.imwrite(str(root / name / f"{number}.{suffix}"), blurred)
    return root


@pytest.fixture
def request_of(colours_tflite: bytes, tmp_path: Path) -> Request:
    """A request to convert the colours model to tmp_path/colours."""
    shape = describe(colours_tflite)
    return Request(
        float_model=colours_tflite,
        labels=tuple(Label(name) for name in COLOURS),
        recipe=default_recipe(shape),
        name="colours",
        out=tmp_path,
        seconds=0.1,
    )


@pytest.fixture(scope="session")
def imagenet(tf: Any, keras_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the bundle that `python -m convert imagenet` writes."""
    out = tmp_path_factory.mktemp("models")
    assert main(["imagenet", "--out", str(out)]) == 0
    return out / "imagenet" / "1"
