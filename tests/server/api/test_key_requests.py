"""Keys by requests: made, listed, revoked, beside those of the command line."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from server_process import ROOT
from sites import NOW, Site, error, make_app
from werkzeug.test import TestResponse

from server.store.keys import add_key, read_keys

OWN = {"Origin": "http://localhost"}


@pytest.fixture
def site(colors: Path, tmp_path: Path) -> Site:
    return Site(colors, tmp_path)


def ask(site: Site, method: str, path: str, body: Any = None, key: str = "") -> TestResponse:
    headers = {"X-API-Key": key or site.keys["admin"]}
    return site.app.test_client().open(path, method=method, json=body, headers=headers)


def keys_of(site: Site) -> dict[str, Any]:
    return {key["name"]: key for key in ask(site, "GET", "/v1/keys").get_json()["keys"]}


def test_made_key_opens_what_it_may_and_is_shown_once(site: Site) -> None:
    end = datetime(2999, 1, 31, tzinfo=UTC)
    body = {"name": "line-4", "rights": ["recognize", "recognize"], "rate": "50/second"}
    made = ask(site, "POST", "/v1/keys", {**body, "expires": end.isoformat()})
    assert (made.status_code, made.headers["Cache-Control"]) == (200, "no-store")
    key = made.get_json()["key"]
    assert made.get_json() == {"name": "line-4", "rights": ["recognize"], "key": key}
    assert site.bearer(key, "/v1/models").status_code == 200
    assert site.bearer(key, "/v1/keys").status_code == 403
    [stored] = [each for each in read_keys(site.keys_file) if each.name == "line-4"]
    assert (stored.rights, stored.rate, stored.expires) == (("recognize",), "50/second", end)
    for text in (ask(site, "GET", "/v1/keys").text, ask(site, "GET", "/v1/audit").text):
        assert key not in text
        assert stored.sha256 not in text


def test_list_says_what_was_used_and_by_whom(site: Site) -> None:
    assert keys_of(site)["recognize"]["last_used"] is None
    site.bearer(site.keys["recognize"], "/v1/models")
    keys = keys_of(site)
    used = datetime.fromisoformat(keys["recognize"]["last_used"])
    assert abs(used - datetime.now(UTC)) < timedelta(minutes=5)
    assert keys["metrics"]["last_used"] is None
    assert [key["own"] for key in keys.values()] == [False, True, False]
    assert keys["admin"]["created"] == "2026-01-01T00:00:00.000Z"


def test_revoked_key_opens_nothing_and_ends_its_sessions(site: Site) -> None:
    client = site.app.test_client()
    key = ask(site, "POST", "/v1/keys", {"name": "b", "rights": ["admin"]}).get_json()["key"]
    assert client.post("/v1/session", json={"key": key}).status_code == 200
    assert client.get("/v1/keys").status_code == 200
    revoked = client.delete("/v1/keys/b", headers=OWN)
    assert "b" not in [each["name"] for each in revoked.get_json()["keys"]]
    assert client.get("/v1/keys").status_code == 401
    assert site.bearer(key, "/v1/models").status_code == 401


def test_command_line_and_requests_see_each_others_keys(site: Site) -> None:
    ask(site, "POST", "/v1/keys", {"name": "page", "rights": ["metrics"]})

    def command(*args: str) -> str:
        line = [sys.executable, "-m", "server", "key", *args, "--keys-file", str(site.keys_file)]
        return subprocess.run(
            line, capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
        ).stdout

    assert "page: metrics" in command("list")
    key = command("add", "shell").strip()
    assert site.bearer(key, "/v1/models").status_code == 200
    assert keys_of(site)["shell"]["rights"] == ["recognize"]
    assert ask(site, "DELETE", "/v1/keys/shell").status_code == 200
    assert "shell" not in command("list")


def test_changes_are_in_the_audit(site: Site) -> None:
    ask(site, "POST", "/v1/keys", {"name": "b", "rights": ["recognize", "metrics"]})
    ask(site, "POST", "/v1/keys", {"name": "b", "rights": ["admin"]})
    ask(site, "DELETE", "/v1/keys/b")
    ask(site, "DELETE", "/v1/keys/b")
    changes = ask(site, "GET", "/v1/audit").get_json()["changes"]
    assert [(c["action"], c["key"], c["code"], c.get("rights")) for c in changes] == [
        ("revoke", "b", "", None),
        ("add", "b", "KEY_EXISTS", ["admin"]),
        ("add", "b", "", ["recognize", "metrics"]),
    ]
    assert {c["caller"] for c in changes} == {"admin"}


def test_last_admin_key_stays(site: Site) -> None:
    refused = ask(site, "DELETE", "/v1/keys/admin")
    assert (refused.status_code, error(refused)["code"]) == (409, "LAST_ADMIN_KEY")
    late = NOW + timedelta(days=1)
    add_key(site.keys_file, "expired", ["admin"], now=NOW, expires=late)
    assert ask(site, "DELETE", "/v1/keys/admin").status_code == 409
    assert keys_of(site)["expired"]["expired"]
    ask(site, "POST", "/v1/keys", {"name": "second", "rights": ["admin"]})
    assert ask(site, "DELETE", "/v1/keys/admin").status_code == 200


def test_first_key_closes_the_server_and_needs_admin(colors: Path, tmp_path: Path) -> None:
    client = make_app(colors, tmp_path / "keys.jsonl").test_client()
    assert client.get("/v1/keys").get_json() == {
        "keys_asked": False,
        "changeable": True,
        "keys": [],
    }
    refused = client.post("/v1/keys", json={"name": "a", "rights": ["recognize"]})
    assert (refused.status_code, error(refused)["code"]) == (409, "LAST_ADMIN_KEY")
    assert client.get("/v1/models").status_code == 200
    made = client.post("/v1/keys", json={"name": "a", "rights": ["recognize", "admin"]})
    assert client.get("/v1/models").status_code == 401
    key = {"X-API-Key": made.get_json()["key"]}
    assert client.get("/v1/keys", headers=key).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_other_sites_page_makes_no_key(
    colors: Path, tmp_path: Path, headers: dict[str, str]
) -> None:
    client = make_app(colors, tmp_path / "keys.jsonl").test_client()
    body = {"name": "a", "rights": ["admin"]}
    assert client.post("/v1/keys", json=body, headers=headers).status_code == 403
    assert client.post("/v1/keys", data='{"name":"a","rights":["admin"]}', headers=headers)
    assert not (tmp_path / "keys.jsonl").exists()


def test_nobody_makes_keys_for_later_while_auth_is_off(colors: Path, tmp_path: Path) -> None:
    client = make_app(colors, tmp_path / "keys.jsonl", auth="off").test_client()
    assert client.get("/v1/keys").get_json()["changeable"] is False
    refused = client.post("/v1/keys", json={"name": "a", "rights": ["admin"]})
    assert (refused.status_code, error(refused)["code"]) == (409, "KEYS_OFF")
    assert client.delete("/v1/keys/a").status_code == 409
    assert not (tmp_path / "keys.jsonl").exists()


@pytest.mark.parametrize(
    "body",
    [
        {"name": "", "rights": ["admin"]},
        {"name": "-a", "rights": ["admin"]},
        {"name": "a\n", "rights": ["admin"]},
        {"name": "a" * 65, "rights": ["admin"]},
        {"name": "a", "rights": []},
        {"name": "a", "rights": ["root"]},
        {"name": "a"},
        {"name": "a", "rights": ["admin"], "rate": "fast"},
        {"name": "a", "rights": ["admin"], "rate": "1" * 5000 + "/second"},
        {"name": "a", "rights": ["admin"], "expires": "2026-01-01"},
        {"name": "a", "rights": ["admin"], "expires": "2000-01-01T00:00:00Z"},
        {"name": "a", "rights": ["admin"], "key": "ls_mine"},
    ],
)
def test_unusable_key_is_refused(site: Site, body: dict[str, Any]) -> None:
    refused = ask(site, "POST", "/v1/keys", body)
    assert refused.status_code == 400
    assert error(refused)["code"] in ("INVALID_FIELD", "MISSING_FIELD")
    assert len(read_keys(site.keys_file)) == 3


def test_missing_key_and_unwritable_file_are_said(site: Site) -> None:
    missing = ask(site, "DELETE", "/v1/keys/nobody")
    assert (missing.status_code, error(missing)["code"]) == (404, "KEY_NOT_FOUND")
    lock = site.keys_file.with_name(f".{site.keys_file.name}.lock")
    lock.unlink()
    lock.mkdir()
    refused = ask(site, "POST", "/v1/keys", {"name": "b", "rights": ["metrics"]})
    assert (refused.status_code, error(refused)["code"]) == (503, "STORAGE_FAILED")
