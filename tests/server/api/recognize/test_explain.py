"""POST /v1/explain: where a classifier looked, beside the line."""

import base64
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import requests
from server_process import LiveServer

from server.api.recognize.explain import Turns
from server.errors import OverloadedError
from server.recognition.admission import Admission


def ask(server: LiveServer, data: bytes, **query: str) -> requests.Response:
    url = server.url + "/v1/explain"
    return requests.post(url, files={"file": data}, params=query, timeout=60)


def frames(server: LiveServer) -> float:
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in requests.get(server.url + "/metrics", timeout=60).text.splitlines()
        if line.startswith(("lineside_predictions_total", "lineside_frames_refused_total"))
    )


def test_a_scratch_is_where_the_model_looks(server: LiveServer, shipped: Path) -> None:
    """The scratch of the sample runs through the upper middle; its corners show the belt."""
    data = (shipped / "samples" / "scratched.jpg").read_bytes()
    before = frames(server)
    answer = ask(server, data)
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    assert (shown["model"], shown["label"]) == ("parts", "scratched")
    assert shown["box"] == [0, 0, 640, 480]
    places = np.array(shown["places"])
    row, column = np.unravel_index(places.argmax(), places.shape)
    assert places.shape == np.array(shown["without"]).shape == (8, 8)
    assert row in (2, 3, 4)
    assert column in (4, 5)
    assert places[[0, 0, -1, -1], [0, -1, 0, -1]].max() < places.max() / 10
    png = np.frombuffer(base64.b64decode(shown["input"]), np.uint8)
    decoded = cv2.imdecode(png, cv2.IMREAD_COLOR)
    assert decoded is not None
    assert decoded.shape == (224, 224, 3)
    # It was no frame of the line.
    assert frames(server) == before


def test_other_tasks_show_their_input_alone(server: LiveServer, shipped: Path) -> None:
    data = (shipped.parents[1] / "surface" / "1" / "samples" / "scratch-1.jpg").read_bytes()
    shown = ask(server, data, model="surface").json()
    assert (shown["label"], shown["places"]) == (None, [])
    assert shown["input"]


def test_faults_have_their_errors(server: LiveServer) -> None:
    for data, query, status in (
        (b"", {}, 400),
        (b"no image", {}, 415),
        (b"\xff\xd8\xff\xe0 cut off", {}, 422),
        (b"\xff\xd8\xff", {"model": "nuts"}, 404),
        (b"\xff\xd8\xff", {"model": "iris"}, 400),
        (b"\xff\xd8\xff", {"camera": "a"}, 400),
    ):
        url = server.url + "/v1/explain"
        kind = {"Content-Type": "image/jpeg"}
        answer = requests.post(url, data=data, params=query, headers=kind, timeout=60)
        assert answer.status_code == status, (data, query, answer.text)


def test_frames_of_the_line_go_first() -> None:
    """While they need all interpreters, nothing is explained."""
    admission, go, began = Admission(1, 8), threading.Event(), threading.Event()

    def work(_: float) -> None:
        began.set()
        assert go.wait(60)

    line = threading.Thread(target=lambda: admission.run(work, float("inf")))
    line.start()
    assert began.wait(60)
    with pytest.raises(OverloadedError), Turns(admission, 0.0).take():
        pass
    go.set()
    line.join()
    with Turns(admission, float("inf")).take():
        assert admission.busy == 1
    assert admission.busy == 0
