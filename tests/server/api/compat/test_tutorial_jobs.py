"""Clients as the readers of each tutorial would have written them, against a live server and its
worker."""

import base64
from pathlib import Path
from typing import Any

import pytest
import requests
from clients import SETOSA, frame
from images import huge_png
from job_workers import await_that
from server_process import LiveServer, live_server


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "frame.png"
    path.write_bytes(frame("yellow"))
    return path


def poll(url: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The last answer, and those before it, as a tutorial's loop asks for them."""
    answers: list[dict[str, Any]] = []

    def ended() -> bool:
        answers.append(requests.get(url, timeout=60).json())
        return answers[-1]["status"] in ("SUCCESS", "FAILURE")

    await_that(ended, "the end of the task")
    return answers[-1], answers[:-1]


def check_labels(result: dict[str, Any]) -> None:
    assert result["status"] == "Completed"
    predictions = result["predictions"]
    assert len(predictions) == 5
    assert predictions[0]["label"] == "yellow"
    for found in predictions:
        assert list(found) == ["label", "probability"]
        assert found["probability"] == f"{float(found['probability']):.4f}"


def test_recognize_async(clients: LiveServer, image: Path) -> None:
    with image.open("rb") as file:
        response = requests.post(
            f"{clients.url}/api/recognize_async", files={"file": file}, timeout=60
        )
    assert response.status_code == 202
    assert list(response.json()) == ["task_id"]
    task = response.json()["task_id"]
    answer, before = poll(f"{clients.url}/results/{task}")
    assert list(answer) == ["task_id", "status", "result"]
    assert (answer["task_id"], answer["status"]) == (task, "SUCCESS")
    check_labels(answer["result"])
    assert {found["status"] for found in before} <= {"PENDING", "PROGRESS"}
    for found in before:
        assert ("progress" in found) is (found["status"] == "PROGRESS")


def test_the_stage_of_a_frame_at_a_worker_is_told(client_models: Path) -> None:
    settings = {"model": "corners", "max_pixels": 8_000**2, "job_workers": 1}
    with live_server(models=client_models, **settings) as server:
        files = {"file": huge_png(8_000)}

        def told() -> bool:
            """Whether the stage could be seen before the task ended."""
            answer = requests.post(f"{server.url}/api/recognize_async", files=files, timeout=60)
            task = answer.json()["task_id"]
            _, before = poll(f"{server.url}/results/{task}")
            decoding = {"status": "Decoding image..."}
            return {"task_id": task, "status": "PROGRESS", "progress": decoding} in before

        await_that(told, "the stage")


def test_predict_later(clients: LiveServer, image: Path) -> None:
    with image.open("rb") as file:
        response = requests.post(f"{clients.url}/predict", files={"image": file}, timeout=60)
    assert response.status_code == 202
    assert list(response.json()) == ["message", "task_id", "status_url"]
    answer, _ = poll(clients.url + response.json()["status_url"])
    check_labels(answer["result"])


def test_predict_at_once_stays(clients: LiveServer, image: Path) -> None:
    with image.open("rb") as file:
        response = requests.post(f"{clients.url}/predict", files={"file": file}, timeout=60)
    assert (response.status_code, response.json()["class_name"]) == (200, "yellow")


@pytest.mark.parametrize("kind", ["image_base64", "input"])
def test_start_task(clients: LiveServer, image: Path, kind: str) -> None:
    text = base64.b64encode(image.read_bytes()).decode()
    body = {"image_base64": f"data:image/png;base64,{text}"} if kind == "image_base64" else {}
    response = requests.post(
        f"{clients.url}/start-task", json=body or {"input": SETOSA}, timeout=60
    )
    assert response.status_code == 202
    started = response.json()
    assert list(started) == ["message", "task_id", "status_url"]
    answer, before = poll(clients.url + started["status_url"])
    assert list(answer) == ["task_id", "status", "result"]
    assert answer["task_id"] == started["task_id"]
    assert all("info" in found for found in before)
    if kind == "image_base64":
        check_labels(answer["result"])
    else:
        assert answer["result"]["predictions"][0]["label"] == "setosa"
        (rows,) = answer["result"]["outputs"].values()
        assert sum(rows[0]) == pytest.approx(1, abs=1e-5)


def test_a_damaged_image(clients: LiveServer) -> None:
    data = frame("yellow")
    damaged = data[:45] + bytes(len(data) - 61) + data[-16:]  # pixels alone; headers are read first
    response = requests.post(f"{clients.url}/predict", files={"image": damaged}, timeout=60)
    task = response.json()["task_id"]
    answer, _ = poll(f"{clients.url}/results/{task}")
    assert list(answer) == ["task_id", "status", "error"]
    assert answer["status"] == "FAILURE"
    info = requests.get(f"{clients.url}/task-status/{task}", timeout=60).json()
    assert (info["status"], info["info"]) == ("FAILURE", answer["error"])


@pytest.mark.parametrize(
    ("path", "how", "status", "words"),
    [
        ("/api/recognize_async", {}, 400, "No file uploaded"),
        ("/predict", {"files": {"image": b"text"}}, 415, "not an image"),
        ("/start-task", {"json": {}}, 400, "either `image_base64` or `input`"),
        ("/start-task", {"json": {"input": [1, 2]}}, 400, "no model takes numbers"),
        ("/start-task", {"json": {"image_base64": "?"}}, 400, "base64"),
    ],
)
def test_errors_are_plain(
    clients: LiveServer, path: str, how: dict[str, Any], status: int, words: str
) -> None:
    response = requests.post(clients.url + path, timeout=60, **how)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert words in response.json()["error"]


def test_an_unknown_task(clients: LiveServer) -> None:
    for path in ("/results/x", "/task-status/x"):
        response = requests.get(clients.url + path, timeout=60)
        assert response.status_code == 404
        assert "no job x" in response.json()["error"]
