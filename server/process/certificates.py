"""The files of TLS: the server's certificate and key, checked at the start, and made for a test
bench; and the certificate by which this machine's own probes come in if clients must have one.
"""

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from server.config.settings import Settings
from server.errors import SettingsError
from server.system.files import read_plain_file, write_whole

# In the folder `data`: certificate and key of this machine's probes, and the certificates by which
# clients' are checked, with that one among them.
PROBE, CLIENT_CA = "tls-probe.pem", "tls-client-ca.pem"
PROBE_DAYS = 3650
# The kinds of keys that the HTTP server's TLS takes (rustls).
RSA_BITS_MIN, RSA_BITS_MAX, CURVES = 2048, 8192, ("secp256r1", "secp384r1")
KEY_BEGIN = b"-----BEGIN PRIVATE KEY-----"
# What the files are compared by: modification time in ns, size in bytes, inode.
State = tuple[tuple[int, int, int], ...]


class CertificateFiles(msgspec.Struct, frozen=True):
    """The files of TLS in PEM: the server's certificate with its chain, its private key, and the
    certificates by which clients' are checked, if clients must have one."""

    certificate: Path
    key: Path
    client_ca: Path | None
    data: Path

    def state(self) -> State:
        """Return what is another if a file has changed. Raises OSError if one is missing."""
        stats = [path.stat() for path in (self.certificate, self.key, self.client_ca) if path]
        return tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in stats)

    def check(self) -> None:
        """Raise SettingsError if a file can't be used, or if key and certificate do not belong
        together."""
        for setting, path in (
            ("tls_certificate", self.certificate),
            ("tls_key", self.key),
            ("tls_client_ca", self.client_ca),
        ):
            try:
                content = read_plain_file(path) if path else b"-----BEGIN"
            except OSError as error:
                raise SettingsError(f"{setting} {path} can't be read: {error.strerror}") from None
            if b"-----BEGIN" not in content:
                raise SettingsError(f"{setting} {path} is no PEM file")
            if b"ENCRYPTED" in content:
                raise SettingsError(
                    f"{setting} {path} has a password, which nobody could type at a start: write"
                    " the key without one, as by `openssl pkey -in FILE -out NEW`"
                )
        _check_kind(self.certificate, self.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (ssl.SSLError, ValueError) as error:
            raise SettingsError(
                f"tls_certificate {self.certificate} can't be used with tls_key {self.key}:"
                f" {_reason(error)}"
            ) from None
        if self.client_ca:
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError as error:
                raise SettingsError(
                    f"tls_client_ca {self.client_ca} can't be used: {_reason(error)}"
                ) from None

    def arguments(self) -> dict[str, Any]:
        """Return what Granian's worker is told of these files. Raises OSError if `data` can't be
        written."""
        told = {
            "ssl_enabled": True,
            "ssl_cert": str(self.certificate),
            "ssl_key": str(self.key),
            "ssl_protocol_min": "tls1.2",
            "ssl_crl": [],
        }
        if self.client_ca:
            both = self.data / CLIENT_CA
            write_whole(both, self.client_ca.read_bytes() + b"\n" + self._probe_certificate())
            told |= {"ssl_ca": str(both), "ssl_client_verify": True}
        return told

    def _probe_certificate(self) -> bytes:
        """Return the certificate of this machine's probes, made if there is none."""
        probe = self.data / PROBE
        if not probe.is_file():
            certificate, key = make_certificate(["lineside-probe"], PROBE_DAYS)
            write_whole(probe, certificate + key, private=True)
        return read_plain_file(probe).partition(KEY_BEGIN)[0]


def certificate_files(settings: Settings) -> CertificateFiles | None:
    """Return the files of TLS; None for plain HTTP. Raises SettingsError if one that is needed is
    not set."""
    names = ("tls_certificate", "tls_key", "tls_client_ca")
    certificate, key, client_ca = (getattr(settings, name) for name in names)
    if not (certificate or key or client_ca):
        return None
    for name, value in zip(names, (certificate, key), strict=False):
        if not value:
            raise SettingsError(f"TLS needs a certificate and its key, so {name} must be set too")
    return CertificateFiles(
        Path(certificate), Path(key), Path(client_ca) if client_ca else None, Path(settings.data)
    )


def probe_context(settings: Settings) -> ssl.SSLContext:
    """Return the TLS of a connection to the server of this machine. It checks no certificate, since
    it asks by the loopback address, which certificates do not name; and shows the probes' own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    probe = Path(settings.data) / PROBE
    if settings.tls_client_ca and probe.is_file():
        context.load_cert_chain(probe)
    return context


def make_certificate(names: list[str], days: int) -> tuple[bytes, bytes]:
    """Return a self-signed certificate (RFC 5280) for `names`, host names or IP addresses, valid
    for `days`, and its private key, of the curve P-256, both in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, names[0][:64])])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks of devices without a battery differ.
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(list(map(_general_name, names))), critical=False)
        # Some clients, rustls among them, refuse an authority's certificate as a server's own.
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return certificate.public_bytes(pem), key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _check_kind(certificate: Path, key: Path) -> None:
    """Raise SettingsError for what OpenSSL takes and the HTTP server does not: it would end the
    process."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if b"-----BEGIN CERTIFICATE-----" not in read_plain_file(certificate):
        raise SettingsError(f"tls_certificate {certificate} has no `BEGIN CERTIFICATE` in it")
    try:
        private = load_pem_private_key(read_plain_file(key), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise SettingsError(f"tls_key {key} can't be used: it is damaged, or no key") from None
    if isinstance(private, rsa.RSAPrivateKey):
        known = RSA_BITS_MIN <= private.key_size <= RSA_BITS_MAX
    elif isinstance(private, ec.EllipticCurvePrivateKey):
        known = private.curve.name in CURVES
    else:
        known = isinstance(private, ed25519.Ed25519PrivateKey)
    if not known:
        raise SettingsError(
            f"tls_key {key} is of a kind that this server can't use: make one of RSA with"
            f" {RSA_BITS_MIN} bits or more, of the curve P-256 or P-384, or Ed25519"
        )


def _general_name(name: str) -> Any:
    """Return `name` as an entry of subjectAltName."""
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _reason(error: Exception) -> str:
    """Return what is wrong with a PEM file, in words of ours if OpenSSL's are known."""
    reason = getattr(error, "reason", "") or ""
    known = {
        "KEY_VALUES_MISMATCH": "the key is of another certificate",
        "KEY_TYPE_MISMATCH": "the key is of another certificate",
        "NO_START_LINE": "a certificate or a key is missing in it",
        "NO_CERTIFICATE_OR_CRL_FOUND": "there is no certificate in it",
        "EE_KEY_TOO_SMALL": "the key is too short",
    }
    return known.get(reason, "it is damaged, or of a kind that TLS does not take")
