"""A PLC into which the server writes: it takes each valid result, and notes it in a history.

    python -m chaos.plc PORT HISTORY

The result is in the file before the PLC clears the coil, so that kill -9 loses none that was taken.
docs/guide.md has the map of the registers and coils.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from chaos.history import History

WRITE_COILS, WRITE_REGISTERS = 15, 16
VALID = 2
SEQ, RESULT, MARKS, PART, LABEL, CAMERA = 2, 4, 7, 8, 24, 40
REGISTERS, TEXT_REGISTERS, COILS = 56, 16, 16
VERDICTS = {1: "pass", 2: "fail", 3: "unsure", 4: "error", 5: "none"}


class Plc:
    """The PLC's memory, listening on `port`."""

    def __init__(self, port: int, history: History) -> None:
        self._port = port
        self._history = history
        self._registers = [0] * REGISTERS

    async def serve(self) -> None:
        """Serve until the process ends."""
        device = SimDevice(
            1,
            (
                [SimData(0, count=COILS, values=False, datatype=DataType.BITS)],
                [SimData(0, count=COILS, values=False, datatype=DataType.BITS)],
                [SimData(0, count=REGISTERS, datatype=DataType.REGISTERS)],
                [SimData(0, count=1, datatype=DataType.REGISTERS)],
            ),
            action=self._written,
        )
        await ModbusTcpServer(device, address=("127.0.0.1", self._port)).serve_forever()

    async def _written(
        self, function: int, start: int, address: int, count: int, registers: Any, values: Any
    ) -> None:
        if function == WRITE_REGISTERS and values:
            self._registers[address : address + len(values)] = values
        if function == WRITE_COILS and address <= VALID < address + len(values):
            if values[VALID - address]:
                self._take()
            values[VALID - address] = False

    def _take(self) -> None:
        registers = self._registers
        part = self._text(PART)
        self._history.record(
            part,
            "plc",
            "taken",
            seq=registers[SEQ] << 16 | registers[SEQ + 1],
            verdict=VERDICTS.get(registers[RESULT], ""),
            label=self._text(LABEL),
            camera=self._text(CAMERA),
            redelivered=bool(registers[MARKS]),
        )

    def _text(self, start: int) -> str:
        values = self._registers[start : start + TEXT_REGISTERS]
        data = b"".join(value.to_bytes(2, "big") for value in values)
        return data.split(b"\0")[0].decode(errors="replace")


if __name__ == "__main__":
    asyncio.run(Plc(int(sys.argv[1]), History(Path(sys.argv[2]))).serve())
