"""HTTP/1.1 answers out of a connection's bytes, at little cost, for clients that measure."""

import re
import socket
from dataclasses import dataclass

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CHUNK = 65_536


@dataclass(frozen=True)
class Answer:
    """Status and body of a response that came whole."""

    status: int
    body: bytes


def take(buffer: bytearray) -> Answer | None:
    """The first whole response in `buffer`, removed from it; None while it is not all there.

    Raises ValueError for a response without a Content-Length.
    """
    head = buffer.find(b"\r\n\r\n")
    if head < 0:
        return None
    length = LENGTH.search(buffer, 0, head)
    if length is None:
        raise ValueError(f"the response has no Content-Length: {bytes(buffer[:head])!r}")
    end = head + 4 + int(length.group(1))
    if len(buffer) < end:
        return None
    answer = Answer(int(buffer[9:12]), bytes(buffer[head + 4 : end]))
    del buffer[:end]
    return answer


def read(connection: socket.socket) -> Answer:
    """The next response of a blocking connection. Raises ConnectionError where it ends first."""
    buffer = bytearray()
    while (answer := take(buffer)) is None:
        data = connection.recv(CHUNK)
        if not data:
            raise ConnectionError("the server closed the connection before its answer was whole")
        buffer += data
    return answer
