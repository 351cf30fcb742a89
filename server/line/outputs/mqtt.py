"""Verdicts to an MQTT broker: QoS 1, retained, with a last will and Home Assistant's discovery.

MQTT 3.1.1 (docs.oasis-open.org/mqtt/mqtt/v3.1.1), by Eclipse Paho. A message counts as delivered
with its PUBACK. https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery has the discovery.
"""

import os
import re
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
from paho.mqtt.client import Client, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion

from server import __version__
from server.config.outputs import FIELDS, TOPIC_FIELDS, MqttOutput, check_template
from server.config.triggers import MqttTrigger
from server.line.outputs.base import OutputError
from server.line.outputs.messages import Message, payload_of

CONNECT_TIMEOUT_S = 5.0
# Seconds after which the broker publishes the last will of a server that is silent: 1.5 times this.
KEEP_ALIVE_S = 10
ONLINE, OFFLINE = "online", "offline"
# Topics that are known to be discovered: callers choose the names of cameras.
DISCOVERED_MAX = 1000
# Of a name that becomes one level of a topic.
# Brokers end the connection for control characters and for code points that are no characters
# (MQTT 3.1.1, 1.5.3).
NONCHARACTERS = "".join(chr(plane << 16 | end) for plane in range(17) for end in (0xFFFE, 0xFFFF))
NOT_IN_LEVEL = re.compile(rf"[/+#\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{NONCHARACTERS}]")
NOT_IN_ID = re.compile(r"[^A-Za-z0-9_-]")


def broker_of(table: MqttOutput | MqttTrigger) -> str:
    """Return the words for the broker of `table`."""
    return f"the broker {table.host}:{table.port}"


def make_client(table: MqttOutput | MqttTrigger, purpose: str) -> Client:
    """Return a client whose id begins with `purpose`, with the login of `table`."""
    client = Client(
        CallbackAPIVersion.VERSION2,
        f"{purpose}-{table.name}-{socket.gethostname()}-{os.getpid()}",
        reconnect_on_failure=False,
    )
    client.connect_timeout = CONNECT_TIMEOUT_S
    if table.username:
        client.username_pw_set(table.username, table.password or None)
    return client


def connect(client: Client, table: MqttOutput | MqttTrigger) -> None:
    """Connect to the broker of `table`, and start the client's thread. Raises OutputError."""
    answered = threading.Event()
    reasons: list[Any] = []

    def on_connect(client: Client, data: Any, flags: Any, reason: Any, more: Any) -> None:
        reasons.append(reason)
        answered.set()

    client.on_connect = on_connect
    try:
        if table.tls:
            client.tls_set(
                table.tls_ca_file or None,
                table.tls_cert_file or None,
                table.tls_key_file or None,
            )
        client.connect(table.host, table.port, KEEP_ALIVE_S)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise OutputError(f"{broker_of(table)} can't be reached: {_reason(error)}") from None
    client.loop_start()
    if not answered.wait(CONNECT_TIMEOUT_S) or reasons[0].is_failure:
        client.disconnect()
        client.loop_stop()
        why = reasons[0] if reasons else "it does not answer"
        raise OutputError(f"{broker_of(table)} refuses: {why}")


class Mqtt:
    """The broker of `table`."""

    window = 20

    def __init__(self, table: MqttOutput) -> None:
        self._table = table
        self._topic = check_template(table.topic, TOPIC_FIELDS, "topic")
        self._payload = check_template(table.payload, FIELDS, "payload") if table.payload else None
        self._client: Client | None = None
        self._in_hand: deque[tuple[int, MQTTMessageInfo]] = deque()
        self._sent = 0
        self._status = ""
        self._discovered: set[str] = set()

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.is_connected()

    def open(self) -> None:
        client = make_client(self._table, "lineside")
        client.will_set(self._table.status_topic, OFFLINE, qos=1, retain=True)
        connect(client, self._table)
        self._client = client
        self._status = ""
        self._sent = 0
        self._discovered.clear()

    @property
    def _where(self) -> str:
        return broker_of(self._table)

    def deliver(self, messages: Sequence[Message], timeout_s: float) -> int:
        for message in messages:
            if message.seq > self._sent:
                self._in_hand.append((message.seq, self._send(message)))
                self._sent = message.seq
        until, taken = time.monotonic() + timeout_s, 0
        while self._in_hand:
            seq, info = self._in_hand[0]
            self._await(info, until)
            if not info.is_published():
                break
            taken = seq
            self._in_hand.popleft()
        if not taken:
            self._check()
        return taken

    def _send(self, message: Message) -> MQTTMessageInfo:
        fields = message.fields()
        levels = {name: NOT_IN_LEVEL.sub("_", str(fields[name] or "none")) for name in TOPIC_FIELDS}
        topic = self._topic.render(levels)
        if message.event.test:
            # Not retained: the last verdict stays.
            return self._publish(topic, payload_of(message, None), retain=False)
        if self._table.discovery_prefix and topic not in self._discovered:
            self._publish(*self._discovery(topic, levels["camera"]), retain=True)
            if len(self._discovered) >= DISCOVERED_MAX:
                self._discovered.clear()
            self._discovered.add(topic)
        payload = payload_of(message, self._payload)
        return self._publish(topic, payload, retain=self._table.retain)

    def _publish(self, topic: str, payload: str | bytes, *, retain: bool) -> MQTTMessageInfo:
        self._check()
        assert self._client is not None
        return self._client.publish(topic, payload, qos=1, retain=retain)

    def _check(self) -> None:
        if not self.connected:
            raise OutputError(f"{self._where} ended the connection")

    def _await(self, info: MQTTMessageInfo, until: float) -> None:
        try:
            info.wait_for_publish(max(0.0, until - time.monotonic()))
        except (ValueError, RuntimeError) as error:  # not sent: no room, or no connection
            raise OutputError(f"{self._where} takes no message: {error}") from None

    def _discovery(self, topic: str, camera: str) -> tuple[str, bytes]:
        """Return topic and payload that announce the sensor of one topic of verdicts."""
        node = NOT_IN_ID.sub("_", f"lineside_{socket.gethostname()}")
        sensor = NOT_IN_ID.sub("_", topic)
        config = {
            "name": f"{camera} verdict",
            "unique_id": f"{node}_{sensor}",
            "state_topic": topic,
            "value_template": "{{ value_json.verdict }}",
            "json_attributes_topic": topic,
            "availability_topic": self._table.status_topic,
            "payload_available": ONLINE,
            "payload_not_available": OFFLINE,
            "device": {
                "identifiers": [node],
                "name": f"Lineside {socket.gethostname()}",
                "sw_version": __version__,
            },
        }
        prefix = self._table.discovery_prefix
        return f"{prefix}/sensor/{node}/{sensor}/config", msgspec.json.encode(config)

    def beat(self, ready: bool) -> None:
        self._check()
        status = ONLINE if ready else OFFLINE
        if status != self._status:
            self._publish(self._table.status_topic, status, retain=True)
            self._status = status

    def close(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        if client.is_connected():
            # The last will is only for a connection that breaks.
            farewell = client.publish(self._table.status_topic, OFFLINE, qos=1, retain=True)
            # Raised if the connection broke meanwhile; then the last will says so.
            with suppress(ValueError, RuntimeError):
                farewell.wait_for_publish(1.0)
        client.disconnect()
        client.loop_stop()
        self._in_hand.clear()


def _reason(error: Exception) -> str:
    """Return what the operating system or TLS says, without the library's own words."""
    if isinstance(error, ssl.SSLError):
        return f"TLS: {getattr(error, 'verify_message', '') or error.reason or 'it fails'}"
    return getattr(error, "strerror", None) or "it does not answer"
