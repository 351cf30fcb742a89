"""Rates by key and by address: how many requests pass, and what the refused ones are told."""

import re
from pathlib import Path

import pytest
from flask import Flask
from sites import NOW, Site, error, make_app
from werkzeug.test import TestResponse

from server.errors import SettingsError
from server.store.keys import PREFIX, add_key


def metrics_of(app: Flask) -> str:
    """The page of metrics, as another machine than the test's client asks for it."""
    client = app.test_client()
    return client.get("/metrics", environ_overrides={"REMOTE_ADDR": "127.0.0.2"}).text


def test_limits_are_kept_apart_and_told(colors: Path, tmp_path: Path) -> None:
    site = Site(colors, tmp_path, rate_per_key="5/minute")
    fast = add_key(site.keys_file, "fast", ["admin"], now=NOW, rate="7/minute")

    def ask(key: str, times: int) -> list[TestResponse]:
        return [site.bearer(key, "/v1/models") for _ in range(times)]

    assert [a.status_code for a in ask(site.keys["admin"], 6)] == [200] * 5 + [429]
    assert [a.status_code for a in ask(site.keys["recognize"], 5)] == [200] * 5
    assert [a.status_code for a in ask(fast, 8)] == [200] * 7 + [429]
    refused = site.bearer(site.keys["admin"], "/v1/models")
    assert error(refused)["code"] == "RATE_LIMITED"
    assert refused.headers["RateLimit-Policy"] == '"key";q=5;w=60'
    assert re.fullmatch(r'"key";r=0;t=\d+', refused.headers["RateLimit"])
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    last = ask(site.keys["metrics"], 1)[0]
    assert last.headers["RateLimit"].startswith('"key";r=4;t=')
    assert site.bearer(site.keys["admin"], "/livez").status_code == 200


def test_keys_can_not_be_tried_at_any_speed(colors: Path, tmp_path: Path) -> None:
    site = Site(colors, tmp_path, rate_per_address="10/minute")
    tried = [site.bearer(f"{PREFIX}{n}", "/v1/models").status_code for n in range(12)]
    assert tried == [401] * 10 + [429] * 2
    other = {"REMOTE_ADDR": "192.0.2.9"}
    answer = site.app.test_client().get("/v1/models", environ_overrides=other)
    assert answer.status_code == 401


def test_paths_that_lead_nowhere_count_for_the_rate(colors: Path, tmp_path: Path) -> None:
    app = make_app(colors, tmp_path / "none", rate_per_address="9/minute")
    client = app.test_client()

    def tried(number: int) -> int:
        method, path = (("GET", f"/no/{number}"), ("PUT", "/v1/models"), ("POST", "/v1/journal"))[
            number % 3
        ]
        return client.open(path, method=method).status_code

    assert [tried(number) for number in range(9)] == [404, 405, 405] * 3
    assert [tried(number) for number in range(3)] == [429] * 3
    answer = client.get("/v1/models")
    assert (answer.status_code, error(answer)["code"]) == (429, "RATE_LIMITED")
    assert answer.headers["RateLimit-Policy"] == '"address";q=9;w=60'
    assert client.get("/livez").status_code == 200
    routes = set(re.findall(r'lineside_requests_total{route="([^"]*)"', metrics_of(app)))
    assert routes <= {"unmatched", "/v1/models", "/livez"}


def test_a_rate_that_is_none_stops_the_start(colors: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="rate_per_key can't be 'fast'"):
        make_app(colors, tmp_path / "none", rate_per_key="fast")
