"""A model whose output is not finite for some frames: an error on every route, never a label."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from images import encode, plain
from job_workers import settled, submit
from server_process import LiveServer, live_server
from tiny_models import MakeModel, write_bundle

from server.recognition.manifest import VerdictPolicy

GREEN, BLACK = (encode(plain(color), "PNG") for color in ((0, 255, 0), (0, 0, 0)))
CODE = "MODEL_OUTPUT_INVALID"


@pytest.fixture(scope="module")
def unsound(
    tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server whose model accepts every label, and gives NaN for any but a dark frame."""
    models: Path = tmp_path_factory.mktemp("unsound")
    write_bundle(
        models / "colors" / "1",
        tiny_model("nan_if_bright"),
        verdict=VerdictPolicy(accept=("red", "green", "blue"), min_probability=0),
    )
    with live_server(models=models) as server:
        yield server


def test_output_not_finite_is_an_error_with_a_code(unsound: LiveServer) -> None:
    assert unsound.recognize(BLACK).json()["verdict"] == "pass"
    answer = unsound.recognize(GREEN)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (500, CODE)
    assert "version 1 of colors for this frame is not finite" in error["message"]
    assert unsound.recognize(BLACK).status_code == 200
    line = unsound.request_line(error["request_id"])
    assert line["code"] == CODE
    assert not [line for line in unsound.lines if "Warning" in line.get("text", "")]


def test_output_not_finite_in_a_batch_and_a_job(unsound: LiveServer) -> None:
    files = [("file", ("green.png", GREEN)), ("file", ("black.png", BLACK))]
    url = f"{unsound.url}/v1/recognize/batch"
    first, second = requests.post(url, files=files, timeout=60).json()["results"]
    assert first["error"]["code"] == CODE
    assert "error" not in second or second["error"] is None
    job = settled(unsound, submit(unsound, GREEN))
    assert (job["status"], job["error"]["code"]) == ("failed", CODE)


@pytest.mark.parametrize("path", ["/api/recognize", "/api/recognize_cached", "/classify"])
def test_output_not_finite_on_tutorials_routes(unsound: LiveServer, path: str) -> None:
    field = "image" if path == "/classify" else "file"
    answer = requests.post(unsound.url + path, files={field: ("a.png", GREEN)}, timeout=60)
    assert answer.status_code >= 400, answer.text
    assert "green" not in answer.text


def test_output_not_finite_on_protocols_routes(unsound: LiveServer) -> None:
    text = base64.b64encode(GREEN).decode()
    image = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": [text]}
    bodies: dict[str, Any] = {
        "/v2/models/colors/infer": {"inputs": [image]},
        "/v1/models/colors:predict": {"instances": [{"b64": text}]},
        "/v1/models/colors:classify": {"examples": [{"image": {"b64": text}}]},
    }
    for path, body in bodies.items():
        answer = requests.post(unsound.url + path, json=body, timeout=60)
        assert answer.status_code >= 400, (path, answer.text)
