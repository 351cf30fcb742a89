"""Models of the kinds that clients ask, and a live server of them."""

import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from images import encode, plain
from server_process import ROOT, LiveServer, free_port, live_server
from tiny_models import COLORS, RECIPE, SIDE, write_bundle

CORNERS = {
    "black": (0, 0, 0),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "yellow": (255, 255, 0),
    "blue": (0, 0, 255),
    "magenta": (255, 0, 255),
    "cyan": (0, 255, 255),
    "white": (255, 255, 255),
}
SETOSA, VIRGINICA = [5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5]


def frame(color: str, kind: str = "PNG") -> bytes:
    """An image file of one of the colours that the model `corners` knows."""
    return encode(plain(CORNERS[color]), kind)


def _corners(tf: Any) -> bytes:
    """Eight labels by the nearest corner of the colour cube."""
    corners = tf.constant(list(CORNERS.values()), tf.float32) / 255

    def run(image: Any) -> Any:
        means = tf.reduce_mean(image, [1, 2])
        far = tf.reduce_sum((means[:, None] - corners[None]) ** 2, -1)
        return {"probabilities": tf.nn.softmax(-8 * far)}

    return _convert(tf, run, image=tf.TensorSpec([1, SIDE, SIDE, 3], tf.float32))


def _pair(tf: Any) -> bytes:
    """Two inputs, [n, 2] and [n]; two outputs: their sum a row, and the first, doubled."""

    def run(left: Any, right: Any) -> Any:
        total = tf.reduce_sum(left, -1) + tf.cast(right, tf.float32)
        return {"total": total, "double": 2.0 * left}

    left, right = tf.TensorSpec([None, 2], tf.float32), tf.TensorSpec([None], tf.int32)
    return _convert(tf, run, left=left, right=right)


def _convert(tf: Any, run: Any, **inputs: Any) -> bytes:
    module = tf.Module()
    module.serve = tf.function(run)
    concrete = module.serve.get_concrete_function(**inputs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    return bytes(converter.convert())


@pytest.fixture(scope="session")
def client_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder: `corners` takes images and has outside ids and samples, `iris` ships with
    the project, `pair` takes two tensors. Skips where tensorflow is absent."""
    models = tmp_path_factory.mktemp("client_models")
    made = tmp_path_factory.mktemp("made")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf = pytest.importorskip("tensorflow", reason="tensorflow makes these models")
        (made / "corners").write_bytes(_corners(tf))
        (made / "pair").write_bytes(_pair(tf))
    labels = tuple(f"n{i:08}\t{name}" for i, name in enumerate(CORNERS))
    corners = write_bundle(models / "corners" / "1", made / "corners", labels, RECIPE)
    (corners / "samples").mkdir()
    for name in ("red", "cyan"):
        (corners / "samples" / f"{name}.jpg").write_bytes(frame(name, "JPEG"))
    write_bundle(models / "pair" / "1", made / "pair", (), None, task="tensor")
    shutil.copytree(ROOT / "models" / "iris", models / "iris")
    return models


@pytest.fixture(scope="session")
def clients(client_models: Path) -> Iterator[LiveServer]:
    """A live server of `client_models`, with `corners` as the default."""
    grpc = {"grpc_port": free_port()} if find_spec("grpc") else {}
    with live_server(
        models=client_models, model="corners", max_bundle_mb=10, **grpc, traced=True
    ) as running:
        yield running


def own_answers(server: LiveServer, clients: int, frames: int) -> list[bool]:
    """Whether each of `clients` at once got the label of its colour for each of its `frames`, of a
    server of `colors`."""
    pictures = {
        label: encode(plain((200 * (n == 0), 200 * (n == 1), 200 * (n == 2))), "PNG")
        for n, label in enumerate(COLORS)
    }

    def client(number: int) -> bool:
        label = COLORS[number % len(COLORS)]
        answers = [server.recognize(pictures[label]).json() for _ in range(frames)]
        return all(answer["predictions"][0]["label"] == label for answer in answers)

    with ThreadPoolExecutor(clients) as threads:
        return list(threads.map(client, range(clients)))
