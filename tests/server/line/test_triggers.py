"""Triggers of cameras from a PLC, a broker and a GPIO line: one result for each, also without a
frame."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gpiod
import pytest
from images import encode, plain
from job_workers import await_that
from line_outputs import Subscriber, cable, mosquitto, subscriber, tables, text_at
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from pulled_cameras import PASSWORD, USER, http_camera
from pymodbus.client import ModbusTcpClient
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice
from server_process import LiveServer, free_port, live_server

from server.config.load import load
from server.config.triggers import GpioTrigger, MqttTrigger
from server.errors import SettingsError
from server.line.outputs.base import OutputError
from server.line.outputs.modbus import (
    BUSY,
    CAMERA,
    FAULT,
    PART,
    REGISTERS,
    RESULT,
    SEQ,
    TEXT_REGISTERS,
    TRIGGER_PART,
    VALID,
)
from server.line.triggers.base import Listener, Signal
from server.line.triggers.gpio import GpioSource
from server.line.triggers.mqtt import MqttSource
from server.process.startup import check_triggered_cameras

GREEN = encode(plain((0, 255, 0)), "JPEG")


def _registers_of(text: str) -> list[int]:
    data = text.encode().ljust(2 * TEXT_REGISTERS, b"\0")
    return [high << 8 | low for high, low in zip(data[::2], data[1::2], strict=True)]


class TriggeringPlc:
    """A PLC that sets the coil of a trigger, as its program would, and takes the result."""

    def __init__(self, port: int) -> None:
        self.client = ModbusTcpClient("127.0.0.1", port=port, timeout=60)
        assert self.client.connect()
        self._pause = threading.Event()

    def __enter__(self) -> "TriggeringPlc":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def read(self) -> list[int]:
        return list(self.client.read_input_registers(0, count=REGISTERS).registers)

    def set_part(self, part: str) -> None:
        assert not self.client.write_registers(TRIGGER_PART, _registers_of(part)).isError()

    def set_coil(self, value: bool) -> None:
        assert not self.client.write_coil(0, value).isError()

    def result(self) -> list[int]:
        """The registers of the next result, which is acknowledged."""
        while not (registers := self.read())[0] >> VALID & 1:
            self._pause.wait(0.002)
        assert not self.client.write_register(0, registers[SEQ + 1]).isError()
        while self.read()[0] >> VALID & 1:
            self._pause.wait(0.002)
        return registers


class PolledPlc:
    """A PLC whose coil 0 the server polls. Its program sets the coil, and clears it once it was
    seen."""

    def __init__(self) -> None:
        self.port = free_port()
        self._registers = _registers_of("")
        self._coil = False
        self._polled = threading.Condition()
        self._last: bool | None = None
        started = threading.Event()
        threading.Thread(target=asyncio.run, args=(self._serve(started),), daemon=True).start()
        assert started.wait(60)

    async def _serve(self, started: threading.Event) -> None:
        one = [SimData(0, count=1, values=False, datatype=DataType.BITS)]
        texts = [SimData(0, count=TEXT_REGISTERS, datatype=DataType.REGISTERS)]
        device = SimDevice(1, (one, one, texts, texts), action=self._read)
        server = ModbusTcpServer(device, address=("127.0.0.1", self.port))
        await server.serve_forever(background=True)
        self._loop, self._server = asyncio.get_running_loop(), server
        started.set()
        await server.serving

    async def _read(
        self, function: int, start: int, address: int, count: int, registers: Any, values: Any
    ) -> None:
        with self._polled:
            if function == 1:
                registers[0] = int(self._coil)
                self._last = self._coil
                self._polled.notify_all()
            else:
                registers[:] = self._registers

    def trigger(self, part: str) -> None:
        for value in (True, False):
            with self._polled:
                self._registers, self._coil, self._last = _registers_of(part), value, None
                assert self._polled.wait_for(lambda: self._last == self._coil, 60)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.shutdown(), self._loop).result(60)


class Line(NamedTuple):
    server: LiveServer
    ports: dict[str, int]
    broker: int
    plc: PolledPlc


@pytest.fixture(scope="module")
def line(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """A server with cameras that work and one that is away, and what triggers them."""
    ports = {"st4": free_port(), "away": free_port()}
    polled = PolledPlc()
    outputs: list[dict[str, object]] = [
        {"name": name, "kind": "modbus-server", "port": port, "trigger_camera": name}
        | {"cameras": [name], "heartbeat_s": 60}
        for name, port in ports.items()
    ]
    folder = tmp_path_factory.mktemp("mosquitto")
    with http_camera(GREEN) as camera, mosquitto(folder) as broker:
        with publisher(broker) as sender:
            # Of a part that has gone before the server starts.
            sender.publish("ask", "{}", qos=1, retain=True).wait_for_publish(60)
        address: dict[str, object] = {"host": "127.0.0.1", "port": broker}
        outputs.append(
            {"name": "broker", "kind": "mqtt", "cameras": ["st5"], "retain": False, **address}
        )
        triggers: list[dict[str, object]] = [
            {"name": "message", "kind": "mqtt", "camera": "st5", "topic": "ask", **address},
            {"name": "bit", "kind": "modbus-client", "camera": "st5", "host": "127.0.0.1"}
            | {"port": polled.port, "address": 0, "part_register": 0, "poll_s": 0.005},
        ]
        url = f"http://127.0.0.1:{camera.port}/basic"
        keys = {"kind": "http", "trigger": "post", "interval_s": 60}
        cameras: list[dict[str, object]] = [
            *(
                {"name": name, "url": url, "username": USER, "password": PASSWORD, **keys}
                for name in ("st4", "st5")
            ),
            {"name": "away", "url": f"http://127.0.0.1:{free_port()}/", **keys},
        ]
        settings = {
            "output": tables(*outputs),
            "camera": tables(*cameras),
            "trigger": tables(*triggers),
        }
        with live_server(models=colors, **settings, traced=True) as server:
            ready = {"camera": ("st4", "st5"), "trigger": ("message", "bit"), "output": ["broker"]}
            for kind, names in ready.items():
                for name in names:
                    metric = f"lineside_{kind}_connected"
                    await_that(partial(server.sample, metric, **{kind: name}), name)
            yield Line(server, ports, broker, polled)
    polled.close()


def test_coil_gives_one_result_of_its_part(line: Line) -> None:
    taken = []
    with TriggeringPlc(line.ports["st4"]) as plc:
        for number in range(1, 101):
            plc.set_part(f"Ä-{number}")
            plc.set_coil(True)
            # A write that is repeated, as after an answer that was lost.
            plc.set_coil(True)
            registers = plc.result()
            taken.append((registers[SEQ + 1], text_at(registers, PART)))
            assert (registers[RESULT], registers[0] >> BUSY & 1) == (5, 0)
            plc.set_coil(False)
        assert not plc.read()[0] >> VALID & 1
    assert taken == [(number, f"Ä-{number}") for number in range(1, 101)]
    counted = {"camera": "st4", "result": "accepted"}
    assert line.server.sample("lineside_camera_triggers_total", **counted) == 100


def test_coil_of_a_camera_that_is_away_gives_a_fault(line: Line) -> None:
    with TriggeringPlc(line.ports["away"]) as plc:
        for number in (1, 2):
            plc.set_coil(True)
            registers = plc.result()
            assert (registers[RESULT], registers[0] >> FAULT & 1) == (4, 1)
            assert (registers[SEQ + 1], text_at(registers, CAMERA)) == (number, "away")
            plc.set_coil(False)
    counted = {"camera": "away", "result": "refused"}
    assert line.server.sample("lineside_camera_triggers_total", **counted) == 2


def test_only_the_coil_of_the_trigger_is_there(line: Line) -> None:
    with TriggeringPlc(line.ports["st4"]) as plc:
        assert plc.client.read_coils(0, count=1).bits[0] is False
        assert plc.client.write_coil(1, True).isError()
        assert plc.client.write_coils(0, [True, True]).isError()
        assert plc.client.write_registers(TRIGGER_PART, [0] * (TEXT_REGISTERS + 1)).isError()


def taken_parts(reader: Subscriber, count: int) -> list[tuple[str, str | None]]:
    """Part and error of the next `count` results."""
    results = [json.loads(reader.next().payload) for _ in range(count)]
    return [(result["part"], result["error"]) for result in results]


def ignored(line: Line, reason: str) -> float:
    return line.server.sample("lineside_camera_triggers_total", camera="st5", result=reason)


@contextmanager
def publisher(broker: int) -> Iterator[Client]:
    client = Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", broker)
    client.loop_start()
    try:
        yield client
    finally:
        client.disconnect()
        client.loop_stop()


def test_message_gives_one_result_of_its_part(line: Line) -> None:
    assert ignored(line, "retained") == 1
    with (
        subscriber(line.broker, "lineside/st5/verdict") as reader,
        publisher(line.broker) as sender,
    ):
        for number in range(50):
            message = json.dumps({"id": number, "part": f"P{number}", "other": 1})
            for _ in range(2):
                sender.publish("ask", message, qos=1)
            assert taken_parts(reader, 1) == [(f"P{number}", None)]
        sender.publish("ask", "", qos=0)
        assert taken_parts(reader, 1) == [("", None)]
        for unusable in (b"P1", b'{"part": [5]}', b"\xff", b'{"part": "' + b"P" * 200 + b'"}'):
            sender.publish("ask", unusable, qos=1)
            assert taken_parts(reader, 1) == [("", "INVALID_FIELD")]
        sender.publish("ask", b'{"part": 5, "batch": "L1", "product": "unknown"}', qos=1)
        result = json.loads(reader.next().payload)
        assert [result[key] for key in ("part", "batch", "product")] == ["5", "L1", "unknown"]
        assert (result["verdict"], result["error"]) == (None, "PRODUCT_NOT_FOUND")
        before = ignored(line, "duplicate")
        sender.publish("ask", json.dumps({"id": 7}), qos=1).wait_for_publish(60)
        await_that(lambda: ignored(line, "duplicate") == before + 1, "the duplicate's count")
        assert reader.messages.empty()
    assert before == 50


def test_broker_that_is_back_is_listened_to(line: Line) -> None:
    """What is published meanwhile is no trigger: its part has gone."""
    fired: list[Signal] = []
    with cable(line.broker) as wire, publisher(line.broker) as sender:
        table = MqttTrigger(name="t", camera="c", host="127.0.0.1", port=wire.port, topic="back")
        listener = Listener("t", MqttSource(table, lambda _: None), fired.append)
        listener.start()
        await_that(listener.listens, "the broker")
        wire.cut()
        await_that(lambda: not listener.listens(), "the loss of the broker")
        sender.publish("back", "{}", qos=1).wait_for_publish(60)
        wire.mend()
        await_that(listener.listens, "the broker again")
        sender.publish("back", '{"part": "P2"}', qos=1)
        await_that(lambda: fired, "a trigger")
        listener.stop()
        listener.join(60)
    assert fired == [Signal("P2")]


def test_burst_of_messages_gives_as_many_results(line: Line) -> None:
    """More than one can wait for its frame: the others are refused, each with its part."""
    parts = [f"B{number}" for number in range(300)]
    with (
        subscriber(line.broker, "lineside/st5/verdict") as reader,
        publisher(line.broker) as sender,
    ):
        for part in parts:
            sender.publish("ask", json.dumps({"part": part}), qos=1)
        results = taken_parts(reader, len(parts))
        assert sorted(part for part, _ in results) == sorted(parts)
        assert {error for _, error in results} <= {None, "CAMERA_UNAVAILABLE"}
        assert None in {error for _, error in results}
        sender.publish("ask", json.dumps({"part": "last"}), qos=1)
        assert taken_parts(reader, 1)[0][0] == "last"


def test_polled_bit_gives_one_result_of_its_part(line: Line) -> None:
    with subscriber(line.broker, "lineside/st5/verdict") as reader:
        for number in range(50):
            line.plc.trigger(f"Ü-{number}")
            assert taken_parts(reader, 1) == [(f"Ü-{number}", None)]


class FakeLine:
    """The request of a line as gpiod gives it. No GPIO hardware is known to the kernel here."""

    def __init__(self) -> None:
        self._came = threading.Condition()
        self._events: list[gpiod.EdgeEvent] = []
        self._edges = 0

    def edge(self, lost: bool = False) -> None:
        """An edge, of which the kernel keeps no event if it is `lost`."""
        with self._came:
            self._edges += 1
            if not lost:
                kind = gpiod.EdgeEvent.Type.RISING_EDGE
                number = self._edges
                self._events.append(gpiod.EdgeEvent(kind.value, 0, 4, number, number))
            self._came.notify_all()

    def wait_edge_events(self, timeout: float) -> bool:
        with self._came:
            return self._came.wait_for(lambda: bool(self._events), timeout)

    def read_edge_events(self) -> list[gpiod.EdgeEvent]:
        with self._came:
            events, self._events = self._events, []
        return events

    def release(self) -> None:
        """Gives the line back."""


def test_each_edge_of_a_line_is_one_trigger() -> None:
    (table,) = load(
        {
            "LINESIDE_TRIGGER": tables(
                {"name": "sensor", "kind": "gpio", "camera": "st4", "line": 4, "bias": "pull-up"}
            )
        }
    ).trigger
    assert isinstance(table, GpioTrigger)
    wire, asked = FakeLine(), {}
    fired: list[Signal] = []

    def request_lines(chip: str, **keys: Any) -> FakeLine:
        asked[chip] = keys["config"]
        return wire

    listener = Listener("sensor", GpioSource(table, request_lines), fired.append)
    listener.start()
    await_that(listener.listens, "the line")
    for number in range(1000):
        wire.edge(lost=number % 10 == 3)
    await_that(lambda: len(fired) >= 1000, "a trigger for each edge")
    listener.stop()
    listener.join(60)
    assert fired == [Signal()] * 1000
    setting = asked["/dev/gpiochip0"][4]
    assert setting.edge_detection is gpiod.line.Edge.RISING
    assert setting.bias is gpiod.line.Bias.PULL_UP
    assert setting.debounce_period.total_seconds() == 0.005


def test_chip_that_is_missing_is_tried_again() -> None:
    table = GpioTrigger(name="sensor", camera="st4", chip="/dev/no-chip", line=4)
    with pytest.raises(OutputError, match="line 4 of /dev/no-chip can't be had"):
        GpioSource(table).open()


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"kind": "mqtt", "host": "h"}, "topic is missing"),
        ({"kind": "mqtt", "host": "h", "topic": "a/#"}, "topic can't be 'a/#'"),
        ({"kind": "mqtt", "host": "h", "topic": "a", "tls_ca_file": "f"}, "needs tls = true"),
        ({"kind": "modbus-client", "host": "h", "address": 70_000}, "address"),
        ({"kind": "modbus-client", "host": "h", "address": 1, "edge": "rising"}, "edge"),
        ({"kind": "gpio"}, "line is missing"),
        ({"kind": "gpio", "line": 1, "edge": "both"}, "edge"),
        ({"kind": "gpio", "line": 1}, "[[trigger]] t: camera can't be 'st9': no table [[camera]]"),
        ({"kind": "gpio", "line": 1}, "a camera that POST /v1/cameras added needs such a table"),
    ],
)
def test_trigger_table_with_a_fault_is_refused(keys: dict[str, object], fault: str) -> None:
    table = {"name": "t", "camera": "st9", **keys}
    with pytest.raises(SettingsError) as caught:
        check_triggered_cameras(load({"LINESIDE_TRIGGER": tables(table)}))
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"trigger_camera": "st9"}, "[[output]] plc: trigger_camera can't be 'st9': no table"),
        ({"trigger_camera": "a", "cameras": ["b"]}, "trigger_camera needs every result"),
        ({"trigger_camera": "a", "verdicts": ["fail"]}, "trigger_camera needs every result"),
    ],
)
def test_coil_of_no_camera_stops_the_start(keys: dict[str, object], fault: str) -> None:
    table = {"name": "plc", "kind": "modbus-server", **keys}
    with pytest.raises(SettingsError) as caught:
        check_triggered_cameras(load({"LINESIDE_OUTPUT": tables(table)}))
    assert fault in str(caught.value)
