"""HTTPS by the server itself: versions, client certificates, renewal, refusals at the start."""

import http.client
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from images import encode, plain
from server_process import ROOT, LiveServer, environ_without_coverage

from server.cli.main import main
from server.process.certificates import make_certificate

GREEN = encode(plain((0, 255, 0)), "PNG")


class Pair:
    """A certificate and its key in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.certificate, self.key = folder / f"{name}.pem", folder / f"{name}-key.pem"
        self.make()

    def make(self) -> None:
        certificate, key = make_certificate(["localhost", "127.0.0.1"], 2)
        self.certificate.write_bytes(certificate)
        self.key.write_bytes(key)


class TlsServer(LiveServer):
    """A server with HTTPS, and a connection to it."""

    def __init__(
        self, colors: Path, folder: Path, *, mutual: bool = False, **settings: object
    ) -> None:
        self.pair, self.client = Pair(folder, "server"), Pair(folder, "client")
        settings |= {"tls_certificate": self.pair.certificate, "tls_key": self.pair.key}
        if mutual:
            settings["tls_client_ca"] = self.client.certificate
        super().__init__(models=colors, **settings)
        self.url = self.url.replace("http:", "https:")
        self.await_event("listening")

    def context(self, *, known: bool = True) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.pair.certificate)
        if known:
            context.load_cert_chain(self.client.certificate, self.client.key)
        return context

    def connect(self, context: ssl.SSLContext | None = None) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(
            "localhost", self.port, context=context or self.context(), timeout=60
        )

    def shown(self) -> bytes:
        """The certificate that a new connection is shown, DER."""
        context = ssl._create_unverified_context()
        with (
            socket.create_connection(("localhost", self.port), 60) as raw,
            context.wrap_socket(raw) as sock,
        ):
            return sock.getpeercert(binary_form=True) or b""


@pytest.fixture(scope="module")
def server(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    server = TlsServer(colors, tmp_path_factory.mktemp("tls"), body_timeout=1)
    yield server
    assert server.stop() == 0


def send(connection: http.client.HTTPConnection) -> int:
    """The status of one frame on `connection`."""
    connection.request("POST", "/v1/recognize", GREEN)
    answer = connection.getresponse()
    answer.read()
    return answer.status


def post(connection: http.client.HTTPConnection) -> int:
    """The same, and the connection is closed."""
    with closing(connection):
        return send(connection)


def test_frame_over_https_is_answered(server: TlsServer) -> None:
    assert post(server.connect()) == 200
    assert requests.get(
        server.url + "/openapi.json", verify=str(server.pair.certificate), timeout=60
    ).ok


@pytest.mark.parametrize(("version", "taken"), [("TLSv1_1", False), ("TLSv1_2", True)])
def test_oldest_version_is_tls_1_2(server: TlsServer, version: str, taken: bool) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with nullcontext() if taken else pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    if taken:
        assert post(server.connect(context)) == 200
    else:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            post(server.connect(context))


def test_plain_http_is_not_answered(server: TlsServer) -> None:
    with pytest.raises((OSError, http.client.HTTPException)):
        post(http.client.HTTPConnection("localhost", server.port, timeout=60))
    assert post(server.connect()) == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_slow_body_gets_408_over_https(server: TlsServer, version: ssl.TLSVersion) -> None:
    context = server.context()
    context.maximum_version = version
    connection = server.connect(context)
    connection.putrequest("POST", "/v1/recognize")
    connection.putheader("Content-Length", str(len(GREEN)))
    connection.endheaders(GREEN[:20])
    with closing(connection):
        answer = connection.getresponse()
        assert answer.status == 408
        assert b"REQUEST_TIMEOUT" in answer.read()


def test_health_command_asks_over_https(server: TlsServer) -> None:
    command = [sys.executable, "-m", "server", "health", "--port", str(server.port)]
    flags = ["--tls-certificate", server.pair.certificate, "--tls-key", server.pair.key]
    done = subprocess.run(
        [*command, *map(str, flags)],
        cwd=ROOT,
        env=environ_without_coverage(),
        timeout=60,
        check=False,
    )
    assert done.returncode == 0


def test_fleet_asks_over_https(server: TlsServer, capsys: pytest.CaptureFixture[str]) -> None:
    host = f"https://localhost:{server.port}"
    assert main(["fleet", "status", host, "--ca", str(server.pair.certificate)]) == 0
    assert main(["fleet", "status", host]) == 1, "nobody vouches for it"
    assert "certificate verify failed" in capsys.readouterr().out
    assert main(["fleet", "status", host, "--ca", "absent.pem"]) == 1
    assert "absent.pem can't be used" in capsys.readouterr().err


def test_certificate_replaced_under_load(server: TlsServer) -> None:
    before, ends, swapped = server.shown(), Counter[object](), threading.Event()
    # The new certificate is not known to them; they are about lost requests.
    context = ssl._create_unverified_context()

    def go_on() -> None:
        after = 0
        with closing(server.connect(context)) as connection:
            while after < 20:
                after += swapped.is_set()
                try:
                    ends[send(connection)] += 1
                except (OSError, http.client.HTTPException) as error:
                    ends[repr(error)] += 1

    clients = [threading.Thread(target=go_on) for _ in range(8)]
    for client in clients:
        client.start()
    server.pair.make()
    server.await_event("certificate replaced")
    swapped.set()
    for client in clients:
        client.join(60)
    assert set(ends) == {200}
    assert server.shown() != before
    assert post(server.connect()) == 200, "those who know the new one come in"


def test_damaged_new_certificate_leaves_the_old(server: TlsServer) -> None:
    before, whole = server.shown(), server.pair.key.read_bytes()
    server.pair.key.write_bytes(whole[: len(whole) // 2])
    line = server.await_event("new certificate refused; the old one serves")
    assert str(server.pair.key) in line["reason"]
    assert server.shown() == before
    server.pair.key.write_bytes(whole)
    server.await_event("certificate replaced")
    assert post(server.connect()) == 200


def test_client_without_certificate_is_refused(colors: Path, tmp_path: Path) -> None:
    server = TlsServer(colors, tmp_path, mutual=True)
    try:
        assert post(server.connect()) == 200
        with pytest.raises((ssl.SSLError, ConnectionError)):
            post(server.connect(server.context(known=False)))
        stranger = server.context(known=False)
        other = Pair(tmp_path, "stranger")
        stranger.load_cert_chain(other.certificate, other.key)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            post(server.connect(stranger))
        settings = {
            "LINESIDE_PORT": str(server.port),
            "LINESIDE_DATA": str(server.data),
            "LINESIDE_TLS_CERTIFICATE": str(server.pair.certificate),
            "LINESIDE_TLS_KEY": str(server.pair.key),
            "LINESIDE_TLS_CLIENT_CA": str(server.client.certificate),
        }
        health = subprocess.run(
            [sys.executable, "-m", "server", "health"],
            cwd=ROOT,
            env=environ_without_coverage() | settings,
            timeout=60,
            check=False,
        )
        assert health.returncode == 0, "this machine's own probe comes in"
        assert os.stat(server.data / "tls-probe.pem").st_mode & 0o077 == 0
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("no key", "tls_key must be set too"),
        ("no certificate", "tls_certificate must be set too"),
        ("missing", "key.pem can't be read: No such file or directory"),
        ("other key", "the key is of another certificate"),
        ("password", "has a password"),
        ("text", "is no PEM file"),
        ("cut", "it is damaged"),
        ("no ca", "ca.pem can't be read"),
        ("damaged ca", "tls_client_ca"),
        ("curve", "of a kind that this server can't use"),
        ("old label", "has no `BEGIN CERTIFICATE`"),
    ],
)
def test_unusable_certificate_stops_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, sentence: str
) -> None:
    pair, other = Pair(tmp_path, "one"), Pair(tmp_path, "two")
    certificate, key, ca = str(pair.certificate), str(pair.key), ""
    if change == "no key":
        key = ""
    elif change == "no certificate":
        certificate = ""
    elif change == "missing":
        key = str(tmp_path / "key.pem")
    elif change == "other key":
        key = str(other.key)
    elif change == "password":
        pair.key.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    elif change == "text":
        pair.certificate.write_text("hello")
    elif change == "cut":
        pair.certificate.write_bytes(pair.certificate.read_bytes()[:200])
    elif change == "curve":
        secret = ec.generate_private_key(ec.SECP521R1())
        pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        pair.key.write_bytes(secret.private_bytes(pem, form, serialization.NoEncryption()))
    elif change == "old label":
        text = pair.certificate.read_text()
        pair.certificate.write_text(text.replace("CERTIFICATE", "X509 CERTIFICATE"))
    elif change == "no ca":
        ca = str(tmp_path / "ca.pem")
    elif change == "damaged ca":
        (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nxx\n")
        ca = str(tmp_path / "ca.pem")
    flags = [f"--tls-certificate={certificate}", f"--tls-key={key}", f"--tls-client-ca={ca}"]
    assert main(["check", *flags]) == 1
    assert sentence in capsys.readouterr().err


def test_certificate_command_makes_a_usable_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [f"--certificate={tmp_path / 'c.pem'}", f"--key={tmp_path / 'k.pem'}"]
    assert main(["certificate", "camera-gate.local", "10.0.0.7", *files]) == 0
    assert "camera-gate.local, 10.0.0.7" in capsys.readouterr().out
    assert (tmp_path / "k.pem").stat().st_mode & 0o077 == 0
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")
    assert main(["certificate", *files]) == 1, "never overwritten"
    assert main(["certificate", "a b\u00e9", f"--certificate={tmp_path / 'd.pem'}"]) == 1
    assert main(["certificate", "--days=0", f"--certificate={tmp_path / 'd.pem'}"]) == 1
