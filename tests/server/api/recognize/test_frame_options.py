"""What a request asks beside its frame: the same sentence by query, form and JSON, on every way."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from clients import SETOSA, frame
from images import encode, plain
from routes import API
from server_process import LiveServer, live_server

from server.http.routes import Route

ORIGIN = "http://line.example"
RED = encode(plain((255, 0, 0)))
FILE = {"file": ("a.jpg", RED, "image/jpeg")}
BASE64 = base64.b64encode(RED).decode()
BAD = [
    ("deadline", 2, "did you mean deadline_ms?"),
    ("kamera", "1", "did you mean camera?"),
    ("topk", 2, "did you mean top_k?"),
    ("nonsense", 2, "Known: model, version"),
    ("threshold", 1.5, "threshold should be a number from 0 to 1, not 1.5"),
    ("top_k", 0, "top_k should be a whole number from 1 to 1000, not 0"),
    ("top_k", 2.5, "top_k should be a whole number from 1 to 1000, not"),
    ("version", "newest", "version should be a whole number of at least 1, not 'newest'"),
    ("camera", "c" * 129, "camera should be text of at most 128 characters"),
    ("deadline_ms", 0, "deadline_ms should be a number above 0"),
    ("captured_at", 1795897603250, "it is in milliseconds; send seconds, such as 1795897603.25"),
    ("captured_at", 1795897603250000, "it is in microseconds"),
    ("captured_at", "2026-11-28T22:58:22", "it has no time zone"),
    ("captured_at", "2026-11-28T22:58:22 02:00", "%2B"),
]
GOOD = [
    ("top_k", 2.0),
    ("top_k", "2"),
    ("part", 4711),
    ("camera", 3),
    ("threshold", "0.5"),
    ("captured_at", 4102444800),
    ("captured_at", 4102444800.25),
    ("version", 1.0),
]


@pytest.fixture(scope="module")
def site(colors: Path) -> Iterator[LiveServer]:
    with live_server(models=colors, cors_origins=ORIGIN) as server:
        yield server


def ways(name: str, value: object) -> dict[str, dict[str, Any]]:
    """The option as a query string, form and JSON; by the way past Flask, and by Flask."""
    flask, raw = {"Origin": ORIGIN}, {"Content-Type": "image/jpeg"}
    query, text = {name: str(value)}, {"image_base64": BASE64}
    return {
        "raw": {"data": RED, "headers": raw, "params": query},
        "raw by Flask": {"data": RED, "headers": {**raw, **flask}, "params": query},
        "form's query": {"files": FILE, "params": query},
        "form": {"files": FILE, "data": query},
        "form by Flask": {"files": FILE, "data": query, "headers": flask},
        "form of text": {"data": {**text, **query}},
        "JSON's query": {"json": text, "params": query},
        "JSON": {"json": {**text, name: value}},
    }


@pytest.mark.parametrize(("name", "value", "says"), BAD, ids=lambda v: str(v)[:30])
def test_bad_option_is_told_alike_every_way(
    site: LiveServer, name: str, value: object, says: str
) -> None:
    for way, how in ways(name, value).items():
        answer = requests.post(f"{site.url}/v1/recognize", **how, timeout=60)
        assert answer.status_code == 400, (way, answer.text)
        error = answer.json()["error"]
        assert error["code"] == "INVALID_FIELD"
        assert says in error["message"], way
        assert name in error["message"], way


@pytest.mark.parametrize(("name", "value"), GOOD, ids=str)
def test_kind_of_value_is_taken_every_way(site: LiveServer, name: str, value: object) -> None:
    for way, how in ways(name, value).items():
        answer = requests.post(f"{site.url}/v1/recognize", **how, timeout=60)
        assert answer.status_code == 200, (way, answer.text)
        if name in ("part", "camera"):
            assert answer.json()[name] == str(value)
        if name == "top_k":
            assert len(answer.json()["predictions"]) == 2


@pytest.mark.parametrize(
    "route",
    [route for route in API if not route.foreign],
    ids=lambda route: f"{route.method} {route.path}",
)
def test_own_route_refuses_an_unknown_name(site: LiveServer, route: Route) -> None:
    url = site.url + re.sub(r"{(\w+)}", "1", route.path)
    if route.path.startswith("/v1/"):
        for params, status in (({"kamera": "1"}, 400), ({"_": "1"}, None)):
            how: dict[str, Any] = {"data": RED, "headers": {"Content-Type": "image/jpeg"}}
            how = how if route.bodies else {}
            answer = requests.request(
                route.method, url, params=params, **how, timeout=60, stream=True
            )
            if answer.headers["Content-Type"].startswith("text/event-stream"):
                answer.close()  # it goes on for a minute
                assert status is None
                continue
            if status is None:
                assert "_ is not known" not in answer.text
                continue
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (status, "INVALID_FIELD")
            assert error["message"].startswith("kamera is not known here")
    else:
        answer = requests.request(route.method, url, params={"kamera": "1"}, timeout=60)
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("path", "how"),
    [
        ("/classify", {"files": {"image": frame("red")}}),
        ("/api/recognize", {"files": {"file": frame("red")}, "data": {"note": "x"}}),
        ("/predict", {"json": {"features": SETOSA, "note": "x"}}),
        ("/v1/models/iris:predict", {"json": {"instances": [SETOSA], "note": "x"}}),
    ],
)
def test_route_of_another_protocol_ignores_a_name(
    clients: LiveServer, path: str, how: dict[str, Any]
) -> None:
    answer = requests.post(clients.url + path, params={"kamera": "1"}, **how, timeout=60)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("path", "how", "name"),
    [
        ("/v1/recognize/batch", {"files": FILE, "data": {"kamera": "1"}}, "kamera"),
        ("/v1/recognize/batch", {"files": FILE, "data": {"webhook": "x"}}, "webhook"),
        ("/v1/recognize", {"files": {**FILE, "mask": RED}}, "mask"),
        ("/v1/jobs", {"files": FILE, "data": {"kamera": "1"}}, "kamera"),
        ("/v1/jobs", {"json": {"image_base64": BASE64, "webhok": "x"}}, "webhok"),
        ("/v1/jobs", {"data": {"image_base64": BASE64, "webhok": "x"}}, "webhok"),
        ("/v1/recognize", {"json": {"image_base64": BASE64, "parameters": {"topk": 1}}}, "top_k"),
        ("/v1/recognize", {"data": {"image_base64": BASE64, "parameters": '{"a": 1}'}}, "a"),
        ("/v1/recognize", {"files": FILE, "data": {"parameters": '{"topk": 1}'}}, "topk"),
        ("/v1/models/colors/activate", {"json": {"versoin": 1}}, "versoin"),
        ("/v1/models/colors/load", {"json": {"versoin": 1}}, "versoin"),
        ("/v1/models/colors/rollback", {"json": {"version": 1}}, "version"),
        ("/v1/models/colors/rollback", {"params": {"version": 1}}, "version"),
    ],
)
def test_unknown_name_in_a_body_is_refused(
    site: LiveServer, path: str, how: dict[str, Any], name: str
) -> None:
    answer = requests.post(site.url + path, **how, timeout=60)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "INVALID_FIELD"
    assert name in answer.json()["error"]["message"]
    assert "not known here" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/recognize", "/v1/recognize/batch", "/v1/jobs"])
def test_form_without_its_file_lists_what_came(site: LiveServer, path: str) -> None:
    answer = requests.post(site.url + path, data={"station": "4", "shift": "2"}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "MISSING_FIELD")
    assert "station, shift" in answer.json()["error"]["message"]


def test_form_with_another_file_lists_it(site: LiveServer) -> None:
    answer = requests.post(f"{site.url}/v1/recognize", files={"photo": RED}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "MISSING_FIELD")
    assert "photo" in answer.json()["error"]["message"]


def test_file_and_text_image_together_are_refused(site: LiveServer) -> None:
    how: dict[str, Any] = {"files": FILE, "data": {"image_base64": BASE64}}
    answer = requests.post(f"{site.url}/v1/recognize", **how, timeout=60)
    assert answer.status_code == 400


def test_parameters_count_beside_a_file_too(site: LiveServer) -> None:
    how: dict[str, Any] = {"files": FILE, "data": {"parameters": '{"top_k": 1}'}}
    answer = requests.post(f"{site.url}/v1/recognize", **how, timeout=60)
    assert len(answer.json()["predictions"]) == 1


@pytest.mark.parametrize(
    "body", [b"{", b'{"a" 1}', b"\xff", b"[" * 5000, b'{"top_k": 1e999}', b'{"part": "\\ud800"}']
)
def test_broken_json_is_told_in_our_words(site: LiveServer, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    for path in ("/v1/recognize", "/v1/jobs", "/v1/models/colors/activate"):
        answer = requests.post(site.url + path, body, headers=headers, timeout=60)
        assert answer.status_code == 400
        for word in ("malformed", "truncated", "codec", "Expected", "recursion"):
            assert word not in answer.text


V2 = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": SETOSA, "parameters": None}


def test_null_is_absence_in_the_open_inference_protocol(clients: LiveServer) -> None:
    meta = requests.get(f"{clients.url}/v2/models/iris", timeout=60).json()
    inputs = [{**V2, "name": meta["inputs"][0]["name"]}]
    output = {"name": meta["outputs"][0]["name"], "parameters": None}
    for outputs in (None, [output], [{**output, "parameters": {"classification": None}}]):
        for parameters in (None, {"timeout": None, "binary_data_output": None}):
            body: dict[str, Any] = {
                "inputs": inputs,
                "parameters": parameters,
                "outputs": outputs,
                "id": None,
            }
            answer = requests.post(f"{clients.url}/v2/models/iris/infer", json=body, timeout=60)
            assert answer.status_code == 200, answer.text


def test_wrong_parameter_of_the_protocol_is_named(clients: LiveServer) -> None:
    meta = requests.get(f"{clients.url}/v2/models/iris", timeout=60).json()
    inputs = [{**V2, "name": meta["inputs"][0]["name"]}]
    for name, value in (
        ("timeout", True),
        ("timeout", "1"),
        ("timeout", -1),
        ("binary_data_output", "false"),
    ):
        body: dict[str, Any] = {"inputs": inputs, "parameters": {name: value}}
        answer = requests.post(f"{clients.url}/v2/models/iris/infer", json=body, timeout=60)
        assert answer.status_code == 400
        assert answer.json()["error"].startswith(name)


def test_null_is_absence_in_tensorflow_serving(clients: LiveServer) -> None:
    bodies: tuple[tuple[str, dict[str, Any]], ...] = (
        ("predict", {"signature_name": None, "instances": [SETOSA], "inputs": None}),
        ("classify", {"signature_name": None, "context": None, "examples": [{"input": SETOSA}]}),
    )
    for path, body in bodies:
        answer = requests.post(f"{clients.url}/v1/models/iris:{path}", json=body, timeout=60)
        expected = {k: v for k, v in body.items() if v is not None}
        other = requests.post(f"{clients.url}/v1/models/iris:{path}", json=expected, timeout=60)
        assert (answer.status_code, answer.json()) == (other.status_code, other.json())
