"""HTTP to the server under test, as cheap as Python can have it."""

import http.client
import json
import socket
from contextlib import suppress
from typing import Any, NamedTuple

TIMEOUT_S = 60.0
RECEIVE_BYTES = 65536


class Reply(NamedTuple):
    """status: of HTTP. body: as it came, without its header."""

    status: int
    body: bytes

    def json(self) -> dict[str, Any]:
        """The object in the body; empty if it is none."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def code(self) -> str:
        """The code of an error of Lineside's own routes; '' if there is none."""
        error = self.json().get("error")
        return str(error.get("code", "")) if isinstance(error, dict) else ""


def request(port: int, path: str, body: bytes, content_type: str = "image/jpeg") -> bytes:
    """The bytes of one POST, to be sent over and over."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection:
    """A connection that is kept, and opened again after it was lost."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None

    def exchange(self, sent: bytes) -> Reply:
        """Send `sent`, and return the reply, whose length must be in its header. Raises OSError if
        the connection is lost."""
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), TIMEOUT_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._socket.sendall(sent)
            return self._read(self._socket)
        except OSError:
            self.close()
            raise

    def _read(self, connection: socket.socket) -> Reply:
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more(connection)
        head = data[:end].lower()
        at = head.index(b"content-length:") + len(b"content-length:")
        length = int(head[at:].split(b"\r\n", 1)[0])
        while len(data) < end + 4 + length:
            data += self._more(connection)
        if b"connection: close" in head:
            self.close()
        return Reply(int(data[9:12]), data[end + 4 :])

    def _more(self, connection: socket.socket) -> bytes:
        data = connection.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError("the server closed the connection before its answer")
        return data

    def close(self) -> None:
        """Close it; the next exchange opens it again."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.close()
            self._socket = None


def ask(
    port: int, method: str, path: str, body: bytes = b"", content_type: str = "application/json"
) -> Reply:
    """One request over a connection of its own. Raises OSError or HTTPException if it is lost."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body or None, {"Content-Type": content_type})
        answer = connection.getresponse()
        return Reply(answer.status, answer.read())
    finally:
        connection.close()


def form(files: list[tuple[str, bytes]]) -> tuple[bytes, str]:
    """A multipart body of JPEG files, and its content type."""
    boundary = "f5e1c1a2b7d34c0f"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: image/jpeg\r\n\r\n".encode()
        + data
        + b"\r\n"
        for name, data in files
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), (
        f"multipart/form-data; boundary={boundary}"
    )
