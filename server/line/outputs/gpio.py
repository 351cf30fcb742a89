"""Verdicts as pulses on GPIO lines, by the kernel's character device (libgpiod 2).

A pulse that comes late would reject another part: what is too old, or may have been sent before,
gives none.
"""

import logging
import threading
import time
from collections.abc import Sequence

import gpiod
from gpiod.line import Direction, Value

from server.config.outputs import GpioOutput, Outcome
from server.line.outputs.base import OutputError
from server.line.outputs.messages import Message

logger = logging.getLogger(__name__)


class Gpio:
    """The lines of `table`."""

    window = 1

    def __init__(self, table: GpioOutput) -> None:
        self._table = table
        lines: dict[Outcome, int] = {
            "pass": table.pass_line,
            "fail": table.fail_line,
            "unsure": table.unsure_line,
            "none": table.unsure_line,
            "error": table.error_line,
        }
        self._lines = {outcome: line for outcome, line in lines.items() if line >= 0}
        self._request: gpiod.LineRequest | None = None
        self._beating = False
        self._pause = threading.Event()

    @property
    def connected(self) -> bool:
        return self._request is not None

    def open(self) -> None:
        table = self._table
        used = {*self._lines.values(), table.heartbeat_line} - {-1}
        setting = gpiod.LineSettings(
            direction=Direction.OUTPUT,
            output_value=Value.INACTIVE,
            active_low=table.active_low,
        )
        try:
            self._request = gpiod.request_lines(
                table.chip, consumer="lineside", config=dict.fromkeys(used, setting)
            )
        except (OSError, ValueError):
            raise OutputError(f"the lines of {table.chip} can't be had") from None

    def deliver(self, messages: Sequence[Message], timeout_s: float) -> int:
        (message,) = messages
        line = self._lines.get(message.event.outcome)
        age = time.time() - message.event.at
        if message.redelivered or 0 < self._table.max_age_s < age:
            fields = {"output": self._table.name, "seq": message.seq, "age_s": round(age, 3)}
            logger.warning("a pulse is left out, it would be late", extra={"fields": fields})
        elif line is not None:
            self._set(line, Value.ACTIVE)
            self._pause.wait(self._table.pulse_ms / 1000)
            self._set(line, Value.INACTIVE)
        return message.seq

    def _set(self, line: int, value: Value) -> None:
        assert self._request is not None
        try:
            self._request.set_value(line, value)
        except OSError:
            raise OutputError(f"line {line} of {self._table.chip} can't be set") from None

    def beat(self, ready: bool) -> None:
        if self._table.heartbeat_line >= 0 and ready:
            self._beating = not self._beating
            self._set(self._table.heartbeat_line, Value.ACTIVE if self._beating else Value.INACTIVE)

    def close(self) -> None:
        if self._request is not None:
            self._request.release()
            self._request = None
