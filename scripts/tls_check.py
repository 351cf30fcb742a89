"""Looks at the TLS of a server as an attacker's scanner does, by `openssl s_client`.

    python scripts/tls_check.py
    python scripts/tls_check.py station4.local:8080 --ca certificate.pem
    python scripts/tls_check.py HOST:PORT --ca FILE --client-certificate FILE --client-key FILE

Without HOST:PORT it starts a server of its own that asks for client certificates, and also replaces
its certificate under load. Prints a table; ends with 1 if a row does not hold.
"""

import argparse
import os
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

from soak.site import ROOT, free_port

OLD, TAKEN = ("tls1", "tls1_1"), ("tls1_2", "tls1_3")
# Of OpenSSL's names for groups of TLS 1.2's suites, with what is wrong with them.
WEAK = {
    "eNULL": "no encryption",
    "aNULL": "no authentication",
    "RC4": "RC4",
    "3DES": "3DES",
    "kRSA": "no forward secrecy",
    "kPSK": "a shared password",
    "SHA1": "CBC with SHA-1",
    "SHA256": "CBC with SHA-256",
    "SHA384": "CBC with SHA-384",
}
# An attacker's client offers what OpenSSL forbids by itself.
ANY_LEVEL = "@SECLEVEL=0"
NOT_TRIED = "not tried: this openssl can't"
PROBE_S, START_S, SWAP_S = 20.0, 60.0, 60.0
CLIENTS, REQUESTS_AFTER = 8, 20


class Row(NamedTuple):
    """One check: its subject, what was found, what is right, and whether that holds."""

    what: str
    found: str
    right: str
    holds: bool


class Handshake(NamedTuple):
    """status: of the answer to GET /livez; 0 if none came. cipher, version: '' without a
    connection. text: all that openssl said. sent: whether this openssl can offer it at all."""

    status: int
    version: str
    cipher: str
    text: str
    sent: bool


class Target(NamedTuple):
    """host, port: of the server. ca: of its certificate, PEM. identity: options that send the
    client's certificate, if any."""

    host: str
    port: int
    ca: Path
    identity: tuple[str, ...] = ()

    def shake(self, *options: str, identity: tuple[str, ...] | None = None) -> Handshake:
        """One connection with GET /livez. identity: in place of the target's own."""
        own = self.identity if identity is None else identity
        address = f"[{self.host}]" if ":" in self.host else self.host
        command = ["openssl", "s_client", "-connect", f"{address}:{self.port}", "-ign_eof"]
        request = f"GET /livez HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        try:
            done = subprocess.run(
                [*command, *options, *own],
                input=request.encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=PROBE_S,
                check=False,
            )
            output = done.stdout
        except subprocess.TimeoutExpired as error:  # a server that never closes
            output = error.output or b""
        text = output.decode("utf-8", "replace")
        version, _, cipher = _after(text, "New, ").partition(", Cipher is ")
        known = cipher not in ("", "(NONE)")
        answer = _after(text, "HTTP/1.")
        return Handshake(
            int(answer[2:5]) if answer else 0,
            (_after(text, "    Protocol  : ") or version) if known else "",
            cipher if known else "",
            text,
            not any(sentence in text for sentence in UNABLE),
        )


# Sentences of openssl if it can't offer a version or a suite.
UNABLE = ("no protocols available", "no cipher match", "no ciphers available", "unknown option")


def _name(version: str) -> str:
    """`TLS 1.2` for the option `tls1_2`."""
    return f"TLS 1.{version.partition('_')[2] or 0}"


def _after(text: str, begin: str) -> str:
    """The rest of the line that has `begin`; '' without one."""
    return text.partition(begin)[2].partition("\n")[0].strip()


def versions(target: Target) -> Iterator[Row]:
    """Yield which versions of TLS are taken."""
    for version in (*OLD, *TAKEN):
        old = version in OLD
        weak = ("-cipher", f"ALL:{ANY_LEVEL}") if old else ()
        shake = target.shake(f"-{version}", *weak)
        found = f"answered {shake.status}" if shake.status else "refused"
        if not shake.sent:
            found = NOT_TRIED
        holds = not shake.cipher if old else shake.status == 200
        yield Row(_name(version), found, "refused" if old else "answered 200", holds)


def ciphers(target: Target) -> Iterator[Row]:
    """Yield which suites are taken, and that no weak one is."""
    for group, fault in WEAK.items():
        offered = _suites(group)
        if not offered:
            yield Row(f"{group}: {fault}", NOT_TRIED, "refused", True)
            continue
        shake = target.shake("-tls1_2", "-cipher", f"{':'.join(offered)}:{ANY_LEVEL}")
        found = shake.cipher or f"refused ({len(offered)} suites)"
        yield Row(f"{group}: {fault}", found, "refused", not shake.cipher)
    left, taken = _suites("ALL:COMPLEMENTOFALL"), list[str]()
    while left:
        shake = target.shake("-tls1_2", "-cipher", f"{':'.join(left)}:{ANY_LEVEL}")
        if not shake.cipher:
            break
        taken.append(shake.cipher)
        left.remove(shake.cipher)
    strong = [name for name in taken if name.startswith(("ECDHE-", "DHE-")) and _is_aead(name)]
    found = ", ".join(taken) or "none"
    yield Row("TLS 1.2 suites", found, "(EC)DHE with AEAD only", strong == taken != [])
    shake = target.shake("-tls1_2", "-comp", "-cipher", f"ALL:{ANY_LEVEL}")
    compression = _after(shake.text, "Compression: ")
    # Without zlib openssl offers none, and the server has none to refuse.
    found = compression if _has_zlib() else NOT_TRIED
    yield Row("compression", found, "NONE", compression == "NONE")


def _suites(group: str) -> list[str]:
    """OpenSSL's names of the suites of TLS 1.2 in `group` that it can offer."""
    # `-s` leaves out suites that this build has no protocol or code for.
    wanted = f"{group}:!AESGCM:!CHACHA20" if group.startswith("SHA") else group
    done = subprocess.run(
        ["openssl", "ciphers", "-s", "-tls1_2", f"{wanted}:{ANY_LEVEL}"],
        capture_output=True,
        text=True,
        check=False,
    )
    names = done.stdout.strip().split(":") if done.returncode == 0 else []
    return [name for name in names if name and not name.startswith("TLS_")]


def _has_zlib() -> bool:
    """Return True if this openssl can offer compression."""
    done = subprocess.run(
        ["openssl", "list", "-disabled"], capture_output=True, text=True, check=False
    )
    return done.returncode == 0 and "ZLIB" not in done.stdout.split()


def _is_aead(name: str) -> bool:
    return any(part in name for part in ("GCM", "CHACHA20", "CCM"))


def certificate(target: Target) -> Iterator[Row]:
    """The certificate that the server shows."""
    is_address = ":" in target.host or target.host.replace(".", "").isdigit()
    name = "-verify_ip" if is_address else "-verify_hostname"
    shake = target.shake("-CAfile", str(target.ca), name, target.host)
    found = _after(shake.text, "Verify return code: ")
    right = f"0 (ok), for {target.host}"
    yield Row("certificate", found, right, found.startswith("0 "))


def client_certificates(target: Target, stranger: tuple[str, ...]) -> Iterator[Row]:
    """That clients must have a certificate. stranger: options with another one."""
    for version in TAKEN:
        without = target.shake(f"-{version}", identity=())
        asked = "Requested Signature Algorithms" in without.text
        name = _name(version)
        yield Row(f"{name}, client certificate", "asked" if asked else "not asked", "asked", asked)
        other = target.shake(f"-{version}", identity=stranger)
        known = target.shake(f"-{version}")
        for who, shake, right in (
            ("client without one", without, 0),
            ("client with a stranger's", other, 0),
            ("client with its own", known, 200),
        ):
            found = f"answered {shake.status}" if shake.status else "refused"
            told = f"answered {right}" if right else "refused"
            yield Row(f"{name}, {who}", found, told, shake.status == right)


class OwnServer:
    """A server in `folder` that asks for client certificates, with all files that it needs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ca = folder / "server.pem"
        for name in ("server", "client", "stranger"):
            self.make(name)
        self.port = free_port()
        settings = {
            "port": self.port,
            "data": folder / "data",
            "tls_certificate": self.ca,
            "tls_key": folder / "server-key.pem",
            "tls_client_ca": folder / "client.pem",
        }
        environ = {k: v for k, v in os.environ.items() if not k.startswith("LINESIDE_")}
        environ |= {f"LINESIDE_{name.upper()}": str(value) for name, value in settings.items()}
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "server", "serve"],
                cwd=ROOT,
                env=environ,
                stdout=log,
                stderr=log,
            )

    def make(self, name: str) -> None:
        """A certificate and key of this name."""
        files = {kind: self._folder / f"{name}{kind}.pem" for kind in ("", "-key")}
        made = [f"--certificate={files['']}", f"--key={files['-key']}"]
        subprocess.run(
            [sys.executable, "-m", "server", "certificate", "localhost", "127.0.0.1", *made],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            check=True,
        )

    def identity(self, name: str) -> tuple[str, ...]:
        """Options of `openssl s_client` that send this certificate."""
        files = {kind: self._folder / f"{name}{kind}.pem" for kind in ("", "-key")}
        return ("-cert", str(files[""]), "-key", str(files["-key"]))

    def await_answer(self, target: Target) -> None:
        """Returns once it answers. Raises RuntimeError, with the end of its log, if it ends."""
        until = time.monotonic() + START_S
        while target.shake().status != 200:
            if time.monotonic() > until or self._process.poll() is not None:
                log = (self._folder / "log").read_text("utf-8")
                raise RuntimeError(f"the server does not answer: {log[-2000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def swap(self, target: Target) -> Iterator[Row]:
        """Replace the certificate while CLIENTS ask over kept and new connections."""
        context = ssl.create_default_context()
        # The new certificate is not known to them; they are about lost requests.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(self._folder / "client.pem", self._folder / "client-key.pem")
        ends, swapped = [Counter[str]() for _ in range(CLIENTS)], threading.Event()

        def client(number: int) -> None:
            after, connection = 0, HTTPSConnection("127.0.0.1", self.port, context=context)
            while after < REQUESTS_AFTER:
                after += swapped.is_set()
                try:
                    connection.request("GET", "/livez")
                    ends[number][str(_status(connection))] += 1
                except (OSError, HTTPException) as error:
                    ends[number][repr(error)] += 1
                if number % 2:
                    connection.close()  # the next request opens it anew
            connection.close()

        before = _shown(target)
        self.make("next")
        threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for kind in ("", "-key"):
            (self._folder / f"next{kind}.pem").replace(self._folder / f"server{kind}.pem")
        until = time.monotonic() + SWAP_S
        while (after := _shown(target)) == before and time.monotonic() < until:
            time.sleep(0.05)
        swapped.set()
        for thread in threads:
            thread.join()
        found = "another" if after != before else "the old one"
        yield Row("certificate after its files changed", found, "another", after != before)
        right = sum(each["200"] for each in ends)
        lost = sum(each.total() for each in ends) - right
        told = f"{right} answered, {lost} lost"
        yield Row(f"requests of {CLIENTS} clients meanwhile", told, "0 lost", lost == 0)


def _status(connection: HTTPSConnection) -> int:
    answer = connection.getresponse()
    answer.read()
    return answer.status


def _shown(target: Target) -> str:
    """The certificate that a new connection is shown, PEM."""
    return target.shake().text.partition("-----BEGIN CERTIFICATE-----")[2].partition("-----END")[0]


@contextmanager
def own_server() -> Iterator[tuple[OwnServer, Target]]:
    """A server that answers, and how to reach it."""
    with tempfile.TemporaryDirectory(prefix="lineside-tls-") as name:
        server = OwnServer(Path(name))
        target = Target("127.0.0.1", server.port, server.ca, server.identity("client"))
        try:
            server.await_answer(target)
            yield server, target
        finally:
            server.stop()


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; what was not tried neither holds nor fails."""
    cells = [("what", "found", "right", "holds"), ("---",) * 4]
    for row in rows:
        holds = "" if row.found == NOT_TRIED else "yes" if row.holds else "**no**"
        cells.append((*row[:3], holds))
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0 if all rows hold, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("server", nargs="?", help="HOST:PORT; without it, a server of its own")
    parser.add_argument("--ca", type=Path, help="certificates that vouch for the server's, PEM")
    parser.add_argument("--client-certificate", type=Path, help="if the server asks for one, PEM")
    parser.add_argument("--client-key", type=Path, help="its key, PEM")
    args = parser.parse_args(arguments)
    if args.server:
        host, _, port = args.server.rpartition(":")
        if not host or not port.isdigit() or not args.ca:
            parser.error("say HOST:PORT and --ca FILE")
        pair = (args.client_certificate, args.client_key)
        if any(pair) != all(pair):
            parser.error("--client-certificate and --client-key go together")
        identity = ("-cert", str(pair[0]), "-key", str(pair[1])) if all(pair) else ()
        target = Target(host.strip("[]"), int(port), args.ca, identity)
        rows = [*versions(target), *ciphers(target), *certificate(target)]
    else:
        with own_server() as (server, target):
            rows = [*versions(target), *ciphers(target), *certificate(target)]
            rows += client_certificates(target, server.identity("stranger"))
            rows += server.swap(target)
    print(table(rows), flush=True)
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
