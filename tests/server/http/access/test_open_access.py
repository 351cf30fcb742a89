"""Servers without keys: who reaches them, which browsers' pages, and every answer's headers."""

import re
from pathlib import Path
from typing import Any

import pytest
from sites import NOW, Site, make_app

from server.config.settings import Settings
from server.errors import StartError
from server.http.access.caller import check_access
from server.store.keys import add_key


def test_a_server_for_others_needs_keys_or_a_decision(tmp_path: Path) -> None:
    file = tmp_path / "keys"

    def check(**settings: Any) -> None:
        check_access(Settings(keys_file=str(file), **settings))

    check()
    check(host="localhost")
    check(host="::1")
    check(host="0.0.0.0", auth="off")
    with pytest.raises(StartError, match=r"0\.0\.0\.0 can be reached .* server key add NAME"):
        check(host="0.0.0.0")
    with pytest.raises(StartError, match="can be reached from other machines"):
        check(host="::")
    with pytest.raises(StartError, match="auth is required"):
        check(auth="required")
    add_key(file, "a", ["recognize"], now=NOW)
    check(host="0.0.0.0")
    check(auth="required")


def test_open_access_is_for_this_machine_alone(colors: Path, tmp_path: Path) -> None:
    app = make_app(colors, tmp_path / "none")
    for address, expected in (("127.0.0.1", 200), ("::1", 200), ("192.0.2.7", 401)):
        answer = app.test_client().get("/v1/models", environ_overrides={"REMOTE_ADDR": address})
        assert answer.status_code == expected
    everyone = make_app(colors, tmp_path / "none", auth="off").test_client()
    answer = everyone.get("/v1/models", environ_overrides={"REMOTE_ADDR": "192.0.2.7"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("headers", "forbidden"),
    [
        ({}, False),
        ({"Origin": "http://localhost"}, False),
        ({"Origin": "https://evil.example"}, True),
        ({"Origin": "null"}, True),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, True),
    ],
)
def test_other_sites_pages_change_no_models(
    colors: Path, tmp_path: Path, headers: dict[str, str], forbidden: bool
) -> None:
    client = make_app(colors, tmp_path / "none").test_client()
    answer = client.post("/v1/models/colors/activate", headers=headers)
    assert (answer.status_code == 403) is forbidden


def test_every_answer_carries_the_security_headers(site: Site) -> None:
    for path in ("/livez", "/nothing", "/v1/models", "/metrics"):
        headers = site.get(path).headers
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_other_origins_may_read_answers_only_where_listed(colors: Path, tmp_path: Path) -> None:
    asked = {"Origin": "https://mes.example", "Access-Control-Request-Method": "POST"}
    closed = make_app(colors, tmp_path / "none").test_client()
    assert (
        "Access-Control-Allow-Origin" not in closed.options("/v1/recognize", headers=asked).headers
    )
    site = Site(colors, tmp_path, cors_origins=("https://mes.example",))
    client = site.app.test_client()
    answer = client.options("/v1/recognize", headers=asked)
    assert answer.headers["Access-Control-Allow-Origin"] == "https://mes.example"
    other = client.options("/v1/recognize", headers=asked | {"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in other.headers


def test_the_application_never_debugs(
    colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASK_DEBUG", "1")
    app = make_app(colors, tmp_path / "none")
    assert app.debug is False
    assert app.testing is False
    source = "".join(path.read_text() for path in Path("server").rglob("*.py"))
    assert not re.search(r"debug\s*=\s*True|run_simple|app\.run\(", source)
