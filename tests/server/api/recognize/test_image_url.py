"""image_url: real servers on this machine, of which some may be asked and some may not."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest
import requests
from clients import frame
from server_process import live_server

from server.api.recognize.image_url import ImageFetcher
from server.errors import (
    BodyTooLargeError,
    DeadlineExceededError,
    ImageUrlError,
    InvalidFieldError,
    SettingsError,
)
from server.system.outbound import is_public, parse_allowed

RED = frame("red")
MOST = 100_000


class Cameras(ThreadingHTTPServer):
    """Pictures at the address that the machine knows `host` by first, until the block ends."""

    def __init__(self, host: str) -> None:
        self.address_family = socket.getaddrinfo(host, None)[0][0]
        self.stopped = threading.Event()
        super().__init__((host, 0), Pictures)
        self._thread = threading.Thread(target=self.serve_forever)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()
        self._thread.join()


class Pictures(BaseHTTPRequestHandler):
    """A camera's web server with good and bad habits, by path."""

    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        # A client that has seen enough hangs up.
        with suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/to/"):
            self._answer(302, b"", location=path.removeprefix("/to/"))
        elif path == "/self":
            self._answer(307, b"", location="/self")
        elif path == "/large":
            self._answer(200, bytes(MOST + 1))
        elif path == "/endless":
            self._endless(bytes(10_000))
        elif path == "/drip":
            self._drip()
        elif path == "/cut":
            self._answer(200, RED, length=len(RED) + 100)
            self.close_connection = True
        elif path == "/missing":
            self._answer(404, b"nothing")
        else:
            self._answer(200, RED)

    def _answer(self, status: int, body: bytes, length: int = -1, location: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length < 0 else length))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def _endless(self, chunk: bytes) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        while self._written(chunk):
            continue

    def _drip(self) -> None:
        """A byte now and then, so that no single read takes long."""
        self.send_response(200)
        self.end_headers()
        assert isinstance(self.server, Cameras)
        while not self.server.stopped.wait(0.05) and self._written(b"x"):
            continue
        self.close_connection = True

    def _written(self, data: bytes) -> bool:
        try:
            self.wfile.write(data)
        except OSError:
            return False
        return True

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with Cameras("127.0.0.1") as server:
        yield server.server_port


@pytest.fixture
def fetch(port: int) -> ImageFetcher:
    return ImageFetcher((f"127.0.0.1:{port}",), MOST, 60)


def test_an_image(fetch: ImageFetcher, port: int) -> None:
    assert fetch(f"http://127.0.0.1:{port}/frame.png?at=1") == RED


def test_image_fetch_ends_at_the_deadline(fetch: ImageFetcher, port: int) -> None:
    """An image is waited for no longer than its answer is wanted."""
    with pytest.raises(DeadlineExceededError, match="while image_url was fetched"):
        fetch(f"http://127.0.0.1:{port}/drip", time.monotonic() + 0.2)
    with pytest.raises(DeadlineExceededError):
        fetch(f"http://127.0.0.1:{port}/", time.monotonic() - 1)
    with pytest.raises(ImageUrlError, match=r"no answer in 0\.2 s"):
        ImageFetcher((f"127.0.0.1:{port}",), MOST, 0.2)(
            f"http://127.0.0.1:{port}/drip", time.monotonic() + 600
        )


def test_deadline_counts_while_image_is_fetched(port: int, colors: Path) -> None:
    """A request's deadline counts while its image is fetched."""
    with live_server(
        models=colors, image_url_hosts=f"127.0.0.1:{port}", image_url_timeout=60
    ) as server:
        wanted: dict[str, Any] = {"image_url": f"http://127.0.0.1:{port}/drip", "deadline_ms": 200}
        answer = requests.post(server.url + "/v1/recognize", json=wanted, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "DEADLINE_EXCEEDED")


def test_a_name_needs_its_private_address_listed_too() -> None:
    with Cameras("localhost") as server:
        port = server.server_port
        url = f"http://localhost:{port}/"
        with pytest.raises(InvalidFieldError, match=r"private address .*1, which"):
            ImageFetcher((f"localhost:{port}",), MOST, 60)(url)
        both = (f"localhost:{port}", "127.0.0.0/8", "::1")
        assert ImageFetcher(both, MOST, 60)(url) == RED
        other = (f"localhost:{port}", "127.0.0.1:1", "[::1]:1")
        with pytest.raises(InvalidFieldError, match=r"private address .*1, which"):
            ImageFetcher(other, MOST, 60)(url)


@pytest.mark.parametrize(
    "address",
    [
        *("fec0::1", "2002:7f00:1::", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "::7f00:1"),
        *("::ffff:0:10.0.0.1", "2001::1", "5f00::1", "3fff::1"),
    ],
)
def test_a_name_of_an_address_that_leads_to_a_private_one(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(*_: object, **__: object) -> list[object]:
        return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, 80, 0, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", named)
    with pytest.raises(InvalidFieldError, match="private address"):
        ImageFetcher(("camera.example",), MOST, 60)("http://camera.example/")


PUBLIC_IPV4 = ("1.1.1.1", "8.8.8.8", "93.184.216.34", "100.128.0.1", "172.32.0.1", "223.255.255.1")
SPECIAL_IPV4 = (
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1"),
    *("172.31.255.255", "192.0.0.9", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1"),
    *("198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1"),
    "255.255.255.255",
)
PUBLIC_IPV6 = ("2606:4700::1111", "2001:4860:4860::8888", "2a00:1450::1", "2400:cb00::1", "2003::1")
SPECIAL_IPV6 = (
    *("::", "::1", "64:ff9b:1::1", "100::1", "2001::1", "2001:2::1", "2001:10::1", "2001:20::1"),
    *("2001:db8::1", "2001:1ff:ffff::1", "3ffe::1", "3fff::1", "3fff:fff::1", "4000::1", "5f00::1"),
    *("8000::1", "fc00::1", "fd12::1", "fe80::1", "febf::1", "fec0::1", "feff::1", "ff02::1"),
)


def test_only_global_unicast_is_public() -> None:
    addresses = (*PUBLIC_IPV4, *PUBLIC_IPV6, *SPECIAL_IPV4, *SPECIAL_IPV6)
    public = [text for text in addresses if is_public(ip_address(text))]
    assert public == [*PUBLIC_IPV4, *PUBLIC_IPV6]


@pytest.mark.parametrize("inner", [*PUBLIC_IPV4, *SPECIAL_IPV4])
def test_an_embedded_ipv4_address_decides(inner: str) -> None:
    """Forms that a host may translate to IPv4 count as that address; obsolete ones never."""
    number, public = int(ip_address(inner)), inner in PUBLIC_IPV4
    forms = {
        "mapped": (0xFFFF << 32 | number, public),
        "NAT64": (int(IPv6Address("64:ff9b::")) | number, public),
        "6to4": (0x2002 << 112 | number << 80, public),
        "compatible": (number, False),
        "translated": (0xFFFF << 48 | number, False),
        "local NAT64": (int(IPv6Address("64:ff9b:1::")) | number, False),
        "Teredo": (0x2001 << 112 | number << 64 | (number ^ 0xFFFF_FFFF), False),
    }
    judged = {form: is_public(IPv6Address(value)) for form, (value, _) in forms.items()}
    assert judged == {form: expected for form, (_, expected) in forms.items()}


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1/",
        "http://127.0.0.1/",
        "http://127.0.0.2:{port}/",
        "http://localhost:{port}/",
        "http://127.0.0.1.nip.io:{port}/",
        "http://2130706433:{port}/",
        "http://0x7f.1:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://[::1]:{port}/",
        "http://user@127.0.0.1:{port}/",
        "http://example.com#@127.0.0.1:{port}/",
        "ftp://127.0.0.1:{port}/",
        "file:///etc/passwd",
        "//127.0.0.1:{port}/",
        "127.0.0.1:{port}/",
        "http://127.0.0.1:{port}/a b",
        "http://127.0.0.1:{port}/\r\nX-Evil: 1",
        "http://127.0.0.1:99999/",
        "http://[/",
        "",
    ],
)
def test_what_may_not_be_fetched(fetch: ImageFetcher, port: int, url: str) -> None:
    with pytest.raises(InvalidFieldError, match="image_url"):
        fetch(url.format(port=port))


def test_redirects_stay_on_the_list(fetch: ImageFetcher, port: int) -> None:
    base = f"http://127.0.0.1:{port}"
    assert fetch(f"{base}/to//frame.png") == RED
    assert fetch(f"{base}/to/{base}/frame.png") == RED
    for away in ("http://10.0.0.1/", f"http://localhost:{port}/", "file:///etc/passwd"):
        with pytest.raises(InvalidFieldError):
            fetch(f"{base}/to/{away}")
    with pytest.raises(ImageUrlError, match="more than 3 redirects"):
        fetch(f"{base}/self")


@pytest.mark.parametrize("path", ["/large", "/endless"])
def test_too_many_bytes(fetch: ImageFetcher, port: int, path: str) -> None:
    with pytest.raises(BodyTooLargeError, match=r"0\.1 MB"):
        fetch(f"http://127.0.0.1:{port}{path}")


@pytest.mark.parametrize(
    ("path", "words"), [("/missing", "answers 404"), ("/cut", "cut off|IncompleteRead")]
)
def test_what_can_not_be_had(fetch: ImageFetcher, port: int, path: str, words: str) -> None:
    with pytest.raises(ImageUrlError, match=words):
        fetch(f"http://127.0.0.1:{port}{path}")


def test_a_server_that_drips_is_left_in_time(port: int) -> None:
    fetch = ImageFetcher((f"127.0.0.1:{port}",), MOST, 0.5)
    with pytest.raises(ImageUrlError, match=r"no answer in 0\.5 s"):
        fetch(f"http://127.0.0.1:{port}/drip")


def test_a_server_that_says_nothing_is_left_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        fetch = ImageFetcher((f"127.0.0.1:{port}",), MOST, 0.5)
        with pytest.raises(ImageUrlError, match="no answer in"):
            fetch(f"http://127.0.0.1:{port}/")
    fetch = ImageFetcher((f"127.0.0.1:{port}",), MOST, 60)
    with pytest.raises(ImageUrlError, match="refused"):
        fetch(f"http://127.0.0.1:{port}/")


def test_tls_is_checked(port: int) -> None:
    fetch = ImageFetcher((f"127.0.0.1:{port}",), MOST, 5)
    with pytest.raises(ImageUrlError, match="can't be fetched"):
        fetch(f"https://127.0.0.1:{port}/")


@pytest.mark.parametrize(
    ("entry", "host", "port", "covered"),
    [
        ("Cam.local", "cam.local", 80, True),
        ("cam.local", "cam.local", 443, True),
        ("cam.local", "cam.local", 8080, False),
        ("cam.local:8080", "cam.local", 8080, True),
        ("cam.local:8080", "cam.local", 80, False),
        ("cam.local", "evil.cam.local", 80, False),
        ("10.0.0.0/24", "10.0.0.7", 80, True),
        ("10.0.0.0/24", "10.0.1.7", 80, False),
        ("10.0.0.0/24:8080", "10.0.0.7", 8080, True),
        ("::1", "::1", 80, True),
        ("[::1]:8080", "::1", 8080, True),
        ("fd00::/8", "fd12::1", 80, True),
    ],
)
def test_the_list_s_entries(entry: str, host: str, port: int, covered: bool) -> None:
    assert parse_allowed(entry).covers(host, port) is covered


@pytest.mark.parametrize(
    "entry", ["", "*", "*.local", "http://x", "x/24", "a b", "x:y", "user@x", "10.0.0.1/8"]
)
def test_entries_that_are_no_hosts(entry: str) -> None:
    with pytest.raises(SettingsError, match="image_url_hosts"):
        parse_allowed(entry)


def test_through_the_server(port: int, client_models: str) -> None:
    hosts = f"camera.invalid, 127.0.0.1:{port}"
    # The machine may take its time to say that a name leads nowhere.
    patience = {"image_url_timeout": 30, "max_wait_ms": 60_000}
    with live_server(
        models=client_models, model="corners", image_url_hosts=hosts, **patience
    ) as server:

        def ask(url: str) -> requests.Response:
            body: dict[str, Any] = {"image_url": url, "top_k": 1}
            return requests.post(server.url + "/v1/recognize", json=body, timeout=60)

        well = ask(f"http://127.0.0.1:{port}/frame.png")
        assert well.json()["predictions"][0]["label"] == "red"
        form = {"image_url": f"http://127.0.0.1:{port}/frame.png"}
        assert requests.post(server.url + "/v1/recognize", form, timeout=60).status_code == 200
        for url, status, code in (
            (f"http://127.0.0.1:{port}/missing", 422, "IMAGE_URL_FAILED"),
            ("http://camera.invalid/", 422, "IMAGE_URL_FAILED"),
            ("http://127.0.0.1/", 400, "INVALID_FIELD"),
        ):
            answer = ask(url)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
