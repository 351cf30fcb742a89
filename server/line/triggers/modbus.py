"""Triggers by a bit of a PLC, which is polled over Modbus TCP."""

import threading
import time
from collections.abc import Sequence

from server.config.triggers import ModbusTrigger
from server.line.outputs.modbus import TEXT_REGISTERS, Plc, text_from
from server.line.triggers.base import Signal


class ModbusSource:
    """The bit of `table`. What it is at the first look is no trigger, so that a bit that was set
    while the PLC could not be reached is none."""

    def __init__(self, table: ModbusTrigger) -> None:
        self._table = table
        self._plc = Plc(table.host, table.port)
        self._was_set = True
        self._pause = threading.Event()

    def open(self) -> None:
        self._plc.open()
        self._was_set = self._read()

    def take(self, timeout_s: float) -> Sequence[Signal]:
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            self._pause.wait(self._table.poll_s)
            before, self._was_set = self._was_set, self._read()
            if self._was_set and not before:
                return (Signal(self._part()),)
        return ()

    def _read(self) -> bool:
        table = self._table

        def read(client: object) -> object:
            name = "read_coils" if table.bit == "coil" else "read_discrete_inputs"
            return getattr(client, name)(table.address, count=1, device_id=table.device_id)

        return bool(self._plc.ask(read).bits[0])

    def _part(self) -> str:
        table = self._table
        if table.part_register < 0:
            return ""
        answer = self._plc.ask(
            lambda client: client.read_holding_registers(
                table.part_register, count=TEXT_REGISTERS, device_id=table.device_id
            )
        )
        return text_from(answer.registers)

    def close(self) -> Sequence[Signal]:
        self._plc.close()
        return ()
