"""Proxies: whose headers count, and whose are ignored."""

from pathlib import Path
from typing import Any

import pytest
from sites import make_app

from server.cli.main import main
from server.http.access.proxies import TrustedProxies

PROXIES = ("10.0.0.0/8", "fd00::1", "192.0.2.7")


@pytest.mark.parametrize(
    ("sender", "headers", "client", "scheme"),
    [
        ("10.0.0.1", {"FOR": "203.0.113.9", "PROTO": "https"}, "203.0.113.9", "https"),
        ("203.0.113.5", {"FOR": "127.0.0.1", "PROTO": "https"}, "203.0.113.5", "http"),
        ("10.0.0.1", {"FOR": "127.0.0.1, 203.0.113.9"}, "203.0.113.9", "http"),
        ("10.0.0.1", {"FOR": "127.0.0.1, 203.0.113.9, 192.0.2.7"}, "203.0.113.9", "http"),
        ("10.0.0.1", {"FOR": "203.0.113.9, unknown"}, "10.0.0.1", "http"),
        ("10.0.0.1", {"FOR": "203.0.113.9:4711"}, "203.0.113.9", "http"),
        ("10.0.0.1", {"FOR": "[2001:db8::5]:4711"}, "2001:db8::5", "http"),
        ("10.0.0.1", {"FOR": "2001:db8::5%eth0"}, "2001:db8::5", "http"),
        ("fd00::1", {"FOR": "2001:db8::5"}, "2001:db8::5", "http"),
        ("::ffff:10.0.0.1", {"FOR": "203.0.113.9"}, "203.0.113.9", "http"),
        ("10.0.0.1", {"FOR": "", "PROTO": "gopher"}, "10.0.0.1", "http"),
        ("10.0.0.1", {"FOR": "10.0.0.2", "PROTO": "http, https"}, "10.0.0.2", "https"),
        ("10.0.0.1", {"FOR": "203.0.113.9, " + "10.0.0.2, " * 40 + "10.0.0.3"}, "10.0.0.2", "http"),
        ("", {"FOR": "203.0.113.9"}, "", "http"),
    ],
)
def test_client_behind_proxies(
    sender: str, headers: dict[str, str], client: str, scheme: str
) -> None:
    environ: dict[str, Any] = {"REMOTE_ADDR": sender, "wsgi.url_scheme": "http"}
    environ |= {f"HTTP_X_FORWARDED_{name}": value for name, value in headers.items()}
    TrustedProxies(PROXIES).apply(environ)
    assert (environ["REMOTE_ADDR"], environ["wsgi.url_scheme"]) == (client, scheme)


def test_rate_is_of_the_client_behind_the_proxy(colors: Path, tmp_path: Path) -> None:
    app = make_app(
        colors, tmp_path / "none", trusted_proxies=("127.0.0.1",), rate_per_address="2/minute"
    )
    client = app.test_client()

    def ask(address: str, through: str) -> int:
        return client.get(
            "/v1/models",
            headers={"X-Forwarded-For": address},
            environ_overrides={"REMOTE_ADDR": through},
        ).status_code

    assert [ask("127.0.0.2", "127.0.0.1") for _ in range(3)] == [200, 200, 429]
    assert ask("127.0.0.3", "127.0.0.1") == 200
    assert [ask(f"127.0.1.{n}", "127.0.0.9") for n in range(3)] == [200, 200, 429], "forged"
    assert ask("203.0.113.9", "127.0.0.1") == 401, "another machine needs a key"


def test_prefix_counts_from_the_proxy_alone(colors: Path, tmp_path: Path) -> None:
    app = make_app(colors, tmp_path / "none", trusted_proxies=("127.0.0.1",))

    def prefixed(through: str) -> bool:
        answer = app.test_client().get(
            "/docs/",
            headers={"X-Forwarded-Prefix": "/line4"},
            environ_overrides={"REMOTE_ADDR": through},
        )
        return "/line4" in answer.headers.get("Location", "") + answer.text

    assert not prefixed("127.0.0.9")


def test_unusable_proxy_stops_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--trusted-proxies", "10.0.0.1/8"]) == 1
    assert "trusted_proxies can't be 10.0.0.1/8" in capsys.readouterr().err
