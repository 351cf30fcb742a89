"""Clients as the readers of each tutorial would have written them, against a live server."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import requests
from clients import SETOSA, frame
from server_process import LiveServer


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "frame.png"
    path.write_bytes(frame("yellow"))
    return path


def curl(*arguments: object) -> Any:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(
        ["curl", "--silent", "--show-error", *map(str, arguments)],
        capture_output=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


def test_classify(clients: LiveServer, image: Path) -> None:
    with image.open("rb") as file:
        response = requests.post(f"{clients.url}/classify", files={"image": file}, timeout=60)
    predictions = response.json()["predictions"]
    assert len(predictions) == 5
    assert predictions[0]["class"] == "yellow"
    assert all(set(p) == {"class", "probability"} for p in predictions)
    shares = [p["probability"] for p in predictions]
    assert shares == sorted(shares, reverse=True)
    assert curl("-X", "POST", "-F", f"image=@{image}", f"{clients.url}/classify") == response.json()


def test_api_recognize(clients: LiveServer, image: Path) -> None:
    answer = curl("-F", f"file=@{image}", f"{clients.url}/api/recognize")
    assert list(answer) == ["predictions"]
    assert len(answer["predictions"]) == 3
    best = answer["predictions"][0]
    assert best == {"class_id": 3, "label": "yellow", "probability": best["probability"]}
    with image.open("rb") as file:
        response = requests.post(f"{clients.url}/api/recognize", files={"file": file}, timeout=60)
    assert response.json() == answer


def test_api_recognize_without_a_file(clients: LiveServer) -> None:
    response = requests.post(f"{clients.url}/api/recognize", timeout=60)
    assert response.status_code == 400
    assert response.json() == {"error": "No file uploaded"}


def test_predict_an_image(clients: LiveServer, image: Path) -> None:
    expected = {"class_id": "n00000003", "class_name": "yellow"}
    assert curl("-F", f"file=@{image}", f"{clients.url}/predict") == expected
    response = requests.post(
        f"{clients.url}/predict", files={"file": image.read_bytes()}, timeout=60
    )
    assert response.json() == expected


def test_predict_from_input(clients: LiveServer) -> None:
    response = requests.post(f"{clients.url}/predict", json={"input": [SETOSA]}, timeout=60)
    metadata = requests.get(f"{clients.url}/v2/models/iris", timeout=60).json()
    (name,) = (output["name"] for output in metadata["outputs"])
    assert list(response.json()) == [name]
    (row,) = response.json()[name]
    assert row.index(max(row)) == 0
    assert sum(row) == pytest.approx(1, abs=1e-5)


def test_predict_from_input_answers_every_output(clients: LiveServer) -> None:
    metadata = requests.get(f"{clients.url}/v2/models/pair", timeout=60).json()
    response = requests.post(
        f"{clients.url}/predict",
        params={"model": "pair"},
        json={"input": {"left": [[1, 2]], "right": [3]}},
        timeout=60,
    )
    assert set(response.json()) == {output["name"] for output in metadata["outputs"]}
    assert sorted(map(str, response.json().values())) == ["[6.0]", "[[2.0, 4.0]]"]


def test_predict_from_features(clients: LiveServer) -> None:
    response = requests.post(
        f"{clients.url}/predict", json={"features": [5.1, 3.5, 1.4, 0.2]}, timeout=60
    )
    answer = response.json()
    assert (answer["prediction"], answer["class_index"]) == ("setosa", 0)
    assert list(answer["confidence"]) == ["setosa", "versicolor", "virginica"]
    assert answer["confidence"]["setosa"] > 0.9
    assert sum(answer["confidence"].values()) == pytest.approx(1, abs=1e-5)
    header, body = "Content-Type: application/json", json.dumps({"features": SETOSA})
    assert curl("-H", header, "-d", body, f"{clients.url}/predict") == answer


def test_model_info(clients: LiveServer) -> None:
    assert curl(f"{clients.url}/api/model/info") == {
        "model_name": "corners",
        "version": "1",
        "input_type": "float32",
        "output_type": "float32",
    }


@pytest.mark.parametrize(
    ("path", "how", "status", "words"),
    [
        ("/classify", {"files": {"file": b"x"}}, 400, "No image uploaded"),
        ("/classify", {"files": {"image": b"text"}}, 415, "not an image"),
        ("/predict", {}, 400, "No file uploaded"),
        ("/predict", {"json": {}}, 400, "either `input` or `features`"),
        ("/predict", {"json": {"features": []}}, 400, "features"),
        ("/predict", {"json": {"features": [1, 2]}}, 400, "no model takes numbers"),
        ("/predict", {"json": {"features": [1, "2"]}}, 400, "features"),
        ("/predict?model=nuts", {"json": {"features": SETOSA}}, 404, "no model nuts"),
        ("/predict?model=iris", {"files": {"file": frame("red")}}, 400, "takes numbers"),
    ],
)
def test_errors_are_plain(
    clients: LiveServer, path: str, how: dict[str, Any], status: int, words: str
) -> None:
    response = requests.post(clients.url + path, timeout=60, **how)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert words in response.json()["error"]
