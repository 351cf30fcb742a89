"""Triggers of cameras from a PLC: one result for each, whatever becomes of the frame."""

import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from images import encode, plain
from line_outputs import tables, text_at
from pulled_cameras import PASSWORD, USER, http_camera
from pymodbus.client import ModbusTcpClient
from server_process import LiveServer, free_port, live_server

from server.config.load import load
from server.errors import SettingsError
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
from server.process.startup import check_triggered_cameras

GREEN = encode(plain((0, 255, 0)), "JPEG")


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
        data = part.encode().ljust(2 * TEXT_REGISTERS, b"\0")
        values = [high << 8 | low for high, low in zip(data[::2], data[1::2], strict=True)]
        assert not self.client.write_registers(TRIGGER_PART, values).isError()

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


class Line(NamedTuple):
    server: LiveServer
    ports: dict[str, int]


@pytest.fixture(scope="module")
def line(colors: Any) -> Iterator[Line]:
    """A server with a camera that works and one that is away, each triggered by a PLC."""
    ports = {"st4": free_port(), "away": free_port()}
    outputs: list[dict[str, object]] = [
        {"name": name, "kind": "modbus-server", "port": port, "trigger_camera": name}
        | {"cameras": [name], "heartbeat_s": 60}
        for name, port in ports.items()
    ]
    with http_camera(GREEN) as camera:
        url = f"http://127.0.0.1:{camera.port}/basic"
        keys = {"kind": "http", "trigger": "post", "interval_s": 60}
        cameras: list[dict[str, object]] = [
            {"name": "st4", "url": url, "username": USER, "password": PASSWORD, **keys},
            {"name": "away", "url": f"http://127.0.0.1:{free_port()}/", **keys},
        ]
        settings = {"output": tables(*outputs), "camera": tables(*cameras)}
        with live_server(models=colors, **settings) as server:
            server.await_event("camera connected")
            yield Line(server, ports)


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
