"""Triggers by messages of an MQTT broker (MQTT 3.1.1), taken with QoS 1.

Each connection is a clean session, so what is published while this server is away is lost: its part
has gone.
"""

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from paho.mqtt.client import Client, MQTTMessage

from server.config.triggers import MqttTrigger
from server.line.outputs.base import OutputError
from server.line.outputs.mqtt import CONNECT_TIMEOUT_S, broker_of, connect, make_client
from server.line.triggers.base import Signal
from server.values import json_values
from server.values.validation import NUMBER_TOO, InvalidValueError

PAYLOAD_BYTES_MAX = 65_536
# Newest ids and packet identifiers that are kept.
REMEMBERED_MAX = 2000
# Messages that wait for the camera's thread; the broker holds back more.
WAITING_MAX = 100


Name = Annotated[str, Meta(max_length=128, extra=NUMBER_TOO)]


class TriggerMessage(msgspec.Struct, frozen=True):
    """The JSON of a message. Other fields are ignored."""

    part: Name = ""
    product: Name = ""
    batch: Name = ""
    id: Annotated[str, Meta(max_length=128)] | int | None = None


class MqttSource:
    """The topic of `table`. ignored: called with `retained` or `duplicate` for a message that is no
    trigger.

    A message is a duplicate if its id is that of an earlier one, or if the broker marks it as sent
    again (DUP) with the packet identifier of an earlier one of this connection.
    """

    def __init__(self, table: MqttTrigger, ignored: Callable[[str], object]) -> None:
        self._table = table
        self._ignored = ignored
        self._client: Client | None = None
        # None: the connection has ended.
        self._came: queue.Queue[Signal | None] = queue.Queue(WAITING_MAX)
        # Of the newest messages: their ids, and their packet identifiers with True.
        self._seen: OrderedDict[object, None] = OrderedDict()

    def open(self) -> None:
        client = make_client(self._table, "lineside-trigger")
        answered = threading.Event()
        codes: list[Any] = []

        def on_subscribe(_: Client, __: Any, ___: int, reasons: Sequence[Any], more: Any) -> None:
            codes.extend(reasons)
            answered.set()

        client.on_subscribe = on_subscribe
        client.on_message = lambda _, __, message: self._take(message)
        client.on_disconnect = lambda *_: self._came.put(None)
        self._came = queue.Queue(WAITING_MAX)
        self._seen = OrderedDict((key, None) for key in self._seen if not isinstance(key, tuple))
        connect(client, self._table)
        self._client = client
        client.subscribe(self._table.topic, 1)
        if not answered.wait(CONNECT_TIMEOUT_S) or codes[0].is_failure:
            raise OutputError(f"{broker_of(self._table)} refuses to send {self._table.topic}")

    def take(self, timeout_s: float) -> Sequence[Signal]:
        try:
            signal = self._came.get(timeout=timeout_s)
        except queue.Empty:
            return ()
        if signal is None:
            raise OutputError(f"{broker_of(self._table)} ended the connection")
        return (signal,)

    def close(self) -> Sequence[Signal]:
        client, self._client = self._client, None
        if client is None:
            return ()
        client.on_message = client.on_disconnect = None
        # Its thread may wait for room.
        rest = self._waiting()
        client.disconnect()
        client.loop_stop()
        return [*rest, *self._waiting()]

    def _waiting(self) -> list[Signal]:
        """Return what waits, which waits no longer."""
        signals = []
        with suppress(queue.Empty):
            while True:
                signals.append(self._came.get_nowait())
        return [signal for signal in signals if signal is not None]

    def _take(self, message: MQTTMessage) -> None:
        """Take a message, in the client's thread, which sends PUBACK afterwards."""
        if message.retain:
            self._ignored("retained")
            return
        packet = (True, message.mid)
        if message.dup and packet in self._seen:
            self._ignored("duplicate")
            return
        try:
            asked = read_message(bytes(message.payload))
        except InvalidValueError as error:
            self._came.put(Signal(fault=f"a message of the topic can't be used: {error}"))
            return
        if asked.id is not None and asked.id in self._seen:
            self._ignored("duplicate")
            return
        self._remember(packet)
        if asked.id is not None:
            self._remember(asked.id)
        self._came.put(Signal(asked.part, asked.product, asked.batch))

    def _remember(self, key: object) -> None:
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > REMEMBERED_MAX:
            self._seen.popitem(last=False)


def read_message(payload: bytes) -> TriggerMessage:
    """Return what a message says; it may be empty. Raises InvalidValueError."""
    if not payload.strip():
        return TriggerMessage()
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise InvalidValueError(f"the payload has more than {PAYLOAD_BYTES_MAX} bytes")
    return json_values.decode(payload, TriggerMessage, name="the payload")
