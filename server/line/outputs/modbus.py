"""Verdicts to a PLC over Modbus TCP: as a server that the PLC polls, and as its client.

Both have one map (docs/guide.md shows it): eight bits, and registers with the same bits, the
heartbeat and the result. MODBUS Application Protocol V1.1b3 and Messaging on TCP/IP V1.0b
(modbus.org). pymodbus changes between its minor versions, so its minor is pinned.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from pymodbus import FramerType, ModbusException
from pymodbus.client import ModbusTcpClient
from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from server.config.outputs import ModbusClientOutput, ModbusServerOutput, Outcome
from server.line.cameras.judge import Trigger, new_trigger
from server.line.outputs.base import OutputError
from server.line.outputs.messages import Message
from server.line.outputs.server_thread import ServerThread, ShownResult

# Bits, in discrete inputs, coils and the first register, the lowest first.
READY, BUSY, VALID, PASS, FAIL, UNSURE, FAULT, HEARTBEAT = range(8)
BITS = 8
# Registers: bits, heartbeats, sequence number (high word first), result, class, probability in
# 1/10,000, marks; then texts of 32 bytes, two in a register, the first in its high byte.
STATUS, BEATS, SEQ, RESULT, CLASS, PROBABILITY, MARKS, PART, LABEL, CAMERA = (
    *(0, 1, 2, 4, 5, 6, 7),
    *(8, 24, 40),
)
REGISTERS, TEXT_REGISTERS = 56, 16
REDELIVERED = 1
RESULTS: dict[Outcome, int] = {"pass": 1, "fail": 2, "unsure": 3, "error": 4, "none": 5}
VERDICT_BITS: dict[Outcome, int] = {"pass": PASS, "fail": FAIL, "unsure": UNSURE, "error": FAULT}
NO_CLASS = 0xFFFF
# Function codes.
COILS = (1, 5, 15)
READ_DISCRETE, READ_INPUT = 2, 4
# The only coil, by which a PLC triggers a camera.
TRIGGER = 0
# The holding register in which a PLC acknowledges, and the first of those with the part of the next
# trigger.
ACKNOWLEDGED, TRIGGER_PART = 0, 1
TIMEOUT_S = 3.0
# Connections of PLCs at once.
CONNECTIONS_MAX = 32
# Seconds between looks whether a PLC has cleared its bit.
POLL_INTERVAL_S = 0.01

# Its lines would go to standard error as plain text, and repeat what OutputError says.
logging.getLogger("pymodbus").addHandler(logging.NullHandler())


class Image:
    """The bits and registers as the other side should see them. `_lock` guards all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bits = [False] * BITS
        self._registers = [0] * REGISTERS
        self._registers[CLASS] = NO_CLASS

    def show(self, message: Message) -> None:
        """Show a result, valid from now on."""
        event = message.event
        outcome = event.outcome
        registers = [0] * REGISTERS
        registers[SEQ : SEQ + 2] = [message.seq >> 16 & 0xFFFF, message.seq & 0xFFFF]
        registers[RESULT] = RESULTS[outcome]
        registers[CLASS] = NO_CLASS if event.class_id is None else min(event.class_id, NO_CLASS)
        registers[PROBABILITY] = round((event.probability or 0.0) * 10_000)
        registers[MARKS] = REDELIVERED if message.redelivered else 0
        for start, text in ((PART, event.part), (LABEL, event.label), (CAMERA, event.camera)):
            registers[start : start + TEXT_REGISTERS] = _text(text or "")
        with self._lock:
            self._registers[SEQ:] = registers[SEQ:]
            for bit in (PASS, FAIL, UNSURE, FAULT):
                self._bits[bit] = bit == VERDICT_BITS.get(outcome)
            self._bits[FAULT] = self._bits[FAULT] or not self._bits[READY]
            self._bits[VALID] = True

    def clear(self) -> None:
        """Say that the result was taken."""
        with self._lock:
            self._bits[VALID] = False

    def beat(self, ready: bool) -> None:
        """Show whether the server can judge; the heartbeat goes on only if it can."""
        with self._lock:
            self._bits[READY] = ready
            self._bits[FAULT] = not ready or self._registers[RESULT] == RESULTS["error"]
            if ready:
                self._registers[BEATS] = (self._registers[BEATS] + 1) & 0xFFFF
                self._bits[HEARTBEAT] = not self._bits[HEARTBEAT]

    def read(self, busy: bool) -> tuple[list[bool], list[int]]:
        """Return bits and registers of one moment."""
        with self._lock:
            self._bits[BUSY] = busy
            self._registers[STATUS] = sum(1 << bit for bit, on in enumerate(self._bits) if on)
            return list(self._bits), list(self._registers)


def _text(text: str) -> list[int]:
    """Return the first bytes of `text` in UTF-8, without half of a character, as registers."""
    size = 2 * TEXT_REGISTERS
    data = text.encode()[:size].decode(errors="ignore").encode().ljust(size, b"\0")
    return [high << 8 | low for high, low in zip(data[::2], data[1::2], strict=True)]


def text_from(registers: Sequence[int]) -> str:
    """Return the text in `registers`, as `_text` makes them, up to the first zero byte. What is no
    UTF-8 becomes U+FFFD."""
    data = b"".join(register.to_bytes(2, "big") for register in registers)
    return data.split(b"\0")[0].decode(errors="replace")


class _BoundedServer(ModbusTcpServer):
    """A server that closes connections beyond CONNECTIONS_MAX: each takes a file of the process."""

    def callback_new_connection(self) -> Any:
        full = len(self.active_connections) >= CONNECTIONS_MAX
        handler = super().callback_new_connection()
        if full:
            handler.callback_connected = handler.close
        return handler


class ModbusServer:
    """A server for PLCs that poll. A result stays until it is acknowledged, if `table` says so.

    A PLC triggers by a change of its coil from 0 to 1: the coil keeps what was written, so a write
    that is repeated is one trigger. `_awaited` is the request id of the newest trigger until its
    result is shown, else empty.
    """

    window = 1

    def __init__(
        self,
        table: ModbusServerOutput,
        busy: Callable[[], bool],
        trigger: Callable[[str, Trigger], object],
    ) -> None:
        """trigger: has a frame of the camera of a name judged; raises nothing."""
        self._table = table
        self._busy = busy
        self._trigger = trigger
        self._coil = False
        self._part = [0] * TEXT_REGISTERS
        self._awaited = ""
        self._image = Image()
        self._shown = ShownResult()
        self._connections = 0
        self._thread: ServerThread | None = None

    @property
    def connected(self) -> bool:
        return self._connections > 0

    def open(self) -> None:
        self._shown, self._connections = ShownResult(), 0
        self._coil, self._part, self._awaited = False, [0] * TEXT_REGISTERS, ""
        self._thread = ServerThread("modbus", self._serve)
        self._thread.start()

    async def _serve(self, listens: Callable[[], None], stop: asyncio.Event) -> None:
        table = self._table
        holding = TRIGGER_PART + TEXT_REGISTERS if table.trigger_camera else 1
        device = SimDevice(
            0,  # all device ids
            (
                [SimData(0, count=16, values=False, datatype=DataType.BITS)],
                [SimData(0, count=16, values=False, datatype=DataType.BITS)],
                [SimData(ACKNOWLEDGED, count=holding, datatype=DataType.REGISTERS)],
                [SimData(0, count=REGISTERS, datatype=DataType.REGISTERS)],
            ),
            action=self._access,
        )
        server = _BoundedServer(
            device,
            framer=FramerType.SOCKET,
            address=(table.host, table.port),
            trace_connect=self._count,
        )
        try:
            await server.serve_forever(background=True)
        except RuntimeError:
            raise OutputError(f"can't listen on {table.host}:{table.port}") from None
        listens()
        try:
            await stop.wait()
        finally:
            await server.shutdown()

    def _count(self, connected: bool) -> None:
        self._connections += 1 if connected else -1

    async def _access(
        self,
        function: int,
        start: int,
        address: int,
        count: int,
        registers: list[int],
        values: list[int] | list[bool] | None,
    ) -> ExcCodes | None:
        """Fill in what is read, and take what is written; in the server's loop."""
        if function in COILS:
            return self._access_coil(address, values)
        if function == READ_DISCRETE:
            registers[0] = self._image.read(self._is_busy())[1][STATUS]
        elif function == READ_INPUT:
            registers[:] = self._image.read(self._is_busy())[1]
        elif values:
            self._write_holding(address, [int(value) for value in values])
        return None

    def _is_busy(self) -> bool:
        return bool(self._awaited) or self._busy()

    def _write_holding(self, address: int, values: list[int]) -> None:
        if address == ACKNOWLEDGED:
            low = values[0]
            self._shown.acknowledge(lambda seq: seq & 0xFFFF == low, self._image.clear)
        for register, value in enumerate(values, address):
            if register >= TRIGGER_PART:
                self._part[register - TRIGGER_PART] = value

    def _access_coil(self, address: int, values: list[int] | list[bool] | None) -> ExcCodes | None:
        if not self._table.trigger_camera or address != TRIGGER or (values and len(values) > 1):
            return ExcCodes.ILLEGAL_ADDRESS
        if values:
            before, self._coil = self._coil, bool(values[0])
            if self._coil and not before:
                trigger = new_trigger(text_from(self._part))
                if not self._table.acknowledge:
                    # What is shown is the part before's.
                    self._image.clear()
                # Set first, since its result may be there at once.
                self._awaited = trigger.request_id
                self._trigger(self._table.trigger_camera, trigger)
        return None

    def deliver(self, messages: Sequence[Message], timeout_s: float) -> int:
        (message,) = messages
        if message.seq != self._shown.seq:
            self._shown.show(message.seq, lambda: self._image.show(message))
            if message.event.request_id == self._awaited:
                self._awaited = ""
        if self._table.acknowledge and not self._shown.await_taken(timeout_s):
            return 0
        return message.seq

    def beat(self, ready: bool) -> None:
        if self._thread is None or not self._thread.alive:
            raise OutputError("its server has ended")
        self._image.beat(ready)

    def close(self) -> None:
        if self._thread is not None:
            self._thread.stop()
        self._connections = 0


class Plc:
    """The connection to a PLC as its client."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._client: ModbusTcpClient | None = None

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.is_socket_open()

    @property
    def _where(self) -> str:
        return f"the PLC {self._host}:{self._port}"

    def open(self) -> None:
        """Connect. Raises OutputError."""
        client = ModbusTcpClient(self._host, port=self._port, timeout=TIMEOUT_S, retries=0)
        if not client.connect():
            raise OutputError(f"{self._where} can't be reached")
        self._client = client

    def ask(self, call: Callable[[ModbusTcpClient], Any]) -> Any:
        """Return the PLC's answer. Raises OutputError."""
        assert self._client is not None
        try:
            answer = call(self._client)
        except (ModbusException, OSError):
            raise OutputError(f"{self._where} does not answer") from None
        if answer.isError():
            raise OutputError(f"{self._where} refuses: exception {answer.exception_code}")
        return answer

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


class ModbusClient:
    """A client that writes into a PLC's coils and holding registers. The PLC clears the coil of a
    valid result when it has taken it, if `table` says so."""

    window = 1

    def __init__(self, table: ModbusClientOutput, busy: Callable[[], bool]) -> None:
        self._table = table
        self._busy = busy
        self._image = Image()
        self._plc = Plc(table.host, table.port)
        self._shown = 0
        self._pause = threading.Event()

    @property
    def connected(self) -> bool:
        return self._plc.connected

    def open(self) -> None:
        self._plc.open()
        self._shown = 0

    def _write(self, bits: slice, registers: slice) -> None:
        """Write a part of the image: the registers first, since the bits say that they are
        valid."""
        table, unit = self._table, self._table.device_id
        all_bits, all_registers = self._image.read(self._busy())
        self._plc.ask(
            lambda client: client.write_registers(
                table.first_register + registers.start, all_registers[registers], device_id=unit
            )
        )
        self._plc.ask(
            lambda client: client.write_coils(
                table.first_coil + bits.start, all_bits[bits], device_id=unit
            )
        )

    def deliver(self, messages: Sequence[Message], timeout_s: float) -> int:
        (message,) = messages
        if message.seq != self._shown:
            if not self._table.acknowledge:
                # Else the PLC could read the new registers with the bits of the result before.
                self._image.clear()
                self._write(slice(VALID, PASS), slice(STATUS, SEQ))
            self._image.show(message)
            self._write(slice(0, HEARTBEAT), slice(STATUS, REGISTERS))
            self._shown = message.seq
        waited = 0.0
        while self._table.acknowledge and not self._taken():
            if waited >= timeout_s:
                return 0
            self._pause.wait(POLL_INTERVAL_S)
            waited += POLL_INTERVAL_S
        if self._table.acknowledge:
            self._image.clear()
        return message.seq

    def _taken(self) -> bool:
        coil = self._table.first_coil + VALID
        unit = self._table.device_id
        answer = self._plc.ask(lambda client: client.read_coils(coil, count=1, device_id=unit))
        return not answer.bits[0]

    def beat(self, ready: bool) -> None:
        self._image.beat(ready)
        # Not the bit of a valid result, which the PLC clears.
        self._write(slice(READY, VALID), slice(STATUS, SEQ))
        self._write(slice(FAULT, BITS), slice(STATUS, SEQ))

    def close(self) -> None:
        self._plc.close()
