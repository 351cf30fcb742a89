"""Sessions of the console: a cookie in the place of a key, for pages of this server alone."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from images import encode, plain
from server_process import LiveServer, live_server
from sites import NOW, Site, make_app
from werkzeug.test import TestResponse

from server.errors import UnauthorizedError
from server.http.access.caller import Caller
from server.http.access.sessions import IDLE_S, LIFE_S, SESSIONS_MAX, SESSIONS_OF_ONE_MAX, Sessions
from server.store.keys import Right, add_key, revoke_key

RED = encode(plain((255, 0, 0)), "PNG")
SHIFT = Caller("shift", frozenset({"admin"}))


class Keyed(LiveServer):
    """A live server that asks for keys, with one of each right."""

    keys: dict[str, str]
    file: Path


@pytest.fixture(scope="module")
def server(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    file = tmp_path_factory.mktemp("keys") / "keys.jsonl"
    rights: tuple[Right, ...] = ("recognize", "admin", "metrics")
    keys = {right: add_key(file, right, [right], now=NOW) for right in rights}
    with live_server(models=colors, keys_file=file, log_level="debug") as made:
        made.keys, made.file = keys, file  # type: ignore[attr-defined]
        yield made  # type: ignore[misc]


def sign_in(server: LiveServer, key: str) -> requests.Session:
    """A client as the page in a browser is, signed in with `key`."""
    session = requests.Session()
    session.headers.update({"Origin": server.url, "Sec-Fetch-Site": "same-origin"})
    answer = session.post(f"{server.url}/v1/session", json={"key": key}, timeout=60)
    assert answer.status_code == 200, answer.text
    return session


def frame(session: requests.Session, server: LiveServer, **headers: str | None) -> int:
    """The status of a frame that a page sends; None takes a header away."""
    url = f"{server.url}/v1/recognize"
    sent: Any = {"Content-Type": "image/png"} | headers
    return session.post(url, RED, headers=sent, timeout=60).status_code


def test_session_has_the_rights_of_its_key(server: Keyed) -> None:
    shift = sign_in(server, server.keys["recognize"])
    state = shift.get(f"{server.url}/v1/session", timeout=60).json()
    assert state == {"keys_asked": True, "name": "recognize", "rights": ["recognize"]}
    assert frame(shift, server) == 200
    refused = shift.get(f"{server.url}/v1/now", timeout=60)
    assert refused.status_code == 403
    assert refused.json()["error"]["message"].startswith("recognize has no right to this")
    office = sign_in(server, server.keys["admin"])
    assert office.get(f"{server.url}/v1/now", timeout=60).status_code == 200
    assert frame(office, server) == 403


def test_events_and_pictures_need_nothing_but_the_cookie(server: Keyed) -> None:
    office, shift = (sign_in(server, server.keys[right]) for right in ("admin", "recognize"))
    with office.get(f"{server.url}/v1/events", stream=True, timeout=60) as events:
        assert events.headers["Content-Type"].startswith("text/event-stream")
        assert b"event: now" in events.iter_lines(chunk_size=1)
        assert frame(shift, server) == 200
    picture = office.get(f"{server.url}/v1/now/picture", timeout=60)
    assert picture.headers["Content-Type"] == "image/jpeg"


def test_cookie_is_no_key_and_for_the_browser_alone(server: Keyed) -> None:
    key = server.keys["admin"]
    answer = requests.post(f"{server.url}/v1/session", json={"key": f" {key}\n"}, timeout=60)
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith(f"lineside-{server.port}=")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert "Max-Age" not in cookie
    assert key not in cookie
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("cookie", [b"a=\xb6", b"\xff\xfe", b'lineside="\xc3"; lineside=x'])
def test_cookie_that_is_no_utf_8_is_nobodys(server: Keyed, cookie: bytes) -> None:
    """It may be of another program at the same name; the key beside it still counts."""
    for key, status in (("", 401), (server.keys["admin"], 200)):
        headers: Any = {"Cookie": cookie} | ({"X-API-Key": key} if key else {})
        answer = requests.get(f"{server.url}/v1/models", headers=headers, timeout=60)
        assert answer.status_code == status


def test_signed_out_cookie_opens_nothing(server: Keyed) -> None:
    shift = sign_in(server, server.keys["recognize"])
    cookies = shift.cookies.copy()
    answer = shift.delete(f"{server.url}/v1/session", timeout=60)
    assert answer.json()["name"] == ""
    assert not list(shift.cookies)
    shift.cookies.update(cookies)
    assert frame(shift, server) == 401


def test_session_ends_with_its_key(server: Keyed) -> None:
    shift = sign_in(server, add_key(server.file, "short", ["recognize"], now=NOW))
    assert frame(shift, server) == 200
    revoke_key(server.file, "short")
    refused = shift.post(f"{server.url}/v1/recognize", RED, timeout=60)
    assert refused.status_code == 401
    assert refused.json()["error"]["message"] == "the key of this session was revoked"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://evil.example", "Sec-Fetch-Site": None},
        {"Origin": "null", "Sec-Fetch-Site": None},
        # Another port of this host is the same site, to which SameSite=Strict sends the cookie.
        {"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": None},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": None, "Sec-Fetch-Site": None},
    ],
)
def test_page_of_another_origin_can_not_use_a_session(server: Keyed, headers: Any) -> None:
    """Neither the fast path of frames nor a form's post of a change."""
    shift, office = (sign_in(server, server.keys[right]) for right in ("recognize", "admin"))
    assert frame(shift, server, **headers) == 403
    form = shift.post(
        f"{server.url}/v1/recognize", files={"file": RED}, headers=headers, timeout=60
    )
    assert form.status_code == 403
    for method, path in (
        ("POST", "/v1/models/colors/load"),
        ("DELETE", "/v1/cameras/gate"),
        ("DELETE", "/v1/session"),
    ):
        answer = office.request(method, server.url + path, headers=headers, timeout=60)
        assert answer.status_code == 403, path
    assert office.get(f"{server.url}/v1/now", timeout=60).status_code == 200


def test_key_in_a_header_needs_no_origin(server: Keyed) -> None:
    """It counts before the cookie that the browser adds."""
    shift = sign_in(server, server.keys["recognize"])
    key = {"X-API-Key": server.keys["recognize"]}
    assert frame(shift, server, Origin="http://evil.example", **key) == 200


def test_other_site_can_not_sign_anybody_in(server: Keyed) -> None:
    body = {"key": server.keys["recognize"]}
    url = f"{server.url}/v1/session"
    foreign = requests.post(url, json=body, headers={"Origin": "http://evil.example"}, timeout=60)
    assert foreign.status_code == 403
    assert "Set-Cookie" not in foreign.headers


@pytest.mark.parametrize("key", ["ls_wrong", "é", "x" * 8192])
def test_wrong_key_begins_no_session(server: Keyed, key: str) -> None:
    refused = requests.post(f"{server.url}/v1/session", json={"key": key}, timeout=60)
    assert (refused.status_code, "Set-Cookie" in refused.headers) == (401, False)
    for body, status in (({"key": ""}, 400), ({"kex": key}, 400), ({"key": "x" * 9000}, 413)):
        refused = requests.post(f"{server.url}/v1/session", json=body, timeout=60)
        assert (refused.status_code, "Set-Cookie" in refused.headers) == (status, False)


def test_no_key_is_in_the_log(server: Keyed) -> None:
    key = server.keys["recognize"]
    requests.post(f"{server.url}/v1/session", json={key: key, "key": key}, timeout=60)
    requests.post(f"{server.url}/v1/session", json={"key": key + "x"}, timeout=60)
    answer = requests.post(f"{server.url}/v1/session", json={"key": key}, timeout=60)
    line = server.request_line(answer.headers["X-Request-Id"])
    assert (line["path"], line["caller"]) == ("/v1/session", "recognize")
    cookie = next(iter(answer.cookies)).value
    assert not [line for line in server.lines if key in str(line) or str(cookie) in str(line)]


@pytest.mark.parametrize("keys", [False, True])
def test_rebound_name_reaches_nothing(colors: Path, tmp_path: Path, keys: bool) -> None:
    """A page at evil.example whose name was made to lead to 127.0.0.1: for the browser it is of one
    origin with this server, but no cookie of the server's own name comes with it."""
    if keys:
        site = Site(colors, tmp_path)
        client, own = site.app.test_client(), site.keys["admin"]
        signed_in = client.post("/v1/session", json={"key": own}, base_url="http://localhost:8080")
        assert signed_in.status_code == 200
    else:
        client = make_app(colors, tmp_path / "none").test_client()
    rebound = "http://evil.example:8080"
    headers = {"Origin": rebound, "Sec-Fetch-Site": "same-origin"}
    status = 401 if keys else 403

    def ask(method: str, path: str, **more: Any) -> TestResponse:
        return client.open(path, method=method, base_url=rebound, headers=headers, **more)

    for method, path in (
        ("GET", "/v1/now"),
        ("GET", "/v1/events"),
        ("GET", "/v1/journal"),
        ("GET", "/v1/settings"),
        ("POST", "/v1/recognize"),
        ("POST", "/v1/models/colors/load"),
        ("DELETE", "/v1/cameras/gate"),
    ):
        assert ask(method, path).status_code == status, path
    form = ask("POST", "/v1/recognize", data={"file": (io.BytesIO(RED), "a.png")})
    assert form.status_code == status
    if keys:
        own_page = {"Origin": "http://localhost:8080"}
        answer = client.get("/v1/now", base_url="http://localhost:8080", headers=own_page)
        assert answer.status_code == 200, "the session is still there"


def test_secure_by_tls_and_path_behind_a_proxy(colors: Path, tmp_path: Path) -> None:
    site = Site(colors, tmp_path, trusted_proxies=("127.0.0.1",))
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/line-4"}
    answer = site.app.test_client().post(
        "/v1/session",
        json={"key": site.keys["admin"]},
        headers={**headers, "Host": "plant.example", "Origin": "https://plant.example"},
        environ_overrides={"REMOTE_ADDR": "127.0.0.1"},
    )
    assert answer.status_code == 200
    parts = set(answer.headers["Set-Cookie"].split("; "))
    assert {"Secure", "Path=/line-4"} <= parts
    assert answer.headers["Set-Cookie"].startswith("lineside=")


def test_open_server_says_that_no_key_is_asked(colors: Path, tmp_path: Path) -> None:
    client = make_app(colors, tmp_path / "none").test_client()
    state = client.get("/v1/session").get_json()
    assert state == {
        "keys_asked": False,
        "name": "",
        "rights": ["recognize", "admin", "metrics"],
    }
    assert client.post("/v1/session", json={"key": "ls_x"}).status_code == 401


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def shift() -> Caller:
    return SHIFT


@pytest.mark.parametrize(("step", "ends"), [(IDLE_S - 1, LIFE_S), (IDLE_S, IDLE_S)])
def test_session_ends_unused_or_after_its_life(step: float, ends: float) -> None:
    clock = Clock()
    sessions = Sessions(clock)
    value, began = sessions.begin(shift, "shift"), clock.now
    while clock.now + step - began < ends:
        clock.now += step
        assert sessions.caller(value).by_session
    clock.now += step
    with pytest.raises(UnauthorizedError, match="sign in again"):
        sessions.caller(value)


def test_sessions_have_a_limit() -> None:
    sessions = Sessions(Clock())
    values = [sessions.begin(shift, str(number // 100)) for number in range(SESSIONS_MAX)]
    sessions.caller(values[0])
    sessions.begin(shift, "shift")
    assert sessions.caller(values[0]).name == "shift"
    with pytest.raises(UnauthorizedError):
        sessions.caller(values[1])


def test_one_key_ends_no_session_of_another() -> None:
    sessions = Sessions(Clock())
    value = sessions.begin(shift, "shift")
    first, *others = [sessions.begin(shift, "camera") for _ in range(SESSIONS_MAX)]
    assert sessions.caller(value)
    assert all(sessions.caller(each) for each in others[-SESSIONS_OF_ONE_MAX:])
    with pytest.raises(UnauthorizedError):
        sessions.caller(first)


def test_session_of_a_token_ends_with_it() -> None:
    ended: list[bool] = []

    def token() -> Caller:
        if ended:
            raise UnauthorizedError("the token has expired")
        return SHIFT

    sessions: Sessions = Sessions()
    find: Callable[[], Caller] = token
    value = sessions.begin(find, "token")
    assert sessions.caller(value).name == "shift"
    ended.append(True)
    with pytest.raises(UnauthorizedError, match="the token has expired"):
        sessions.caller(value)
