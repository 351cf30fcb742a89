"""Every route's errors: Lineside's own shape on its own routes, the protocol's on the others."""

import re
from typing import Any

import pytest
import requests
from routes import API
from server_process import LiveServer

from server.http.routes import Route

FILLED = {
    "name": "corners",
    "version": "1",
    "label": "stable",
    "file": "red.jpg",
    "sample": "000000001-0123456789abcdef",
    "job": "x",
}
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH")

# Requests to these are whole without a body.
BODILESS = (
    *("/load", "/unload", "/rollback", "/trigger", "/v1/products/{name}/activate"),
    "/v1/outputs/{name}/test",
    "/v2/repository/index",
)
# How those answer that refuse without a look at the body: no model here can do it.
UNREAD = {":regress": 400}
# What is asked of a model that is not there makes it.
MAKES = "/upload"


def fill(path: str, **changes: str) -> str:
    return re.sub(r"{(\w+)}", lambda found: {**FILLED, **changes}[found[1]], path)


def check(answer: requests.Response, foreign: bool) -> None:
    assert answer.headers["Content-Type"] == "application/json", answer.text
    body: dict[str, Any] = answer.json()
    assert list(body) == ["error"]
    if foreign:
        assert isinstance(body["error"], str)
        assert body["error"]
    else:
        assert set(body["error"]) == {"code", "message", "request_id"}
        assert re.fullmatch("[A-Z_]+", body["error"]["code"])
        assert body["error"]["request_id"] == answer.headers["X-Request-Id"]


def by_path() -> dict[str, list[Route]]:
    found: dict[str, list[Route]] = {}
    for route in API:
        found.setdefault(route.path, []).append(route)
    return found


@pytest.mark.parametrize("path", by_path())
def test_a_wrong_method(clients: LiveServer, path: str) -> None:
    known = {route.method for route in by_path()[path]}
    for method in set(METHODS) - known:
        answer = requests.request(method, clients.url + fill(path), timeout=60)
        assert answer.status_code == 405
        check(answer, by_path()[path][0].foreign)
        assert known <= set(answer.headers["Allow"].split(", "))


@pytest.mark.parametrize(
    "path", [path for path in by_path() if "{name}" in path and not path.endswith(MAKES)]
)
def test_an_unknown_model(clients: LiveServer, path: str) -> None:
    for route in by_path()[path]:
        url = clients.url + fill(path, name="nuts")
        body = {"version": 1} if path.endswith("{name}/activate") and "models" in path else None
        body = {} if (route.method, path) == ("POST", "/v1/cameras/{name}") else body
        answer = requests.request(route.method, url, json=body, timeout=60)
        assert answer.status_code == 404
        check(answer, route.foreign)


@pytest.mark.parametrize("path", [path for path in by_path() if "{version}" in path])
def test_a_version_that_does_not_serve(clients: LiveServer, path: str) -> None:
    for version in ("7", "x", "0"):
        for route in by_path()[path]:
            url = clients.url + fill(path, version=version)
            answer = requests.request(route.method, url, timeout=60)
            assert answer.status_code == 404
            check(answer, route.foreign)


@pytest.mark.parametrize(
    "path",
    [
        path
        for path, (o, *_) in by_path().items()
        if o.method == "POST" and not path.endswith(BODILESS)
    ],
)
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b""),
        ("application/json", b"\xff["),
        ("application/json", b"[1]"),
        ("multipart/form-data; boundary=x", b"no parts"),
        ("multipart/form-data", b""),
        ("application/x-www-form-urlencoded", b"a=1"),
        ("image/jpeg", b"text"),
        ("application/octet-stream", b""),
    ],
)
def test_a_body_that_can_not_be_used(
    clients: LiveServer, path: str, kind: str, body: bytes
) -> None:
    answer = requests.post(
        clients.url + fill(path), body, headers={"Content-Type": kind}, timeout=60
    )
    assert answer.status_code in (400, 413, 415)
    check(answer, by_path()[path][0].foreign)


@pytest.mark.parametrize(
    "path", [path for path, (o, *_) in by_path().items() if o.method == "POST"]
)
def test_a_body_that_is_too_large(clients: LiveServer, path: str) -> None:
    kind = "application/x-tar" if path.endswith(MAKES) else "application/json"
    answer = requests.post(
        clients.url + fill(path), bytes(17_000_000), headers={"Content-Type": kind}, timeout=60
    )
    expected = next((status for end, status in UNREAD.items() if path.endswith(end)), 413)
    assert answer.status_code == expected
    check(answer, by_path()[path][0].foreign)


@pytest.mark.parametrize(
    ("path", "foreign"),
    [
        ("/nowhere", False),
        ("/v1/nowhere", False),
        ("/v1/models/corners/nowhere", False),
        ("/v1/models/corners/samples/nowhere.jpg", False),
        ("/console/nowhere.js", False),
        ("/v2/nowhere", True),
        ("/v2/models/corners/nowhere", True),
        ("/api/nowhere", True),
        ("/v1/models/corners:explode", True),
    ],
)
def test_an_unknown_path(clients: LiveServer, path: str, foreign: bool) -> None:
    answer = requests.get(clients.url + path, timeout=60)
    assert answer.status_code == 404
    check(answer, foreign)
