"""A forwarder between the server and its MQTT broker that notes each message and its
acknowledgement.

So the account does not depend on what a broker that is killed keeps on its disk: a message counts
as delivered when the broker has acknowledged it (MQTT 3.1.1, 3.3 PUBLISH and 3.4 PUBACK).
"""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator

from chaos.history import History

PUBLISH, PUBACK = 3, 4
CONNECT_TIMEOUT_S = 5.0


class Packets:
    """Cuts a stream of bytes into packets."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the first byte and the body of each packet that `data` completes."""
        self._bytes += data
        while (packet := self._take()) is not None:
            yield packet

    def _take(self) -> tuple[int, bytes] | None:
        size = 0
        for index in range(4):
            if len(self._bytes) < index + 2:
                return None
            byte = self._bytes[index + 1]
            size |= (byte & 0x7F) << 7 * index
            if not byte & 0x80:
                start, end = index + 2, index + 2 + size
                if len(self._bytes) < end:
                    return None
                packet = self._bytes[0], bytes(self._bytes[start:end])
                del self._bytes[:end]
                return packet
        raise ValueError("the length of a packet has more than four bytes")


class MqttTap:
    """Listens on `port` and forwards each connection to the broker at `target`."""

    def __init__(self, port: int, target: int, history: History) -> None:
        self._target = target
        self._history = history
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, name="mqtt-tap", daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._target), CONNECT_TIMEOUT_S)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                under_way: dict[int, dict[str, object]] = {}
                for one, other in ((near, far), (far, near)):
                    threading.Thread(
                        target=self._carry, args=(one, other, under_way), daemon=True
                    ).start()

    def _carry(
        self, one: socket.socket, other: socket.socket, under_way: dict[int, dict[str, object]]
    ) -> None:
        packets = Packets()
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                for first, body in packets.feed(data):
                    self._note(first, body, under_way)
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _note(self, first: int, body: bytes, under_way: dict[int, dict[str, object]]) -> None:
        if first >> 4 == PUBLISH and first & 0x06:
            topic_end = 2 + int.from_bytes(body[:2], "big")
            packet_id = int.from_bytes(body[topic_end : topic_end + 2], "big")
            payload = body[topic_end + 2 :]
            if payload.startswith(b"{"):
                message = json.loads(payload)
                under_way[packet_id] = message
                self._record("published", message)
        elif first >> 4 == PUBACK:
            acknowledged = under_way.pop(int.from_bytes(body[:2], "big"), None)
            if acknowledged is not None:
                self._record("acknowledged", acknowledged)

    def _record(self, event: str, message: dict[str, object]) -> None:
        self._history.record(str(message["request_id"]), "mqtt", event, message=message)

    def close(self) -> None:
        self._listener.close()
