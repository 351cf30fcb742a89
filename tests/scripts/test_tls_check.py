"""The scan of TLS: a server of ours holds, and one that takes old versions does not."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from server_process import free_port, run_script

from server.process.certificates import make_certificate

SUITES = "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES128-SHA:AECDH-NULL-SHA"

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")


def scan(*arguments: str) -> tuple[int, dict[str, list[str]], str]:
    """The exit code, the cells of each row by its first, and all that was printed."""
    done = run_script("scripts/tls_check.py", *arguments)
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()]
    return done.returncode, {row[0]: row[1:] for row in rows}, done.stdout + done.stderr


@contextmanager
def openssl_server(folder: Path, *options: str) -> Iterator[tuple[str, Path]]:
    """The address of `openssl s_server` with these options, and its certificate."""
    certificate, key = folder / "c.pem", folder / "k.pem"
    for path, content in zip((certificate, key), make_certificate(["localhost"], 2), strict=True):
        path.write_bytes(content)
    port = free_port()
    files = ["-cert", str(certificate), "-key", str(key)]
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-www", *files, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            assert any(line.startswith(b"ACCEPT") for line in process.stdout)
            yield f"localhost:{port}", certificate
        finally:
            process.kill()


def test_our_server_holds_every_row() -> None:
    code, rows, printed = scan()
    assert code == 0, printed
    assert rows["TLS 1.1"][0] == "refused"
    assert rows["TLS 1.3, client without one"][0] == "refused"
    assert rows["TLS 1.3, client with its own"][0] == "answered 200"
    assert rows["requests of 8 clients meanwhile"][0].endswith(" answered, 0 lost")
    assert "**no**" not in printed


def test_weak_server_fails_where_it_is_weak(tmp_path: Path) -> None:
    weak = ("-cipher", f"{SUITES}:@SECLEVEL=0", "-min_protocol", "TLSv1")
    with openssl_server(tmp_path, *weak) as (address, certificate):
        code, rows, printed = scan(address, "--ca", str(certificate))
    assert code == 1
    failed = {name for name, row in rows.items() if row[-1] == "**no**"}
    assert failed >= {"TLS 1.1", "eNULL: no encryption", "SHA1: CBC with SHA-1"}, printed
    assert {"aNULL: no authentication", "TLS 1.2 suites"} <= failed
    assert not failed & {"TLS 1.2", "TLS 1.3", "certificate", "kRSA: no forward secrecy"}


@pytest.mark.parametrize("arguments", [["localhost"], ["localhost:1"], ["host:x", "--ca", "a"]])
def test_incomplete_command_is_refused(arguments: list[str]) -> None:
    code, _, printed = scan(*arguments)
    assert code == 2
    assert "say HOST:PORT and --ca FILE" in printed
