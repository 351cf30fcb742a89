"""The bundle of Keras's MobileNetV2: what the server says of photographs, and what Keras says."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from server_process import ROOT, SHARED, LiveServer, live_server

from server.recognition.frame import Limits, decode
from server.recognition.manifest import read_bundle
from server.recognition.preprocessing import TensorSpec, to_tensor

PHOTOGRAPHS = {
    "cat_720p.jpg": ("n02124075", "Egyptian_cat"),
    "cat_1080p.jpg": ("n02124075", "Egyptian_cat"),
    "parrot.jpg": ("n01818515", "macaw"),
    "grace_hopper.bmp": ("n03763968", "military_uniform"),
}
KERAS = """
import sys
import numpy, keras
model = keras.applications.MobileNetV2(weights="imagenet")
numpy.save(sys.argv[2], model.predict_on_batch(numpy.load(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def keras_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A writable copy of the offline Keras home; skips where there is none, or no tensorflow."""
    pytest.importorskip("tensorflow", reason="tensorflow converts the model")
    if not (SHARED / "keras").is_dir():
        pytest.skip("../shared/keras is not on this machine")
    home = tmp_path_factory.mktemp("keras")
    shutil.copytree(SHARED / "keras", home, dirs_exist_ok=True, copy_function=shutil.copyfile)
    home.chmod(0o755)
    return home


def run(keras_home: Path, *arguments: object) -> None:
    env = os.environ | {"KERAS_HOME": str(keras_home), "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, *map(str, arguments)]
    ended = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def imagenet(keras_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the bundle imagenet/1, converted by the command that a user gives."""
    models = tmp_path_factory.mktemp("converted")
    run(keras_home, "-m", "convert", "imagenet", "--out", models)
    return models / "imagenet" / "1"


@pytest.fixture(scope="module")
def imagenet_server(imagenet: Path) -> Iterator[LiveServer]:
    with live_server(models=imagenet.parent.parent) as running:
        yield running


def all_classes(server: LiveServer, data: bytes) -> list[dict[str, Any]]:
    answer = server.recognize(data, top_k=1000)
    assert answer.status_code == 200, answer.text
    predictions: list[dict[str, Any]] = answer.json()["predictions"]
    return predictions


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_are_recognised(imagenet_server: LiveServer, frames: Path, name: str) -> None:
    best = all_classes(imagenet_server, (frames / name).read_bytes())[0]
    assert (best["id"], best["label"]) == PHOTOGRAPHS[name]


def test_every_probability_is_near_the_float_models(
    imagenet_server: LiveServer, imagenet: Path, keras_home: Path, frames: Path, tmp_path: Path
) -> None:
    recipe = read_bundle(imagenet).manifest.recipe
    assert recipe is not None
    spec = TensorSpec("image", (), recipe.dtype)
    photographs = [(frames / name).read_bytes() for name in PHOTOGRAPHS]
    tensors = [to_tensor(decode(data, recipe, Limits()), recipe, spec) for data in photographs]
    np.save(tmp_path / "tensors.npy", np.concatenate(tensors))
    run(keras_home, "-c", KERAS, tmp_path / "tensors.npy", tmp_path / "float.npy")
    for data, theirs in zip(photographs, np.load(tmp_path / "float.npy"), strict=True):
        predictions = all_classes(imagenet_server, data)
        assert len(predictions) == 1000
        ours = np.zeros(1000)
        for prediction in predictions:
            ours[prediction["class_id"]] = prediction["probability"]
        assert ours.sum() == pytest.approx(1, abs=1e-3)
        assert np.abs(ours - theirs).max() < 0.03


def test_eight_clients_get_the_answers_of_one(imagenet_server: LiveServer, frames: Path) -> None:
    photographs = [(frames / name).read_bytes() for name in PHOTOGRAPHS]
    alone = [imagenet_server.recognize(data).json()["predictions"] for data in photographs]

    def client(number: int) -> None:
        with requests.Session() as session:
            for turn in range(number, 500, 8):
                which = turn % len(photographs)
                answer = session.post(
                    imagenet_server.url + "/v1/recognize", photographs[which], timeout=60
                )
                assert answer.status_code == 200, answer.text
                assert answer.json()["predictions"] == alone[which]

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(client, range(8)))
