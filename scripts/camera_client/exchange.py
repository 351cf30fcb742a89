"""One frame to a recognition server and its reply, over a connection that is kept."""

import http.client
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit


@dataclass(frozen=True)
class Target:
    """The address to post to. `path` has no query; `query` has its pairs of name and value."""

    url: str
    scheme: str
    host: str
    port: int | None
    path: str
    query: tuple[tuple[str, str], ...]
    headers: dict[str, str]
    timeout: float

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection, which opens with its first request."""
        if self.scheme == "https":
            return http.client.HTTPSConnection(self.host, self.port, timeout=self.timeout)
        return http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)

    def address(self, **options: str) -> str:
        """Return path and query for one frame, with those of `options` that are not empty."""
        pairs = [*self.query, *((name, value) for name, value in options.items() if value)]
        return f"{self.path}?{urlencode(pairs)}"


def target(
    url: str, api_key: str | None, timeout: float, deadline_ms: float | None = None
) -> Target:
    """Parse an address; without a path, /v1/recognize is used. `timeout` is in seconds.

    deadline_ms: sent with each frame, so that the server answers within it or refuses the frame.
    Raises ValueError if it is no http or https address, or the key can't be sent.
    """
    split = urlsplit(url)
    if split.scheme not in ("http", "https") or not split.hostname:
        raise ValueError(f"{url!r} is not an http or https address")
    headers = {"Content-Type": "image/jpeg", "Connection": "keep-alive"}
    if api_key:
        if not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("the key has characters that no key has")
        headers["Authorization"] = f"Bearer {api_key}"
    query = parse_qsl(split.query)
    if deadline_ms is not None:
        query.append(("deadline_ms", f"{deadline_ms:g}"))
    return Target(
        url,
        split.scheme,
        split.hostname,
        split.port,
        "/v1/recognize" if split.path in ("", "/") else split.path,
        tuple(query),
        headers,
        timeout,
    )


@dataclass(frozen=True)
class Reply:
    """A server's reply: its JSON object, empty if it is none. code, message: of an error, the
    code empty if it is not Lineside's. retry_after_s: the wait that the server asks for, else 0.
    may_retry: False if the server says that the same frame can't succeed later."""

    status: int
    body: dict[str, Any]
    code: str
    message: str
    retry_after_s: float
    may_retry: bool
    milliseconds: float

    @property
    def best(self) -> tuple[str, float]:
        """The first label and its probability. Raises ValueError if there is none."""
        try:
            first = self.body["predictions"][0]
            return str(first["label"]), float(first["probability"])
        except (KeyError, IndexError, TypeError, ValueError):
            raise ValueError(f"status {self.status}, not an answer of Lineside's") from None


class Caller:
    """Posts frames to `target` over one connection."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._connection = target.connect()

    def post(self, address: str, data: bytes) -> Reply:
        """Post one frame and read the reply. Raises OSError or http.client.HTTPException if none
        came; the connection is then closed."""
        reused = self._connection.sock is not None
        try:
            try:
                return self._post(address, data)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                # The server may have closed an idle connection just as this frame left.
                self.close()
                if not reused:
                    raise
                return self._post(address, data)
        except (OSError, http.client.HTTPException):
            self.close()
            raise

    def close(self) -> None:
        self._connection.close()

    def _post(self, address: str, data: bytes) -> Reply:
        started = time.monotonic()
        self._connection.request("POST", address, data, self.target.headers)
        response = self._connection.getresponse()
        content = response.read()
        took = (time.monotonic() - started) * 1000.0
        code, message = "", response.reason
        try:
            body = json.loads(content)
        except ValueError:
            body = {}
        if not isinstance(body, dict):
            body = {}
        if response.status >= 400 and isinstance(error := body.get("error"), dict):
            code, message = str(error.get("code", "")), str(error.get("message", ""))
        wait = response.headers.get("Retry-After", "")
        return Reply(
            response.status,
            body,
            code,
            message,
            float(wait) if wait.isdecimal() else 0.0,
            response.headers.get("X-Should-Retry") != "false",
            took,
        )
