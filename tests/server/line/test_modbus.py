"""Verdicts to a PLC that polls, and to one that is written to: real Modbus on both sides."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from images import encode, plain
from job_workers import await_that
from line_outputs import cable, check_stream, kill_worker, tables, text_at
from pymodbus.client import ModbusTcpClient
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice
from server_process import LiveServer, free_port, live_server

from server.config.load import load
from server.config.outputs import ModbusServerOutput
from server.line.outputs.modbus import (
    BEATS,
    BITS,
    CAMERA,
    CONNECTIONS_MAX,
    FAULT,
    HEARTBEAT,
    LABEL,
    MARKS,
    PART,
    READY,
    REGISTERS,
    RESULT,
    SEQ,
    VALID,
    ModbusServer,
)
from server.line.outputs.service import Outputs
from server.observe.metrics import Metrics

GREEN = encode(plain((0, 255, 0)), "PNG")


class Plc:
    """A PLC that polls a server, as its program would: it takes each valid result, and
    acknowledges it by its number."""

    def __init__(self, port: int) -> None:
        self._client = ModbusTcpClient("127.0.0.1", port=port, timeout=10)
        self.taken: list[dict[str, Any]] = []

    def poll(self) -> list[int]:
        """The input registers of one moment; waits for a server."""
        pause = threading.Event()
        while True:
            try:
                self._client.connect()
                answer = self._client.read_input_registers(0, count=REGISTERS)
                if not answer.isError():
                    return list(answer.registers)
            except Exception:  # noqa: BLE001 - the server is away
                self._client.close()
            pause.wait(0.01)

    def take(self, count: int) -> None:
        """Takes results up to the one with the number `count`."""
        while not self.taken or self.taken[-1]["seq"] < count:
            registers = self.poll()
            if not registers[0] >> VALID & 1:
                continue
            seq = registers[SEQ] << 16 | registers[SEQ + 1]
            part = text_at(registers, PART)
            message = {"seq": seq, "part": part, "request_id": part, "stream": ""}
            self.taken.append(message | {"redelivered": bool(registers[MARKS])})
            self._client.write_register(0, seq & 0xFFFF)

    def close(self) -> None:
        self._client.close()


@contextmanager
def plc(port: int) -> Iterator[Plc]:
    one = Plc(port)
    try:
        yield one
    finally:
        one.close()


def server_table(port: int, **keys: object) -> dict[str, object]:
    return {"name": "plc", "kind": "modbus-server", "port": port, **keys}


def sender(server: LiveServer) -> Callable[[list[str]], None]:
    def send(parts: list[str]) -> None:
        for part in parts:
            assert server.recognize(GREEN, camera="st4", part=part).status_code == 200

    return send


def test_plc_that_polls_sees_each_result(colors: Path) -> None:
    port = free_port()
    table = server_table(port)
    with (
        live_server(models=colors, output=tables(table), traced=True) as server,
        plc(port) as poller,
    ):
        registers = poller.poll()
        assert not registers[0] >> VALID & 1
        answer = server.recognize(GREEN, camera="st4-top", part="Ä-1").json()
        await_that(lambda: poller.poll()[0] >> VALID & 1, "a result")
        registers = poller.poll()
        assert registers[SEQ : SEQ + 2] == [0, 1]
        texts = [text_at(registers, start) for start in (PART, LABEL, CAMERA)]
        assert texts == ["Ä-1", answer["predictions"][0]["label"], "st4-top"]
        # It stays until it is acknowledged by its own number.
        assert server.recognize(GREEN[:50], camera="st4-top").status_code == 422
        with ModbusTcpClient("127.0.0.1", port=port, timeout=10) as client:
            client.write_register(0, 7)
            assert client.read_input_registers(SEQ, count=2).registers == [0, 1]
            client.write_register(0, 1)
            await_that(
                lambda: client.read_input_registers(SEQ, count=2).registers == [0, 2], "the next"
            )
            bits = client.read_discrete_inputs(0, count=BITS).bits[:BITS]
            assert (bits[VALID], bits[FAULT], poller.poll()[RESULT]) == (True, True, 4)
            assert client.read_input_registers(0, count=REGISTERS + 1).isError()
            assert client.write_coil(0, True).isError()


def test_poller_misses_nothing_after_outage_and_kill(colors: Path, tmp_path: Path) -> None:
    """The PLC is away, and the worker is killed in between."""
    port, parts = free_port(), [f"P{number}" for number in range(12)]
    table = server_table(port)
    with (
        live_server(models=colors, data=tmp_path, output=tables(table), traced=True) as server,
        plc(port) as poller,
    ):
        send = sender(server)
        send(parts[:3])
        poller.take(3)
        poller.close()
        send(parts[3:6])
        kill_worker(server)
        send(parts[6:])
        poller.take(len(parts))
        check_stream(poller.taken, parts)


def test_heartbeat_stops_while_nothing_can_judge(tmp_path: Path) -> None:
    port, state = free_port(), {"ready": True}
    table = server_table(port, heartbeat_s=0.1)
    settings = load({"LINESIDE_OUTPUT": tables(table), "LINESIDE_DATA": str(tmp_path)})
    outputs = Outputs(
        settings,
        Metrics(),
        ready=lambda: state["ready"],
        busy=lambda: False,
        trigger=lambda *_: None,
    )
    outputs.start()
    with plc(port) as poller:
        try:
            first = poller.poll()[BEATS]
            await_that(lambda: poller.poll()[BEATS] > first + 2, "heartbeats")
            assert poller.poll()[0] >> READY & 1
            state["ready"] = False
            await_that(lambda: poller.poll()[0] >> FAULT & 1, "a fault")
            registers = [poller.poll() for _ in range(50)]
            assert len({(each[BEATS], each[0] >> HEARTBEAT & 1) for each in registers}) == 1
            assert not registers[-1][0] >> READY & 1
            state["ready"] = True
            await_that(lambda: poller.poll()[BEATS] > registers[-1][BEATS], "heartbeats again")
            assert not poller.poll()[0] >> FAULT & 1
        finally:
            outputs.close()


def test_hostile_clients_leave_room_for_the_plc(tmp_path: Path) -> None:
    """Too many connections are closed, and bytes that are no Modbus change nothing."""
    table = ModbusServerOutput(name="plc", port=(port := free_port()))
    server = ModbusServer(table, lambda: False, lambda *_: None)
    server.open()
    server.beat(True)
    try:
        with ExitStack() as stack:
            many = [
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                for _ in range(CONNECTIONS_MAX + 5)
            ]
            for refused in many[CONNECTIONS_MAX:]:
                refused.settimeout(60)
                with suppress(ConnectionResetError):
                    assert refused.recv(1) == b""
            for number, other in enumerate(many[:CONNECTIONS_MAX]):
                other.sendall(bytes([0, 1, 0, 0]) + bytes([number]) * 5000)
        await_that(lambda: not server.connected, "the end of the others")
        with plc(port) as poller:
            assert poller.poll()[0] >> READY & 1
    finally:
        server.close()


class WrittenPlc:
    """A PLC that is written to: it takes a result when the coil of a valid one is set, and clears
    the coil."""

    def __init__(self, port: int) -> None:
        self.taken: list[dict[str, Any]] = []
        self._port = port
        self._came = threading.Condition()
        self._started = threading.Event()
        self._registers = [0] * REGISTERS
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),), daemon=True)
        self._thread.start()
        assert self._started.wait(60)

    async def _serve(self) -> None:
        device = SimDevice(
            1,
            (
                [SimData(0, count=16, values=False, datatype=DataType.BITS)],
                [SimData(0, count=16, values=False, datatype=DataType.BITS)],
                [SimData(0, count=REGISTERS, datatype=DataType.REGISTERS)],
                [SimData(0, count=1, datatype=DataType.REGISTERS)],
            ),
            action=self._written,
        )
        server = ModbusTcpServer(device, address=("127.0.0.1", self._port))
        await server.serve_forever(background=True)
        self._started.set()
        self._loop, self._server = asyncio.get_running_loop(), server
        await server.serving

    async def _written(
        self, function: int, start: int, address: int, count: int, registers: Any, values: Any
    ) -> None:
        if function == 16 and values:
            self._registers[address : address + len(values)] = values
        if function == 15 and address <= VALID < address + len(values) and values[VALID - address]:
            values[VALID - address] = False
            result = self._registers
            seq, part = result[SEQ] << 16 | result[SEQ + 1], text_at(result, PART)
            message = {"seq": seq, "part": part, "request_id": part, "stream": ""}
            with self._came:
                self.taken.append(message | {"redelivered": bool(result[MARKS])})
                self._came.notify_all()

    def take(self, count: int) -> None:
        """Waits until the result with the number `count` was taken."""
        with self._came:
            assert self._came.wait_for(
                lambda: self.taken and self.taken[-1]["seq"] >= count, timeout=60
            )

    @property
    def beats(self) -> int:
        return self._registers[BEATS]

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.shutdown(), self._loop).result(60)
        self._thread.join(60)


def test_written_plc_misses_nothing_after_outage_and_kill(colors: Path, tmp_path: Path) -> None:
    """The PLC can't be reached, and the worker is killed in between."""
    parts, receiver = [f"P{number}" for number in range(9)], WrittenPlc(port := free_port())
    with cable(port) as line:
        table = {"name": "plc", "kind": "modbus-client", "host": "127.0.0.1", "port": line.port}
        with live_server(models=colors, data=tmp_path, output=tables(table), traced=True) as server:
            send = sender(server)
            send(parts[:3])
            receiver.take(3)
            beats = receiver.beats
            await_that(lambda: receiver.beats > beats, "a heartbeat")
            line.cut()
            send(parts[3:5])
            kill_worker(server)
            send(parts[5:7])
            line.mend()
            send(parts[7:])
            receiver.take(len(parts))
    receiver.close()
    check_stream(receiver.taken, parts)
