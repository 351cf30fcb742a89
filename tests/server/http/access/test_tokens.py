"""Tokens (JWT): whose are taken, what their scopes open, and which keys verify them."""

import base64
import hashlib
import hmac
import json
import os
from collections.abc import Callable
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
from routes import ROUTES, route_of
from sites import Site, make_app, paths

from server.config.settings import Settings
from server.errors import SettingsError
from server.http.access.caller import check_access, token_reader
from server.http.routes import ADMIN
from server.values.wording import hide_secrets

SECRET = b"a secret of sixty-four bytes, which is enough for any HMAC here."
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


def test_what_looks_like_a_secret_is_not_logged(site: Site) -> None:
    secret = site.keys["admin"]
    token = jwt.encode(claims(), SECRET, "HS256")
    line = hide_secrets(f"path=/v1/{secret} token={token}")
    assert secret not in line
    assert token not in line
    assert os.path.basename(line).startswith("(secret) token=(secret)")
