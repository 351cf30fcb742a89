"""Triggers by edges on a GPIO line, by the kernel's character device (libgpiod 2)."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import gpiod
from gpiod.line import Bias, Direction, Edge

from server.config.triggers import GpioTrigger
from server.line.outputs.base import OutputError
from server.line.triggers.base import Signal

EDGES = {"rising": Edge.RISING, "falling": Edge.FALLING}
BIASES = {
    "as-is": Bias.AS_IS,
    "pull-up": Bias.PULL_UP,
    "pull-down": Bias.PULL_DOWN,
    "disabled": Bias.DISABLED,
}


class GpioSource:
    """The line of `table`. request_lines: as gpiod's, which gives the lines of a chip."""

    def __init__(
        self, table: GpioTrigger, request_lines: Callable[..., Any] = gpiod.request_lines
    ) -> None:
        self._table = table
        self._request_lines = request_lines
        self._request: gpiod.LineRequest | None = None
        # The kernel's number of the last edge of the line, which counts from 1.
        self._last = 0

    def open(self) -> None:
        table = self._table
        setting = gpiod.LineSettings(
            direction=Direction.INPUT,
            edge_detection=EDGES[table.edge],
            bias=BIASES[table.bias],
            debounce_period=timedelta(milliseconds=table.debounce_ms),
        )
        try:
            self._request = self._request_lines(
                table.chip, consumer="lineside", config={table.line: setting}
            )
        except (OSError, ValueError):
            raise OutputError(f"line {table.line} of {table.chip} can't be had") from None
        self._last = 0

    def take(self, timeout_s: float) -> Sequence[Signal]:
        assert self._request is not None
        try:
            if not self._request.wait_edge_events(timeout_s):
                return ()
            newest = self._request.read_edge_events()[-1].line_seqno
        except OSError:
            raise OutputError(
                f"line {self._table.line} of {self._table.chip} can't be read"
            ) from None
        # Also those that the kernel had no room for.
        count, self._last = newest - self._last, newest
        return (Signal(),) * count

    def close(self) -> Sequence[Signal]:
        if self._request is not None:
            self._request.release()
            self._request = None
        return ()
