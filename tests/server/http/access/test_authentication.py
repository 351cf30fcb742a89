"""Who gets in, route by route: keys, tokens, rates, and what an answer tells browsers."""

import base64
import hashlib
import hmac
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from flask import Flask
from flask.testing import FlaskClient
from images import encode, plain
from routes import ROUTES, route_of
from werkzeug.test import TestResponse

from server.app import create_app
from server.cli.main import main
from server.config.settings import Settings
from server.errors import KeysError, SettingsError, StartError
from server.http.access.open_access import check_access
from server.http.access.tokens import token_reader
from server.http.routes import ADMIN, EXTENSION, OPEN
from server.store.keys import PREFIX, KeyRing, add_key, read_keys, revoke_key
from server.values.wording import hide_secrets

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = b"a secret of sixty-four bytes, which is enough for any HMAC here."
RED = encode(plain((255, 0, 0)), "PNG")


class Site:
    """An application over `models` with `settings`, and its keys by right."""

    def __init__(self, models: Path, folder: Path, **settings: Any) -> None:
        self.keys_file = folder / "keys.jsonl"
        self.keys: dict[str, str] = {}
        for right in ("recognize", "admin", "metrics"):
            self.keys[right] = add_key(self.keys_file, right, [right], now=NOW)
        self.app = make_app(models, self.keys_file, **settings)

    def get(self, path: str, method: str = "GET", **headers: str) -> TestResponse:
        return self.app.test_client().open(path, method=method, headers=headers, buffered=True)

    def bearer(self, token: str, path: str, method: str = "GET") -> TestResponse:
        return self.get(path, method, Authorization=f"Bearer {token}")


def make_app(models: Path, keys_file: Path, **settings: Any) -> Flask:
    made = Settings(
        models=str(models),
        keys_file=str(keys_file),
        data=str(keys_file.parent / "data"),
        interpreters=1,
        wide_interpreter=False,
        **settings,
    )
    return create_app(made)


def error(answer: TestResponse) -> dict[str, str]:
    """What an answer says went wrong."""
    said: dict[str, str] = (answer.get_json() or {})["error"]
    return said


@pytest.fixture(scope="module")
def site(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site with a key of each right."""
    return Site(colors, tmp_path_factory.mktemp("site"))


def paths(app: Flask) -> Iterator[tuple[str, str, str]]:
    """Every route of `app` as (rule, path, method)."""
    fillers = {"int:version": "1", "model:name": "colors", "model:label": "stable"}
    fillers |= {"file": "x", "job": "x", "sample": "000000001-0123456789abcdef"}
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<([^>]+)>", lambda m: fillers[m[1]], rule.rule)
        for method in sorted((rule.methods or set()) - {"OPTIONS", "HEAD"}):
            yield rule.rule, path, method


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


def test_damaged_keys_file_stops_the_start_only(tmp_path: Path) -> None:
    """A damaged keys file stops the start, but not a server that runs."""
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


RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PRIVATE = RSA_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
PUBLIC = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def claims(**changes: Any) -> dict[str, Any]:
    """Claims that open everything, changed; None takes one out."""
    given = {
        "sub": "mes",
        "iss": "https://plant.example",
        "aud": "lineside",
        "exp": datetime.now(UTC) + timedelta(hours=1),
        "scope": "openid recognize admin metrics",
        **changes,
    }
    return {name: value for name, value in given.items() if value is not None}


def by_hand(header: dict[str, str], payload: dict[str, Any], secret: bytes | None) -> str:
    """A token that no library would make."""

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    payload = payload | {"exp": int(payload["exp"].timestamp())}
    head = part(json.dumps(header).encode()) + "." + part(json.dumps(payload).encode())
    signed = hmac.digest(secret, head.encode(), hashlib.sha256) if secret else b""
    return head + "." + part(signed)


def token_app(colors: Path, folder: Path, algorithm: str) -> Flask:
    key = folder / "jwt.key"
    key.write_bytes(SECRET if algorithm == "HS256" else PUBLIC)
    return make_app(
        colors,
        folder / "none",
        jwt_algorithm=algorithm,
        jwt_key_file=str(key),
        jwt_issuer="https://plant.example",
        jwt_audience="lineside",
    )


@pytest.fixture(scope="module", params=["HS256", "RS256"])
def tokens(
    request: pytest.FixtureRequest, colors: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Callable[..., str], FlaskClient, str]:
    """What signs good tokens, and a client of a site that takes them, for each algorithm."""
    algorithm = str(request.param)
    app = token_app(colors, tmp_path_factory.mktemp("tokens"), algorithm)
    key = SECRET if algorithm == "HS256" else PRIVATE

    def sign(**changes: Any) -> str:
        return jwt.encode(claims(**changes), key, algorithm)

    return sign, app.test_client(), algorithm


def status(
    client: FlaskClient, token: str, path: str = "/v1/models/colors/load", method: str = "POST"
) -> int:
    headers = {"Authorization": f"Bearer {token}"}
    return client.open(path, method=method, headers=headers).status_code


def test_a_good_token_opens_what_its_scope_says(
    tokens: tuple[Callable[..., str], FlaskClient, str],
) -> None:
    sign, client, _ = tokens
    assert status(client, sign()) not in (401, 403)
    assert status(client, sign(scope="recognize")) == 403
    assert status(client, sign(scope="recognize"), "/v1/models", "GET") == 200
    assert status(client, sign(scope=None)) == 403
    assert status(client, sign(scope=["admin"])) == 403
    assert client.post("/v1/models/colors/load").status_code == 401


def test_subjects_that_begin_alike_are_not_the_same_caller(tmp_path: Path) -> None:
    key = tmp_path / "jwt.key"
    key.write_bytes(SECRET)
    issuer, audience = claims()["iss"], claims()["aud"]
    read = token_reader(
        Settings(
            jwt_algorithm="HS256",
            jwt_key_file=str(key),
            jwt_issuer=issuer,
            jwt_audience=audience,
        )
    )
    assert read is not None
    begin = "https://login.example.com/realms/plant-north/service-accounts/cameras/line-"
    one, other, again = (
        read(jwt.encode(claims(sub=begin + end), SECRET, "HS256")).name for end in "121"
    )
    assert one == again != other
    assert read(jwt.encode(claims(), SECRET, "HS256")).name == "token:mes"


def test_a_subject_that_is_no_text_is_no_caller(
    tokens: tuple[Callable[..., str], FlaskClient, str],
) -> None:
    sign, client, _ = tokens
    assert status(client, sign(sub="\ud800")) == 401


def test_a_bad_token_opens_no_admin_route(
    tokens: tuple[Callable[..., str], FlaskClient, str],
) -> None:
    sign, client, algorithm = tokens
    past = datetime.now(UTC) - timedelta(hours=1)
    public_as_secret = by_hand({"alg": "HS256", "typ": "JWT"}, claims(), PUBLIC)
    bad = {
        "expired": sign(exp=past),
        "no expiry": sign(exp=None),
        "not yet": sign(nbf=datetime.now(UTC) + timedelta(hours=1)),
        "another issuer": sign(iss="https://elsewhere.example"),
        "no issuer": sign(iss=None),
        "another audience": sign(aud="another"),
        "no audience": sign(aud=None),
        "wrongly signed HS256": jwt.encode(claims(), b"another secret of 32 bytes or so", "HS256"),
        "wrongly signed RS256": jwt.encode(claims(), OTHER, "RS256"),
        "alg none": by_hand({"alg": "none", "typ": "JWT"}, claims(), None),
        "alg None": by_hand({"alg": "None"}, claims(), None),
        "public key as secret": public_as_secret,
        "other algorithm": jwt.encode(claims(), SECRET, "HS512")
        if algorithm == "HS256"
        else jwt.encode(claims(), PRIVATE, "RS512"),
        "cut": sign()[:-5],
        "no token": "a.b.c",
        "two parts": "a.b",
    }
    routes = [
        (rule, path, method)
        for rule, path, method in paths(client.application)
        if route_of(method, rule).rights == ADMIN
    ]
    assert {rule for rule, _, _ in routes} == {r.rule for r in ROUTES if r.rights == ADMIN}
    for rule, path, method in routes:
        statuses = {name: status(client, token, path, method) for name, token in bad.items()}
        assert statuses == dict.fromkeys(bad, 401), (rule, method)


@pytest.mark.parametrize(
    ("algorithm", "content", "says"),
    [
        ("HS256", b"short", "has 5 bytes"),
        ("HS256", PUBLIC, "is a PEM key"),
        ("RS256", b"x" * 64, "is not an RSA public key"),
        ("RS256", PRIVATE, "is a private key"),
    ],
)
def test_key_of_another_algorithm_stops_the_start(
    tmp_path: Path, algorithm: Any, content: bytes, says: str
) -> None:
    """A key that is not for the algorithm stops the start."""
    (tmp_path / "jwt.key").write_bytes(content)
    settings = Settings(
        jwt_algorithm=algorithm,
        jwt_key_file=str(tmp_path / "jwt.key"),
        jwt_issuer="i",
        jwt_audience="a",
    )
    with pytest.raises(SettingsError, match=says):
        check_access(settings)


def test_issuer_and_audience_must_be_set(tmp_path: Path) -> None:
    (tmp_path / "jwt.key").write_bytes(SECRET)
    with pytest.raises(SettingsError, match="jwt_issuer must be too"):
        check_access(Settings(jwt_algorithm="HS256", jwt_key_file=str(tmp_path / "jwt.key")))


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


def test_open_doors_are_open_to_this_machine_alone(colors: Path, tmp_path: Path) -> None:
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


def metrics_of(app: Flask) -> str:
    """The page of metrics, as another machine than the test's client asks for it."""
    client = app.test_client()
    return client.get("/metrics", environ_overrides={"REMOTE_ADDR": "127.0.0.2"}).text


def test_a_rate_that_is_none_stops_the_start(colors: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="rate_per_key can't be 'fast'"):
        make_app(colors, tmp_path / "none", rate_per_key="fast")


def test_too_many_parts_are_refused(colors: Path, tmp_path: Path) -> None:
    client = make_app(colors, tmp_path / "none", max_form_parts=3).test_client()
    data = {f"field{n}": "x" for n in range(5)}
    answer = client.post("/v1/recognize", data=data, content_type="multipart/form-data")
    assert (answer.status_code, error(answer)["code"]) == (413, "BODY_TOO_LARGE")


def test_the_application_never_debugs(
    colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASK_DEBUG", "1")
    app = make_app(colors, tmp_path / "none")
    assert app.debug is False
    assert app.testing is False
    source = "".join(path.read_text() for path in Path("server").rglob("*.py"))
    assert not re.search(r"debug\s*=\s*True|run_simple|app\.run\(", source)


def test_what_looks_like_a_secret_is_not_logged(site: Site) -> None:
    secret = site.keys["admin"]
    token = jwt.encode(claims(), SECRET, "HS256")
    line = hide_secrets(f"path=/v1/{secret} token={token}")
    assert secret not in line
    assert token not in line
    assert os.path.basename(line).startswith("(secret) token=(secret)")
