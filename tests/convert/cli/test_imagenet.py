"""The bundle of `python -m convert imagenet`: its files, its report, and the server's answers to
photographs beside Keras's."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from server_process import LiveServer, live_server

from convert.__main__ import main
from convert.data.frames import tensors
from convert.sources import imagenet as keras_imagenet
from server.recognition.manifest import read_bundle

PHOTOGRAPHS = {
    "cat_720p.jpg": ("n02124075", "Egyptian_cat"),
    "cat_1080p.jpg": ("n02124075", "Egyptian_cat"),
    "parrot.jpg": ("n01818515", "macaw"),
    "grace_hopper.bmp": ("n03763968", "military_uniform"),
}


@pytest.fixture(scope="module")
def imagenet_server(imagenet: Path) -> Iterator[LiveServer]:
    with live_server(models=imagenet.parent.parent) as running:
        yield running


def all_classes(server: LiveServer, data: bytes) -> list[dict[str, Any]]:
    answer = server.recognize(data, top_k=1000)
    assert answer.status_code == 200, answer.text
    predictions: list[dict[str, Any]] = answer.json()["predictions"]
    return predictions


def test_imagenet_bundle(imagenet: Path) -> None:
    bundle = read_bundle(imagenet)
    assert bundle.manifest.quantization == "dynamic"
    assert bundle.manifest.output == "probabilities"
    assert (imagenet / "labels.txt").read_text().splitlines()[285] == "n02124075\tEgyptian_cat"
    assert bundle.model_path.stat().st_size < 4_200_000
    assert len(bundle.labels) == 1000


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_are_recognised(imagenet_server: LiveServer, frames: Path, name: str) -> None:
    best = all_classes(imagenet_server, (frames / name).read_bytes())[0]
    assert (best["id"], best["label"]) == PHOTOGRAPHS[name]


def test_every_probability_is_near_the_float_models(
    imagenet_server: LiveServer, imagenet: Path, keras_home: Path, frames: Path
) -> None:
    recipe = read_bundle(imagenet).manifest.recipe
    assert recipe is not None
    model = keras_imagenet.model()
    files = [frames / name for name in PHOTOGRAPHS]
    for file, tensor in zip(files, tensors(files, recipe), strict=True):
        predictions = all_classes(imagenet_server, file.read_bytes())
        assert len(predictions) == 1000
        ours = np.zeros(1000)
        for prediction in predictions:
            ours[prediction["class_id"]] = prediction["probability"]
        assert ours.sum() == pytest.approx(1, abs=1e-3)
        assert np.abs(ours - model(tensor, training=False).numpy()[0]).max() < 0.03


def test_eight_clients_get_the_answers_of_one(imagenet_server: LiveServer, frames: Path) -> None:
    photographs = [(frames / name).read_bytes() for name in PHOTOGRAPHS]
    alone = [imagenet_server.recognize(data).json()["predictions"] for data in photographs]

    def client(number: int) -> None:
        with requests.Session() as session:
            for turn in range(number, 80, 8):
                which = turn % len(photographs)
                answer = session.post(
                    imagenet_server.url + "/v1/recognize", photographs[which], timeout=60
                )
                assert answer.status_code == 200, answer.text
                assert answer.json()["predictions"] == alone[which]

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(client, range(8)))


def test_imagenet_report_with_many_classes(
    imagenet: Path, frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = [f"{frames / name},{wordnet}" for name, (wordnet, _) in PHOTOGRAPHS.items()]
    (tmp_path / "frames.csv").write_text("\n".join(["path,label", *table]))
    command = ["evaluate", str(imagenet), str(tmp_path / "frames.csv"), "--seconds", "0.1"]
    assert main([*command, "--report", str(tmp_path / "report")]) == 0
    assert "top-1 100.00%" in capsys.readouterr().out
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [c["label"] for c in found["models"]["result"]["classes"]] == [
        "macaw",
        "Egyptian_cat",
        "military_uniform",
    ]
