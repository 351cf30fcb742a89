"""Requests without a key: which names and which pages are let in, on every route there is."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import pytest
import requests
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st
from images import encode, plain
from routes import route_of
from server_process import live_server
from sites import paths

from server.app import create_app
from server.config.settings import Settings
from server.errors import SettingsError
from server.http.access.origins import OriginCheck, own_names, parse_host, parse_origin
from server.http.routes import ADMIN, OPEN, Route
from server.store.keys import RIGHTS, add_key

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RED = encode(plain((255, 0, 0)), "PNG")
LISTED = "https://mes.example"
PORT = 8080
Case = TypeVar("Case")

# Of the Host header: whether it is let in on admin routes, on the others, and on those of a server
# that listens for other machines with auth off.
HOSTS = {
    "localhost": (True, True, True),
    "LOCALHOST:8080": (True, True, True),
    "localhost.": (True, True, True),
    "app.localhost:8080": (True, True, True),
    "127.0.0.1:8080": (True, True, True),
    "127.8.8.8": (True, True, True),
    "[::1]:8080": (True, True, True),
    "192.168.1.20:8080": (True, True, True),
    "[fd00::20]": (True, True, True),
    "lineside.plant.example": (True, True, True),
    "a.b.wild.example:443": (True, True, True),
    # A service of Docker or Kubernetes: no public name server knows it.
    "lineside:8080": (False, True, True),
    "st4.local:8080": (False, False, True),
    "lineside.production.svc": (False, False, True),
    "evil.example": (False, False, False),
    "evil.example:8080": (False, False, False),
    "wild.example.evil.example": (False, False, False),
    "localhost.evil.example": (False, False, False),
    "127.0.0.1.evil.example": (False, False, False),
    "xlocalhost.example": (False, False, False),
    "evil.example#localhost": (False, False, False),
    "evil.example@localhost": (False, False, False),
    "localhost,evil.example": (False, False, False),
    "[": (False, False, False),
    "[::1": (False, False, False),
    "local host": (False, False, False),
    "": (True, True, True),
    "localhost:port": (False, False, False),
    "a." * 150 + "example": (False, False, False),
}
# Of Origin and Sec-Fetch-Site, of a request to localhost:8080.
PAGES: list[tuple[str | None, str | None, bool]] = [
    (None, None, True),
    (None, "same-origin", True),
    (None, "none", True),
    (None, "same-site", False),
    (None, "cross-site", False),
    (None, "anything", False),
    ("http://localhost:8080", None, True),
    ("https://localhost:8080", "same-origin", True),
    ("http://LOCALHOST:8080", None, True),
    (LISTED, None, True),
    (LISTED, "cross-site", True),
    ("http://localhost:8080", "cross-site", False),
    ("http://localhost:3000", "same-site", False),
    ("http://localhost", None, False),
    ("http://mes.example", None, False),
    ("https://evil.example", None, False),
    ("https://evil.example", "same-origin", False),
    ("https://evil.example", "none", False),
    ("https://mes.example.evil.example", "cross-site", False),
    ("null", None, False),
    ("", None, False),
    ("http://[", None, False),
    ("http://[::1", None, False),
    ("http://localhost:8080/", None, False),
    ("http://localhost:99999999", None, False),
    ("http://user@localhost:8080", None, False),
    ("file://", None, False),
    ("chrome-extension://abcdef", "none", False),
    ("\u00e9://\u00ff", None, False),
]


def make_app(models: Path, folder: Path, **settings: Any) -> Flask:
    made = Settings(
        models=str(models),
        keys_file=str(folder / "keys.jsonl"),
        data=str(folder / "data"),
        interpreters=1,
        wide_interpreter=False,
        cors_origins=(LISTED,),
        allowed_hosts=("lineside.plant.example", "*.wild.example"),
        **settings,
    )
    return create_app(made)


@pytest.fixture(scope="module")
def unguarded(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Flask:
    return make_app(colors, tmp_path_factory.mktemp("unguarded"))


@pytest.fixture(scope="module")
def everyone(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Flask:
    return make_app(colors, tmp_path_factory.mktemp("everyone"), auth="off", host="0.0.0.0")


def status(app: Flask, path: str, method: str, headers: dict[str, str], **how: Any) -> int:
    """Of a request of this machine with a body that a page may send anywhere."""
    if method != "GET" and "data" not in how:
        how |= {"data": b"{}", "content_type": "text/plain"}
    host = headers.get("Host", f"localhost:{PORT}")
    rest = {name: value for name, value in headers.items() if name != "Host"}
    environ = {"HTTP_HOST": host, "REMOTE_ADDR": "127.0.0.1"}
    client = app.test_client()
    with client.open(path, method=method, headers=rest, environ_overrides=environ, **how) as answer:
        return answer.status_code


def tried(
    app: Flask, cases: Sequence[Case], kind: Callable[[Case], Hashable]
) -> Iterator[tuple[str, str, Route, Sequence[Case]]]:
    """Every route as (path, method, route, cases to try there).

    The first route of each right has all cases. Each other one has a case of each kind, another one
    than the route before it: what a header says is read by the same code on all of them."""
    kinds: dict[Hashable, list[Case]] = {}
    for case in cases:
        kinds.setdefault(kind(case), []).append(case)
    in_turn = [cycle(each) for each in kinds.values()]
    seen = set()
    for rule, path, method in paths(app):
        route = route_of(method, rule)
        first = (right := (route.rights, route.unguarded)) not in seen
        seen.add(right)
        yield path, method, route, cases if first else [next(each) for each in in_turn]


def test_every_route_checks_the_name_it_is_asked_under(unguarded: Flask, everyone: Flask) -> None:
    wrong = []
    for path, method, route, hosts in tried(unguarded, list(HOSTS), HOSTS.__getitem__):
        for host in hosts:
            admin, others, everywhere = HOSTS[host]
            expected = admin if route.rights == ADMIN else others
            for app, allowed in ((unguarded, expected), (everyone, everywhere)):
                answered = status(app, path, method, {"Host": host})
                if (answered != 403) is not (allowed or route.unguarded):
                    wrong.append((path, method, host, answered))
    assert wrong == []


def test_every_route_checks_whose_page_asks(unguarded: Flask, everyone: Flask) -> None:
    wrong = []
    for path, method, route, pages in tried(unguarded, PAGES, lambda page: page[2]):
        for origin, site, allowed in pages:
            headers = {"Origin": origin, "Sec-Fetch-Site": site}
            given = {name: value for name, value in headers.items() if value is not None}
            for app in (unguarded, everyone):
                answered = status(app, path, method, given)
                if (answered != 403) is not (allowed or route.unguarded):
                    wrong.append((path, method, given, answered))
    assert wrong == []


def test_a_key_is_enough_on_every_route(colors: Path, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.jsonl", "all", RIGHTS, now=NOW)
    app = make_app(colors, tmp_path)
    foreign = {"Host": "any.plant.example", "Origin": "https://any.example"}
    foreign["Sec-Fetch-Site"] = "cross-site"
    for rule, path, method in paths(app):
        assert status(app, path, method, foreign | {"X-API-Key": key}) not in (401, 403), rule
        expected_401 = route_of(method, rule).rights != OPEN
        assert (status(app, path, method, foreign) == 401) is expected_401, rule


def test_a_link_leads_to_pages_alone(unguarded: Flask) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    statuses = {
        rule: status(unguarded, path, method, link)
        for rule, path, method in paths(unguarded)
        if method == "GET"
    }
    for page in ("/", "/docs", "/openapi.json"):
        assert statuses[page] == 200
    for data in ("/v1/jobs", "/metrics", "/v1/models", "/v1/journal", "/results/<job>"):
        assert statuses[data] == 403


def test_pages_can_start_no_job_and_no_frame(unguarded: Flask) -> None:
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
    ):
        for path in ("/v1/recognize", "/v1/jobs", "/classify", "/start-task"):
            for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
                how = {"data": RED, "content_type": kind}
                assert status(unguarded, path, "POST", headers, **how) == 403


def test_a_live_server_lets_its_own_clients_in(colors: Path) -> None:
    """By the fast path, and beside it."""
    with live_server(models=colors, allowed_hosts="lineside.plant.example") as server:
        own = f"http://localhost:{server.port}"
        for headers, expected in (
            ({}, 200),
            ({"Host": "lineside.plant.example"}, 200),
            ({"Host": "lineside:8080"}, 200),
            ({"Host": f"localhost:{server.port}", "Origin": own}, 200),
            ({"Host": f"localhost:{server.port}", "Sec-Fetch-Site": "same-origin"}, 200),
            ({"Host": "evil.example"}, 403),
            ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
            ({"Origin": "http://["}, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
        ):
            kinds = ({"data": RED, "headers": {"Content-Type": "image/png", **headers}},)
            for how in (*kinds, {"files": {"file": RED}, "headers": headers}):
                for path in ("/v1/recognize", "/api/recognize"):
                    if "files" in how or path == "/v1/recognize":
                        answer = requests.post(server.url + path, timeout=60, **how)
                        assert answer.status_code == expected, (path, headers, answer.text)
        refused = requests.get(
            server.url + "/v1/jobs", headers={"Host": "evil.example"}, timeout=60
        ).json()
        assert "allowed_hosts" in refused["error"]["message"]


@given(st.text() | st.text(st.sampled_from("htps:/[].@#abc01%, -_")))
def test_no_header_makes_the_parsers_raise(text: str) -> None:
    for parse in (parse_host, parse_origin):
        parse(text)
        parse(f"http://{text}")
        parse(f"http://[{text}")
    check = OriginCheck(Settings(), loopback=True)
    environ = {"HTTP_HOST": text, "HTTP_ORIGIN": f"http://{text}", "HTTP_SEC_FETCH_SITE": text}
    assert isinstance(check.refusal(environ), str)


@pytest.mark.parametrize(
    "entry", ["http://a.example", "a.example:80", "a b", "", "*.", "*x", "[::1"]
)
def test_an_allowed_host_that_is_no_name_stops_the_start(entry: str) -> None:
    with pytest.raises(SettingsError, match="allowed_hosts can't hold"):
        OriginCheck(Settings(allowed_hosts=(entry,)), loopback=True)


def test_every_name_may_be_allowed() -> None:
    check = OriginCheck(Settings(allowed_hosts=("*",)), loopback=True)
    assert not check.refusal({"HTTP_HOST": "any.example"}, strict=True)
    assert check.refusal({"HTTP_HOST": "any.example", "HTTP_ORIGIN": "http://other.example"})


def test_the_machine_is_known_by_its_own_names() -> None:
    check = OriginCheck(Settings(host="10.0.0.9"), loopback=True)
    for name in own_names(Settings(host="device.plant.example")) - {"device.plant.example"}:
        assert not check.refusal({"HTTP_HOST": f"{name}:8080"}, strict=True)


def test_what_is_remembered_is_bounded() -> None:
    check = OriginCheck(Settings(), loopback=True)
    for port in range(1, 1000):
        assert check.admits({"HTTP_HOST": f"localhost:{port}"})
    assert len(check._remembered) <= 64
