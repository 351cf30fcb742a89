"""/v1/recognize in every form in which a frame may come, and what is asked of it."""

import base64
import json
from typing import Any

import numpy as np
import pytest
import requests
from clients import SETOSA, VIRGINICA, frame
from images import encode, picture
from server_process import LiveServer

URL = "/v1/recognize"


def post(clients: LiveServer, **how: Any) -> requests.Response:
    return requests.post(clients.url + URL, timeout=60, **how)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def best(answer: requests.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["predictions"][0]["label"])


def large_image() -> bytes:
    """A red PNG of over 5 MB: noise in the least bits, which doesn't change its label."""
    noise = np.random.default_rng(0).integers(0, 64, (1500, 1500, 3), np.uint8)
    noise[..., 0] = 255 - noise[..., 0]
    return encode(noise, "PNG", compress_level=0)


def test_base64_in_json(clients: LiveServer) -> None:
    answer = post(clients, json={"image_base64": text(frame("cyan")), "camera": "st4"})
    assert best(answer) == "cyan"
    assert answer.json()["camera"] == "st4"
    assert len(answer.json()["predictions"]) == 5


@pytest.mark.parametrize("wrap", [str, lambda t: "data:image/png;base64," + t], ids=["bare", "url"])
def test_base64_forms(clients: LiveServer, wrap: Any) -> None:
    lines = base64.encodebytes(frame("red")).decode()
    assert best(post(clients, json={"image_base64": wrap(text(frame("red")))})) == "red"
    assert best(post(clients, json={"image_base64": wrap(lines)})) == "red"


@pytest.mark.parametrize("kind", ["urlencoded", "multipart"])
def test_base64_in_a_form_field(clients: LiveServer, kind: str) -> None:
    fields = {"image_base64": text(frame("blue")), "parameters": json.dumps({"top_k": 2})}
    how: dict[str, Any] = (
        {"data": fields}
        if kind == "urlencoded"
        else {"files": {name: (None, value) for name, value in fields.items()}}
    )
    answer = post(clients, **how)
    assert best(answer) == "blue"
    assert len(answer.json()["predictions"]) == 2


@pytest.mark.parametrize("sent", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "JSON"])
def test_a_body_that_is_no_form_names_its_type(clients: LiveServer, sent: str) -> None:
    kind = "application/x-www-form-urlencoded"
    body = b'{"image_base64": "aGk="}' if sent == "JSON" else encode(picture(640, 480), sent)
    refused = post(clients, data=body, headers={"Content-Type": kind})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "MISSING_FIELD")
    wanted = "application/json" if sent == "JSON" else "image/jpeg"
    assert f"Content-Type: {wanted}" in refused.json()["error"]["message"]


def test_several_megabytes_of_base64(clients: LiveServer) -> None:
    image = large_image()
    assert len(image) > 5_000_000
    encoded = text(image)
    assert best(post(clients, json={"image_base64": encoded})) == "red"
    assert best(post(clients, data={"image_base64": encoded})) == "red"
    assert best(post(clients, files={"image_base64": (None, encoded)})) == "red"


def test_json_and_multipart_answer_alike(clients: LiveServer) -> None:
    image = encode(picture(), "PNG")
    one = post(clients, json={"image_base64": text(image)}).json()
    other = post(clients, files={"file": image}).json()
    raw = post(clients, data=image, headers={"Content-Type": "image/png"}).json()
    assert one["predictions"] == other["predictions"] == raw["predictions"]


def test_parameters_and_where_they_stand(clients: LiveServer) -> None:
    image = text(frame("green"))
    inside = {"image_base64": image, "parameters": {"top_k": 3, "threshold": 0.0}}
    assert len(post(clients, json=inside).json()["predictions"]) == 3
    assert len(post(clients, json={"image_base64": image, "top_k": 4}).json()["predictions"]) == 4
    over = post(clients, json=inside, params={"top_k": 1})
    assert len(over.json()["predictions"]) == 1


def test_below_the_threshold_nothing_is_named(clients: LiveServer) -> None:
    grey = encode(np.full((30, 40, 3), 128, np.uint8), "PNG")
    answer = post(
        clients, json={"image_base64": text(grey), "parameters": {"threshold": 0.9}}
    ).json()
    assert answer["predictions"] == []
    assert answer["recognized"] is False


def test_model_and_version(clients: LiveServer) -> None:
    image = frame("white")
    how: dict[str, Any] = {"files": {"file": image}}
    assert post(clients, params={"model": "corners", "version": 1}, **how).status_code == 200
    for params in ({"model": "nuts"}, {"model": "corners", "version": 9}):
        answer = post(clients, params=params, **how)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "MODEL_NOT_FOUND")


def test_plain_numbers(clients: LiveServer) -> None:
    answer = post(clients, json={"input": [SETOSA, VIRGINICA], "model": "iris", "top_k": 1}).json()
    assert [row[0]["label"] for row in answer["predictions"]] == ["setosa", "virginica"]
    (output,) = answer["outputs"].values()
    assert np.allclose(np.sum(output, axis=1), 1)
    one = post(clients, json={"input": SETOSA}).json()
    assert one["model"] == "iris"
    assert len(one["predictions"]) == 1


def test_tensors_by_name(clients: LiveServer) -> None:
    value = {"left": [[1.5, 2], [3, 4]], "right": [10, 20]}
    answer = post(clients, json={"input": value, "model": "pair"}).json()
    assert answer["predictions"] is None
    outputs = list(answer["outputs"].values())
    assert [13.5, 27.0] in outputs
    assert [[3.0, 4.0], [6.0, 8.0]] in outputs


def test_numbers_are_counted_by_label_and_admitted(clients: LiveServer) -> None:
    def counted() -> float:
        name = 'lineside_predictions_total{label="virginica",model="iris"}'
        lines = requests.get(clients.url + "/metrics", timeout=60).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    before = counted()
    assert post(clients, json={"input": [VIRGINICA] * 3}).status_code == 200
    assert counted() == before + 3
    late = post(clients, json={"input": [VIRGINICA] * 3, "captured_at": "1", "deadline_ms": 50})
    assert (late.status_code, late.json()["error"]["code"]) == (503, "DEADLINE_EXCEEDED")


PNG = text(frame("red"))


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "one of image_base64"),
        ({"image_base64": PNG, "input": [1]}, 400, "sent together"),
        ({"image_base64": "no base64!"}, 400, "image_base64 is not valid base64"),
        ({"image_base64": PNG[:-3]}, 400, "image_base64 is not valid base64"),
        ({"image_base64": "data:image/png," + PNG}, 400, "not of base64"),
        ({"image_base64": ""}, 415, "empty"),
        ({"image_base64": text(b"text")}, 415, "not an image"),
        ({"image_base64": text(frame("red")[:-40])}, 422, "damaged"),
        ({"image_base64": 5}, 400, "image_base64"),
        ({"image_base64": PNG, "parameters": {"top_k": 0}}, 400, "top_k"),
        ({"image_base64": PNG, "model": "iris"}, 400, "takes numbers"),
        ({"image_url": "http://127.0.0.1/x.png"}, 400, "switched off"),
        ({"input": [1, 2]}, 400, "no model takes numbers of the shape [2]"),
        ({"input": [1, 2], "model": "iris"}, 400, "takes [N, 4], and [2] was sent"),
        ({"input": [[1, 2], [3]], "model": "iris"}, 400, "differ in length"),
        ({"input": [1, 2, 3, "4"], "model": "iris"}, 400, "numbers"),
        ({"input": [1, 2, 3, None], "model": "iris"}, 400, "numbers"),
        ({"input": [1, 2, 3, 1e39], "model": "iris"}, 400, "float32 can't hold"),
        ({"input": {"left": [1, 2]}, "model": "pair"}, 400, "right is missing"),
        ({"input": {"left": [1, 2], "up": 3}, "model": "pair"}, 400, "no input up"),
        ({"input": {"left": [[1, 2]], "right": [1, 2]}, "model": "pair"}, 400, "as many rows"),
        ({"input": {"left": [1, 2], "right": 0.5}, "model": "pair"}, 400, "int32 can't hold"),
        ({"input": {"features": SETOSA}}, 400, "`model`"),
    ],
)
def test_what_can_not_be_used_is_named(
    clients: LiveServer, body: dict[str, Any], status: int, words: str
) -> None:
    answer = post(clients, json=body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"a":' * 50_000])
def test_a_body_that_is_no_json_object(clients: LiveServer, body: bytes) -> None:
    answer = post(clients, data=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"code", "message", "request_id"}
