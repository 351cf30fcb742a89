"""GET /v1/outputs: what each output holds, and whether its other side is there."""

from collections.abc import Callable, Sequence

import msgspec

from server.http.routes import KNOWN, route
from server.line.outputs.base import OutputState


class OutputList(msgspec.Struct, frozen=True):
    """The outputs of the settings, in their order."""

    outputs: tuple[OutputState, ...]


class OutputRoutes:
    """Answers the outputs that `states` returns."""

    def __init__(self, states: Callable[[], Sequence[OutputState]]) -> None:
        self._states = states

    @route("GET", "/v1/outputs", rights=KNOWN)
    def read(self) -> OutputList:
        """Return each output: connected, waiting, the last error, the last message delivered."""
        return OutputList(tuple(self._states()))
