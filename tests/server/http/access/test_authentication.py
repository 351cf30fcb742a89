"""Keys: which routes ask for one, what a key opens, and how keys come and go."""

import re
import stat
from pathlib import Path

import pytest
from routes import ROUTES, route_of
from sites import NOW, Site, error, make_app, paths

from server.cli.main import main
from server.errors import KeysError
from server.http.routes import ADMIN, EXTENSION, OPEN
from server.store.keys import PREFIX, KeyRing, add_key, read_keys, revoke_key


def test_every_route_declares_itself(site: Site) -> None:
    rules = {(method, rule) for rule, _, method in paths(site.app)}
    assert rules == {(route.method, route.rule) for route in site.app.extensions[EXTENSION]}
    assert rules == {(route.method, route.rule) for route in ROUTES}


def test_a_route_that_the_table_lacks_is_closed(colors: Path, tmp_path: Path) -> None:
    site = Site(colors, tmp_path)
    site.app.add_url_rule("/forgotten", view_func=lambda: "secret")
    answer = site.bearer(site.keys["admin"], "/forgotten")
    assert answer.status_code == 403


def test_every_route_asks_for_a_key_and_its_right(site: Site) -> None:
    for rule, path, method in paths(site.app):
        rights = route_of(method, rule).rights
        without = site.get(path, method).status_code
        wrong = site.bearer(PREFIX + "x" * 43, path, method).status_code
        if rights == OPEN:
            assert without not in (401, 403), rule
            continue
        assert (without, wrong) == (401, 401), rule
        for right, key in site.keys.items():
            status = site.bearer(key, path, method).status_code
            assert (status == 403) is (right not in rights), (rule, right)
            assert status != 401, rule


@pytest.mark.parametrize("action", ["load", "activate", "rollback"])
def test_admin_routes_are_closed_to_lesser_keys(site: Site, action: str) -> None:
    path = f"/v1/models/colors/{action}"
    assert route_of("POST", f"/v1/models/<model:name>/{action}").rights == ADMIN
    for key, status, code in (
        (None, 401, "UNAUTHORIZED"),
        (PREFIX + "A" * 43, 401, "UNAUTHORIZED"),
        ("no key at all", 401, "UNAUTHORIZED"),
        ("", 401, "UNAUTHORIZED"),
        ("é" * 20, 401, "UNAUTHORIZED"),
        ("x" * 10_000, 401, "UNAUTHORIZED"),
        (site.keys["recognize"], 403, "FORBIDDEN"),
        (site.keys["metrics"], 403, "FORBIDDEN"),
    ):
        headers = {} if key is None else {"X-API-Key": key}
        answer = site.app.test_client().post(path, headers=headers)
        assert (answer.status_code, error(answer)["code"]) == (status, code)
        assert ("WWW-Authenticate" in answer.headers) is (status == 401)
    other = site.app.test_client().post(path, headers={"Authorization": "Basic YTpi"})
    assert other.status_code == 401


def test_a_key_is_taken_from_either_header(site: Site) -> None:
    assert site.get("/v1/models", **{"X-API-Key": site.keys["admin"]}).status_code == 200
    assert site.bearer(site.keys["admin"], "/v1/models").status_code == 200


# What a proxy, a browser or a library puts beside a key.
BESIDE = (
    "Basic YTpi",
    "Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl",
    f"Bearer {PREFIX}{'x' * 43}",
    "Bearer",
    "Bearer ",
    "",
    'Digest username="a", realm="b", nonce="c", uri="/", response="d"',
    "Negotiate abc==",
    "nothing",
    "\u00e9",
)


@pytest.mark.parametrize("beside", BESIDE)
def test_no_other_credential_hides_a_valid_one(site: Site, beside: str) -> None:
    key = site.keys["recognize"]
    for headers in (
        {"Authorization": beside, "X-API-Key": key},
        {"Authorization": f"Bearer {key}", "X-API-Key": beside},
        {"Authorization": f"{beside}, Bearer {key}"},
        {"Authorization": f"bearer  {key},{beside}", "X-API-Key": ""},
    ):
        assert site.get("/v1/models", **headers).status_code == 200, headers
        answer = site.app.test_client().post(
            "/v1/recognize", data=b"x", headers=headers | {"Content-Type": "image/png"}
        )
        assert answer.status_code not in (401, 403), headers
    assert site.get("/v1/models", Authorization=beside).status_code == 401
    assert site.get("/v1/models", **{"X-API-Key": beside}).status_code == 401


def test_of_two_callers_the_first_with_the_right_counts(site: Site) -> None:
    lesser, admin = site.keys["metrics"], site.keys["admin"]
    for first, second in ((lesser, admin), (admin, lesser)):
        headers = {"Authorization": f"Bearer {first}", "X-API-Key": second}
        assert site.get("/v1/journal", **headers).status_code == 200
        assert site.get("/metrics", **headers).status_code == 200
        answer = site.get("/v1/recognize", "POST", **headers)
        assert answer.status_code == 403, "rights of two callers don't add up"


def test_of_several_faults_the_expired_key_is_told(colors: Path, tmp_path: Path) -> None:
    site = Site(colors, tmp_path)
    old = add_key(site.keys_file, "old", ["admin"], now=NOW, expires=NOW)
    for headers in (
        {"Authorization": f"Bearer {PREFIX}{'x' * 43}", "X-API-Key": old},
        {"Authorization": f"Bearer {old}", "X-API-Key": "other"},
    ):
        answer = site.get("/v1/models", **headers)
        assert (answer.status_code, error(answer)["message"]) == (401, "the key has expired")
    many = ", ".join(f"Bearer {number}" for number in range(100))
    answer = site.get("/v1/models", Authorization=f"{many}, Bearer {site.keys['admin']}")
    assert answer.status_code == 401, "no request tries keys by the hundred"


def test_nothing_is_told_of_paths_that_are_not_there(site: Site) -> None:
    assert site.get("/nothing").status_code == 404


def test_keys_change_while_the_server_runs(
    colors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Keys are made, listed and revoked while the server runs."""
    file = tmp_path / "keys.jsonl"
    app = make_app(colors, file)
    client = app.test_client()
    local = {"REMOTE_ADDR": "127.0.0.1"}
    assert client.get("/v1/models", environ_overrides=local).status_code == 200

    def command(*words: str) -> str:
        assert main(["key", *words, "--keys-file", str(file)]) == 0
        return capsys.readouterr().out.strip()

    secret = command("add", "line 4".replace(" ", "-"), "--rights", "recognize,metrics")
    assert re.fullmatch(r"ls_[A-Za-z0-9_-]{43}", secret)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert secret not in file.read_text()
    assert command("list") == "line-4: recognize, metrics"
    headers = {"Authorization": f"Bearer {secret}"}
    assert client.get("/v1/models").status_code == 401
    assert client.get("/v1/models", headers=headers).status_code == 200
    command("revoke", "line-4")
    assert client.get("/v1/models", headers=headers).status_code == 401
    file.unlink()
    assert client.get("/v1/models").status_code == 401


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("add", "x", "--rights", "root"), "no right 'root'"),
        (("add", "x", "--rights", ""), "a key needs rights"),
        (("add", "not a name"), "can't be named"),
        (("add", "x", "--expires", "soon"), "--expires can't be"),
        (("add", "x", "--rate", "fast"), "a rate can't be"),
        (("revoke", "nobody"), "no key named nobody"),
    ],
)
def test_what_is_wrong_with_a_key_command_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    assert main(["key", *words, "--keys-file", str(tmp_path / "keys")]) == 1
    assert says in capsys.readouterr().err


def test_a_key_that_has_expired_opens_nothing(colors: Path, tmp_path: Path) -> None:
    site = Site(colors, tmp_path)
    old = add_key(site.keys_file, "old", ["admin"], now=NOW, expires=NOW)
    answer = site.bearer(old, "/v1/models")
    assert (answer.status_code, error(answer)["message"]) == (401, "the key has expired")


def test_damaged_keys_file_stops_the_start_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged keys file stops the start, but not a server that runs."""
    monkeypatch.setattr("server.store.keys.SETTLE_S", 0.2)
    file = tmp_path / "keys"
    secret = add_key(file, "a", ["admin"], now=NOW)
    ring = KeyRing(file)
    file.write_text("{")
    assert ring.find(secret)
    with pytest.raises(KeysError, match="line 1 is not a key"):
        KeyRing(file)
    file.write_text("")
    assert ring.find(secret)
    assert ring.present()


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    add_key(tmp_path / "keys", "a", ["admin"], now=NOW)
    with pytest.raises(KeysError, match="has a key named a already"):
        add_key(tmp_path / "keys", "a", ["admin"], now=NOW)
    revoke_key(tmp_path / "keys", "a")
    assert read_keys(tmp_path / "keys") == ()
