"""One server of the fleet, asked over HTTP."""

import http.client
import json
import ssl
from typing import TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from server.errors import StartError

T = TypeVar("T")
DEFAULT_PORT = 8080


class DeviceError(Exception):
    """A device answered with an error, or not at all; the message is a sentence about it. status:
    HTTP's, None if no answer came."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


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
    """One server. For one thread at a time."""

    def __init__(
        self,
        name: str,
        address: str,
        key: str,
        timeout: float,
        tls: ssl.SSLContext | None = None,
        shell: str = "",
    ) -> None:
        """name: what the user calls it. address: HOST, HOST:PORT, or a URL of http or https. key:
        its API key, empty for none. timeout: of each request, in seconds. tls: of https addresses;
        None: with the machine's own authorities. shell: where a remote shell finds it; empty: the
        host of the address. Raises StartError if `address` or `key` is none."""
        try:
            parts = urlsplit(address if "://" in address else f"http://{address}")
            port = parts.port
            # As a socket does, which knows no other names.
            (parts.hostname or "").encode("idna")
        except ValueError:
            raise _no_address(address) from None
        # A shell's command would take a name that begins with - as an option.
        if parts.scheme not in ("http", "https") or (parts.hostname or "-").startswith("-"):
            raise _no_address(address)
        assert parts.hostname
        if not (key.isascii() and key.isprintable()):
            raise StartError(f"the key for {name} is more than one line, or no key")
        port = port or (443 if parts.scheme == "https" else DEFAULT_PORT)
        self.name = name
        self.shell = shell or parts.hostname
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
            raise DeviceError(f"{answer.status}: {_message(text)}", answer.status)
        return text

    def get(self, path: str, kind: type[T]) -> T:
        """Return the JSON at `path`. Raises DeviceError, also if it is no `kind`."""
        return decode(self.ask("GET", path), kind)

    def post(self, path: str, value: object, kind: type[T]) -> T:
        """Send `value` as JSON; return the answer's. Raises DeviceError, also if it is no
        `kind`."""
        return decode(self.ask("POST", path, json.dumps(value).encode(), "application/json"), kind)

    def models(self) -> tuple[Served, ...]:
        """Return its models. Raises DeviceError."""
        return self.get("/v1/models", Listing).models

    def serving(self, model: str) -> int | None:
        """Return the version of `model` that serves; None if none does. Raises DeviceError."""
        return next((each.serving for each in self.models() if each.name == model), None)

    def activate(self, model: str, version: int) -> None:
        """Have it serve `version`. Raises DeviceError if it does not."""
        path = f"/v1/models/{quote(model)}/activate"
        now = self.post(path, {"version": version}, Served).serving
        if now != version:
            raise DeviceError(f"it serves version {now} after {version} was activated")


def decode(text: bytes, kind: type[T]) -> T:
    """Return the JSON `text` as a `kind`. Raises DeviceError if it is none."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise DeviceError(f"no Lineside server answers: {_start(text)}") from None


def _no_address(address: str) -> StartError:
    return StartError(f"{address!r} is no HOST, HOST:PORT, http:// or https:// address")


def _message(text: bytes) -> str:
    """Return the sentence in the body of an error."""
    try:
        return msgspec.json.decode(text, type=Failed).error.message
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _start(text)


def _start(text: bytes) -> str:
    return " ".join(text[:200].decode("latin1").split())
