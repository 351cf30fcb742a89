"""/v1/outputs: what each output holds, whether its other side is there, and test messages."""

from typing import TYPE_CHECKING

import msgspec
from flask import Response

from server.errors import InvalidFieldError, OutputNotFoundError
from server.http.body.json_body import read_body
from server.http.routes import ADMIN, KNOWN, route, to_json
from server.http.wsgi import current
from server.line.outputs.base import OutputState

if TYPE_CHECKING:
    from server.line.outputs.service import Outputs


class OutputList(msgspec.Struct, frozen=True):
    """The outputs of the settings, in their order."""

    outputs: tuple[OutputState, ...]


class TestSent(msgspec.Struct, frozen=True):
    """A test message that waits to be sent. request_id: it has this id. waiting: the messages that
    the other side does not have yet, this one among them."""

    request_id: str
    output: str
    waiting: int


class OutputRoutes:
    """Answers the states of `outputs`, None without any, and tests them."""

    def __init__(self, outputs: "Outputs | None") -> None:
        self._outputs = outputs

    @route("GET", "/v1/outputs", rights=KNOWN)
    def read(self) -> OutputList:
        """Return each output: connected, waiting, the last error, the last message delivered."""
        return OutputList(tuple(self._outputs.states()) if self._outputs else ())

    @route(
        "POST",
        "/v1/outputs/<name>/test",
        rights=ADMIN,
        accepted=TestSent,
        errors=(400, 403, 404, 409, 503),
    )
    def test(self, name: str) -> Response:
        """Send a test message by an output: no verdict, with the error TEST and `"test": true`.
        Outputs whose other side could take it for a verdict refuse."""
        if read_body():
            raise InvalidFieldError("a test message has no body: its text is the server's own")
        if self._outputs is None:
            raise OutputNotFoundError("there is no output of this name")
        request_id = current().request_id
        state = self._outputs.test(name, request_id)
        return to_json(TestSent(request_id, name, state.waiting), 202)
