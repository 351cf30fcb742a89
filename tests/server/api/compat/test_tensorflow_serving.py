"""TensorFlow Serving's REST API, as its documentation promises it."""

import base64
import json
import shutil
import subprocess
from typing import Any

import pytest
import requests
from clients import SETOSA, VIRGINICA, frame
from server_process import LiveServer

CORNERS, IRIS, PAIR = ("/v1/models/corners", "/v1/models/iris", "/v1/models/pair")


def b64(color: str) -> dict[str, str]:
    return {"b64": base64.b64encode(frame(color)).decode()}


def post(clients: LiveServer, path: str, body: object) -> requests.Response:
    return requests.post(clients.url + path, json.dumps(body), timeout=60)


def answer(clients: LiveServer, path: str, body: object) -> Any:
    response = post(clients, path, body)
    assert response.status_code == 200, response.text
    return response.json()


def best(rows: list[list[float]]) -> list[int]:
    return [row.index(max(row)) for row in rows]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_documentation_s_curl(clients: LiveServer) -> None:
    body = json.dumps({"instances": [SETOSA, VIRGINICA]})
    url = f"{clients.url}{IRIS}:predict"
    done = subprocess.run(
        ["curl", "-s", "-d", body, "-X", "POST", url], capture_output=True, check=True, timeout=60
    )
    assert best(json.loads(done.stdout)["predictions"]) == [0, 2]


@pytest.mark.parametrize("model", [IRIS, f"{IRIS}/versions/1", f"{IRIS}/labels/stable"])
def test_rows_and_columns(clients: LiveServer, model: str) -> None:
    rows = [SETOSA, VIRGINICA]
    path = f"{model}:predict"
    by_row = answer(clients, path, {"instances": rows})["predictions"]
    named = {"signature_name": "serving_default", "instances": [{"features": r} for r in rows]}
    assert answer(clients, path, named)["predictions"] == by_row
    assert answer(clients, path, {"inputs": rows})["outputs"] == by_row
    assert answer(clients, path, {"inputs": {"features": rows}})["outputs"] == by_row
    assert best(by_row) == [0, 2]


def test_several_inputs_and_outputs(clients: LiveServer) -> None:
    rows = [{"left": [1, 2], "right": 10}, {"left": [3, 4], "right": 20}]
    by_row = answer(clients, f"{PAIR}:predict", {"instances": rows})["predictions"]
    assert by_row == [{"double": [2, 4], "total": 13}, {"double": [6, 8], "total": 27}]
    columns = {"left": [[1, 2], [3, 4]], "right": [10, 20]}
    by_column = answer(clients, f"{PAIR}:predict", {"inputs": columns})["outputs"]
    assert by_column == {"double": [[2, 4], [6, 8]], "total": [13, 27]}


def test_images(clients: LiveServer) -> None:
    path = f"{CORNERS}:predict"
    by_row = answer(clients, path, {"instances": [b64("red"), b64("cyan")]})["predictions"]
    assert best(by_row) == [1, 6]
    for name in ("image", "image_bytes"):
        named = {"instances": [{name: b64("red")}, {name: b64("cyan")}]}
        assert answer(clients, path, named)["predictions"] == by_row
        column = {"inputs": {name: [b64("red"), b64("cyan")]}}
        assert answer(clients, path, column)["outputs"] == by_row
    assert answer(clients, path, {"inputs": b64("red")})["outputs"] == by_row[:1]


def test_classify(clients: LiveServer) -> None:
    examples = [{"image": b64("blue")}, {"image": b64("black")}]
    for signature in ({}, {"signature_name": "serving_default"}):
        body = {**signature, "examples": examples}
        results = answer(clients, f"{CORNERS}:classify", body)["results"]
        assert [row[0][0] for row in results] == ["blue", "black"]
        assert all(len(row) == 8 for row in results)
        assert sum(score for _, score in results[0]) == pytest.approx(1, abs=1e-5)
    shared = {"context": {"features": SETOSA}, "examples": [{}]}
    assert answer(clients, f"{IRIS}:classify", shared)["results"][0][0][0] == "setosa"


def test_metadata(clients: LiveServer) -> None:
    found = requests.get(f"{clients.url}{IRIS}/metadata", timeout=60).json()
    assert found["model_spec"] == {"name": "iris", "signature_name": "", "version": "1"}
    signature = found["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    (name,) = signature["inputs"]
    assert name == "features"
    given = signature["inputs"][name]
    assert given["dtype"] == "DT_FLOAT"
    assert [d["size"] for d in given["tensor_shape"]["dim"]] == ["-1", "4"]
    assert list(signature["outputs"]) == ["probabilities"]
    for model in (f"{IRIS}/versions/1", f"{IRIS}/labels/stable"):
        assert requests.get(f"{clients.url}{model}/metadata", timeout=60).json() == found


def test_status(clients: LiveServer) -> None:
    well = {"error_code": "OK", "error_message": ""}
    expected = [{"version": "1", "state": "AVAILABLE", "status": well}]
    for model in (CORNERS, f"{CORNERS}/versions/1", f"{CORNERS}/labels/stable"):
        found = requests.get(clients.url + model, timeout=60).json()
        assert found["model_version_status"] == expected
    whole = requests.get(clients.url + CORNERS, timeout=60).json()
    assert (whole["name"], whole["serving"]) == ("corners", 1)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/models/nuts:predict", {"instances": [1]}, 404, "no model nuts"),
        (f"{IRIS}/versions/7:predict", {"instances": [SETOSA]}, 404, "version 7"),
        (f"{IRIS}/labels/canary:predict", {"instances": [SETOSA]}, 404, "label: canary"),
        (f"{IRIS}:predict", {}, 400, "either 'instances'"),
        (f"{IRIS}:predict", {"instances": [SETOSA], "inputs": [SETOSA]}, 400, "either 'instances'"),
        (f"{IRIS}:predict", {"instances": []}, 400, "empty"),
        (f"{IRIS}:predict", {"instances": 5}, 400, "instances"),
        (f"{IRIS}:predict", {"signature_name": "x", "instances": [SETOSA]}, 400, "signature"),
        (f"{IRIS}:predict", {"instances": [[1, 2]]}, 400, "takes [N, 4]"),
        (f"{IRIS}:predict", {"instances": [{"wrong": SETOSA}]}, 400, "no input wrong"),
        (f"{IRIS}:predict", {"instances": [b64("red")]}, 400, "no input b64"),
        (f"{IRIS}:predict", {"instances": [{"features": SETOSA}, SETOSA]}, 400, "same names"),
        (f"{IRIS}:predict", {"instances": [[float("nan")] * 4]}, 400, "not finite"),
        (f"{PAIR}:predict", {"instances": [[1, 2]]}, 400, "name each"),
        (f"{CORNERS}:predict", {"instances": [{"b64": "?"}]}, 400, "base64"),
        (f"{CORNERS}:predict", {"instances": [b64("red"), 5]}, 400, "b64"),
        (f"{CORNERS}:predict", {"instances": [{"b64": "dGV4dA=="}]}, 415, "not an image"),
        (f"{CORNERS}:predict", {"instances": [b64("red")] * 33}, 400, "33 images"),
        (f"{CORNERS}:predict", {"instances": [{"x": b64("red")}]}, 400, "one input"),
        (f"{PAIR}:classify", {"examples": [{"left": [1, 2], "right": 3}]}, 400, "no labels"),
        (f"{IRIS}:classify", {"examples": []}, 400, "empty"),
        (
            f"{IRIS}:classify",
            {"context": {"features": SETOSA}, "examples": [{"features": SETOSA}]},
            400,
            "in the context and in an example",
        ),
        (f"{IRIS}:regress", {"examples": [{"features": SETOSA}]}, 400, ":predict"),
    ],
)
def test_errors(clients: LiveServer, path: str, body: object, status: int, words: str) -> None:
    response = post(clients, path, body)
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    assert words in response.json()["error"]


def test_not_a_number_goes_in_and_out(clients: LiveServer) -> None:
    body = '{"instances": [{"left": [NaN, -Infinity], "right": 1}]}'
    response = requests.post(f"{clients.url}{PAIR}:predict", body, timeout=60)
    assert response.status_code == 200
    (row,) = json.loads(response.text)["predictions"]
    assert "NaN" in response.text
    assert row["double"][1] == float("-inf")
