"""python -m server fleet: sends one bundle to many devices, one device after the other.

A device gets the bundle's files, activates the version (which checks its golden frames), and must
then be ready with it. At the first failure no further device is touched.
"""

import argparse
import http.client
import io
import json
import os
import ssl
import tarfile
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from server.errors import StartError
from server.recognition.manifest import MANIFEST, SIGNATURE, Manifest, read_bundle
from server.store.bundles.layout import versions_of

# The environment variable with the API key for the devices.
KEY_VARIABLE = "FLEET_KEY"

T = TypeVar("T")
DEFAULT_PORT = 8080


class DeviceError(Exception):
    """A device answered with an error, or not at all; the message is a sentence about it."""


class Refused(msgspec.Struct, frozen=True):
    """A version that a device may not serve."""

    version: int


class Served(msgspec.Struct, frozen=True):
    """One model of a device: the version that serves, None if none does."""

    name: str
    serving: int | None
    failures: tuple[Refused, ...] = ()


class Listing(msgspec.Struct, frozen=True):
    """All models of a device."""

    models: tuple[Served, ...]


class ErrorText(msgspec.Struct, frozen=True):
    """An error's sentence for people."""

    message: str


class Failed(msgspec.Struct, frozen=True):
    """The body of an error."""

    error: ErrorText


class Device:
    """One server, by `host` as the user wrote it. Raises StartError if that is no host."""

    def __init__(
        self, host: str, key: str, timeout: float, tls: ssl.SSLContext | None = None
    ) -> None:
        """tls: of https:// addresses; None: with the machine's own authorities."""
        parts = urlsplit(host if "://" in host else f"http://{host}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise StartError(f"{host!r} is no HOST, HOST:PORT, http:// or https:// address")
        self.name = host
        port = parts.port or (443 if parts.scheme == "https" else DEFAULT_PORT)
        self._connection = (
            http.client.HTTPSConnection(parts.hostname, port, timeout=timeout, context=tls)
            if parts.scheme == "https"
            else http.client.HTTPConnection(parts.hostname, port, timeout=timeout)
        )
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def ask(self, method: str, path: str, body: bytes | None = None, kind: str = "") -> bytes:
        """Send a request; return the body of its answer. Raises DeviceError for an error, and if
        no answer comes."""
        headers = self._headers | ({"Content-Type": kind} if kind else {})
        try:
            self._connection.request(method, path, body, headers)
            answer = self._connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise DeviceError(f"no answer: {error or type(error).__name__}") from None
        finally:
            self._connection.close()
        if answer.status >= 300:
            raise DeviceError(f"{answer.status}: {_message(text)}")
        return text

    def models(self) -> tuple[Served, ...]:
        """Return its models. Raises DeviceError."""
        return _decode(self.ask("GET", "/v1/models"), Listing).models

    def serving(self, model: str) -> int | None:
        """Return the version of `model` that serves; None if none does. Raises DeviceError."""
        return next((each.serving for each in self.models() if each.name == model), None)

    def activate(self, model: str, version: int) -> None:
        """Have it serve `version`. Raises DeviceError if it does not."""
        wanted = json.dumps({"version": version}).encode()
        path = f"/v1/models/{quote(model)}/activate"
        now = _decode(self.ask("POST", path, wanted, "application/json"), Served).serving
        if now != version:
            raise DeviceError(f"it serves version {now} after {version} was activated")

    def take(self, manifest: Manifest, archive: bytes) -> None:
        """Send the version and activate it. Raises DeviceError if the device is not ready with
        it."""
        path = f"/v1/models/{quote(manifest.name)}/upload"
        self.ask("POST", path, archive, "application/x-tar")
        self.activate(manifest.name, manifest.version)
        self.ask("GET", "/readyz")

    def back_to(self, model: str, version: int | None) -> None:
        """Have it serve again what served before. Raises DeviceError if that was no version."""
        if version is None:
            raise DeviceError("it served no version before")
        self.activate(model, version)


def _decode(text: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise DeviceError(f"no Lineside server answers: {_start(text)}") from None


def _message(text: bytes) -> str:
    """Return the sentence in the body of an error."""
    try:
        return msgspec.json.decode(text, type=Failed).error.message
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _start(text)


def _start(text: bytes) -> str:
    return " ".join(text[:200].decode("latin1").split())


def pack(bundle: Path, manifest: Manifest) -> bytes:
    """Return the bundle's files as an uncompressed tar archive, as /upload takes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.dereference = True
        signature = (SIGNATURE,) if (bundle / SIGNATURE).exists() else ()
        for name in (MANIFEST, *signature, *manifest.sha256):
            archive.add(bundle / name, name, recursive=False, filter=_without_owner)
    return out.getvalue()


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Remove the owner: a user's number beyond 2,097,151 has no room in ustar."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _devices(args: argparse.Namespace) -> list[Device]:
    key = os.environ.get(KEY_VARIABLE, "")
    if args.key_file is not None:
        try:
            key = args.key_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise StartError(f"the key file {args.key_file} can't be read: {error}") from None
    return [Device(host, key, args.timeout, _tls(args)) for host in args.hosts]


def _tls(args: argparse.Namespace) -> ssl.SSLContext | None:
    """Return the TLS of https:// addresses by the flags --ca and --client-certificate. Raises
    StartError if a file can't be used."""
    if not args.ca and not args.client_certificate:
        return None
    try:
        context = ssl.create_default_context(cafile=args.ca)
        if args.client_certificate:
            context.load_cert_chain(args.client_certificate)
    except OSError as error:  # ssl.SSLError among them
        files = " and ".join(str(path) for path in (args.ca, args.client_certificate) if path)
        raise StartError(f"{files} can't be used: {error.strerror or 'no PEM file'}") from None
    return context


def push(args: argparse.Namespace) -> int:
    """Print a line a device; return 0 if all serve the bundle, else 1.

    Raises BundleError if the bundle is not intact, StartError for a folder of versions.
    """
    folder = args.bundle.absolute()
    inside = versions_of(folder.parent, folder.name)
    if inside and not (folder / MANIFEST).exists():
        raise StartError(
            f"{args.bundle} holds versions: name one of them, such as {args.bundle}/{inside[0]}"
        )
    manifest = read_bundle(args.bundle).manifest
    archive, devices = pack(args.bundle, manifest), _devices(args)
    name, changed = f"{manifest.name}/{manifest.version}", list[tuple[Device, int | None]]()
    for number, device in enumerate(devices):
        before: int | None = None
        try:
            before = device.serving(manifest.name)
            device.take(manifest, archive)
        except DeviceError as error:
            print(f"{device.name}: failed, {error}", flush=True)
            if _serves(device, manifest) and before != manifest.version:
                changed.append((device, before))
            _give_up(changed, devices[number + 1 :], manifest.name, args.rollback_on_failure)
            return 1
        if before == manifest.version:
            print(f"{device.name}: served {name} already", flush=True)
        else:
            print(f"{device.name}: serves {name}, before {before or 'none'}", flush=True)
            changed.append((device, before))
    return 0


def _serves(device: Device, manifest: Manifest) -> bool:
    """Return whether the device serves the version although a step failed."""
    try:
        return device.serving(manifest.name) == manifest.version
    except DeviceError:
        return False  # it does not answer; what failed was printed already


def _give_up(
    changed: list[tuple[Device, int | None]], rest: list[Device], model: str, back: bool
) -> None:
    for device, before in reversed(changed):
        if not back:
            print(f"{device.name}: changed, and left so", flush=True)
            continue
        try:
            device.back_to(model, before)
            print(f"{device.name}: back to {model}/{before}", flush=True)
        except DeviceError as error:
            print(f"{device.name}: changed, and not rolled back: {error}", flush=True)
    for device in rest:
        print(f"{device.name}: untouched", flush=True)


def status(args: argparse.Namespace) -> int:
    """Print a line a device; return 0 if all answer and are ready, else 1."""
    code = 0
    for device in _devices(args):
        try:
            models = device.models()
            device.ask("GET", "/readyz")
            serving = ", ".join(f"{m.name}/{m.serving}" for m in models if m.serving)
            failed = [f"{m.name}/{f.version}" for m in models for f in m.failures]
            refused = f"; refused: {', '.join(failed)}" if failed else ""
            print(f"{device.name}: ready, {serving}{refused}")
        except DeviceError as error:
            print(f"{device.name}: failed, {error}")
            code = 1
    return code
