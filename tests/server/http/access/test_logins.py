"""Logins that IP cameras have: Basic, and digest by its users' own clients, curl and requests."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import requests
from images import encode, plain
from requests.auth import HTTPBasicAuth, HTTPDigestAuth
from server_process import LiveServer, live_server
from sites import NOW

from server.errors import UnauthorizedError
from server.http.access.digest import NONCES_MAX, DigestLogins, StaleNonceError, response
from server.store.keys import KeyRing, add_key, digest_secrets, read_keys, write_keys

RED = encode(plain((255, 0, 0)), "PNG")


class Locked(LiveServer):
    keys: dict[str, str]


@pytest.fixture(scope="module")
def server(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    file = tmp_path_factory.mktemp("keys") / "keys.jsonl"
    keys = {
        "gate": add_key(file, "gate", ["recognize"], now=NOW, digest_login=True),
        "plain": add_key(file, "plain", ["recognize"], now=NOW),
        "late": add_key(
            file, "late", ["recognize"], now=NOW, expires=NOW.replace(day=2), digest_login=True
        ),
    }
    with live_server(models=colors, keys_file=file) as made:
        made.keys = keys  # type: ignore[attr-defined]
        yield made  # type: ignore[misc]


def post(server: Locked, auth: Any = None, query: str = "", **headers: str) -> requests.Response:
    url = f"{server.url}/v1/recognize{query}"
    return requests.post(url, RED, auth=auth, headers=headers, timeout=60)


def test_basic_login_has_the_key_as_password(server: Locked) -> None:
    assert post(server, HTTPBasicAuth("admin", server.keys["plain"])).status_code == 200
    refused = post(server, HTTPBasicAuth("admin", server.keys["plain"][:-2] + "AA"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "UNAUTHORIZED")


def test_proxy_login_hides_no_key(server: Locked) -> None:
    proxy = HTTPBasicAuth("proxy", "secret")
    assert post(server, proxy, **{"X-API-Key": server.keys["plain"]}).status_code == 200
    assert post(server, proxy).status_code == 401


def test_digest_login_posts_frames(server: Locked) -> None:
    login = HTTPDigestAuth("gate", server.keys["gate"])
    answers = [post(server, login, f"?camera=gate&part={part}") for part in range(5)]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert [len(answer.history) for answer in answers] == [1, 0, 0, 0, 0], "one nonce, counted up"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("way", ["--digest", "--basic", "--anyauth"])
def test_curl_logs_in(server: Locked, tmp_path: Path, way: str) -> None:
    frame = tmp_path / "frame.png"
    frame.write_bytes(RED)
    login = ["-u", f"gate:{server.keys['gate']}"]
    sent = ["--data-binary", f"@{frame}", "-H", "Content-Type: image/png"]
    url = f"{server.url}/v1/recognize?camera=a%20b"
    done = subprocess.run(["curl", "-sf", way, *login, *sent, url], capture_output=True, timeout=60)
    assert b'"verdict"' in done.stdout or b'"predictions"' in done.stdout


@pytest.mark.parametrize("name", ["plain", "late", "nobody"])
def test_digest_login_of_no_such_key_is_refused(server: Locked, name: str) -> None:
    refused = post(server, HTTPDigestAuth(name, server.keys.get(name, "ls_x")))
    assert refused.status_code == 401
    assert "WWW-Authenticate" in refused.headers


def challenge(server: Locked) -> dict[str, str]:
    text = post(server).headers["WWW-Authenticate"]
    [nonce] = set(re.findall(r'nonce="([^"]+)"', text))
    return {"nonce": nonce, "realm": "lineside", "qop": "auth", "cnonce": "abc", "nc": "00000001"}


def header(secret: str, fields: dict[str, str], **changes: str) -> str:
    """The login of `gate` with `fields`, of which `changes` come after it was signed."""
    fields = {"username": "gate", "uri": "/v1/recognize", "algorithm": "SHA-256"} | fields
    ha1 = digest_secrets("gate", secret)[fields["algorithm"]]
    fields["response"] = response(fields["algorithm"], ha1, fields, "POST")
    return "Digest " + ", ".join(f'{k}="{v}"' for k, v in (fields | changes).items())


def test_digest_login_opens_nothing_twice(server: Locked) -> None:
    fields, key = challenge(server), server.keys["gate"]
    login = header(key, fields)
    assert post(server, Authorization=login).status_code == 200
    again = post(server, Authorization=login)
    assert again.status_code == 401
    assert "stale=true" in again.headers["WWW-Authenticate"]
    for counter, status in (("00000004", 200), ("00000003", 200), ("00000003", 401)):
        login = header(key, fields | {"nc": counter, "algorithm": "MD5"})
        assert post(server, Authorization=login).status_code == status
    far = header(key, fields | {"nc": "000fffff"})
    assert post(server, Authorization=far).status_code == 200
    assert post(server, Authorization=header(key, fields | {"nc": "00000005"})).status_code == 401


@pytest.mark.parametrize(
    "changes",
    [
        {"uri": "/v1/models"},
        {"uri": "http://["},
        {"uri": "/v1/recognize?model=other"},
        {"nonce": "AAAA"},
        {"nonce": "é"},
        {"nc": "x"},
        {"nc": "-1"},
        {"nc": "f" * 4000},
        {"qop": "auth-int"},
        {"qop": ""},
        {"algorithm": "SHA-512"},
        {"algorithm": "MD5-sess"},
        {"username": "plain"},
        {"realm": ""},
        {"response": "é"},
    ],
)
def test_changed_digest_login_is_refused(server: Locked, changes: dict[str, str]) -> None:
    fields, key = challenge(server), server.keys["gate"]
    login = header(key, fields, **changes)
    refused = post(server, Authorization=login.encode().decode("latin-1"))
    assert refused.status_code == 401
    if set(changes) <= {"uri", "nonce", "nc", "realm"}:
        login = header(key, fields | changes)
        signed = post(server, Authorization=login.encode().decode("latin-1"))
        assert signed.status_code == 401
    assert post(server, Authorization=header(key, challenge(server))).status_code == 200


def test_browser_is_not_asked_for_a_password(server: Locked) -> None:
    asked = post(server).headers["WWW-Authenticate"]
    assert [word in asked for word in ("Basic", "Digest", "Bearer")] == [True] * 3
    page = post(server, **{"Sec-Fetch-Mode": "cors"}).headers["WWW-Authenticate"]
    assert [word in page for word in ("Basic", "Digest", "Bearer")] == [False, False, True]


@pytest.mark.parametrize("login", [HTTPBasicAuth, HTTPDigestAuth])
def test_page_of_another_site_can_not_use_a_login(server: Locked, login: Any) -> None:
    """Browsers repeat logins by themselves, whoever's page sends the request."""
    auth = login("gate", server.keys["gate"])
    foreign = post(server, auth, Origin="http://evil.example")
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "FORBIDDEN")
    assert post(server, auth, Origin=server.url).status_code == 200
    key = {"X-API-Key": server.keys["gate"]}
    assert post(server, Origin="http://evil.example", **key).status_code == 200


def test_digest_login_needs_the_hash_of_the_key(tmp_path: Path) -> None:
    """A key whose hash by MD5 was taken out of the file is closed to MD5."""
    file = tmp_path / "keys.jsonl"
    add_key(file, "gate", ["recognize"], now=NOW, digest_login=True)
    [key] = read_keys(file)
    write_keys(file, [msgspec.structs.replace(key, digest={"SHA-256": key.digest["SHA-256"]})])
    logins = DigestLogins(KeyRing(file))
    [nonce] = set(re.findall(r'nonce="([^"]+)"', logins.challenges(stale=False)[0]))
    fields = {"realm": "lineside", "qop": "auth", "nonce": nonce, "nc": "00000001", "cnonce": "c"}
    fields |= {"username": "gate", "uri": "/", "algorithm": "MD5"}
    fields["response"] = response("MD5", "0" * 64, fields, "GET")
    text = "Digest " + ", ".join(f'{name}="{value}"' for name, value in fields.items())
    with pytest.raises(UnauthorizedError, match="not valid"):
        logins.find(text, {"REQUEST_METHOD": "GET"}, "/")


def test_forgotten_nonce_opens_nothing_again(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    secret = add_key(file, "gate", ["recognize"], now=NOW, digest_login=True)
    logins, environ = DigestLogins(KeyRing(file)), {"REQUEST_METHOD": "POST"}

    def login() -> str:
        [nonce] = set(re.findall(r'nonce="([^"]+)"', logins.challenges(stale=False)[0]))
        fields = {"nonce": nonce, "realm": "lineside", "qop": "auth", "cnonce": "c"}
        return header(secret, fields | {"nc": "00000001"})

    first = login()
    logins.find(first, environ, "/v1/recognize")
    for _ in range(NONCES_MAX):
        logins.find(login(), environ, "/v1/recognize")
    with pytest.raises(StaleNonceError):
        logins.find(first, environ, "/v1/recognize")


def test_keys_file_holds_no_password(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    secret = add_key(file, "gate", ["recognize"], now=NOW, digest_login=True)
    assert secret not in file.read_text()
    assert set(read_keys(file)[0].digest) == {"SHA-256", "MD5"}
