"""GET /v1/cameras, and POST /v1/cameras/NAME/trigger."""

import time
from typing import Annotated

import msgspec
from flask import Response, request

from server.errors import CameraNotFoundError, InvalidFieldError
from server.http.body.image import read_options
from server.http.body.json_body import read_body
from server.http.routes import FRAMES, KNOWN, route, to_json
from server.http.wsgi import current
from server.line.cameras.service import Cameras, CameraState, Trigger


class CameraList(msgspec.Struct, frozen=True):
    """The cameras of the settings, in their order."""

    cameras: tuple[CameraState, ...]


class TriggerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The query of a trigger. part: the caller's name for what the frame shows. product: of the
    settings, in place of the camera's own. batch: the part's lot."""

    part: Annotated[str, msgspec.Meta(max_length=128)] = ""
    product: Annotated[str, msgspec.Meta(max_length=128)] = ""
    batch: Annotated[str, msgspec.Meta(max_length=128)] = ""


class Triggered(msgspec.Struct, frozen=True):
    """A trigger that was taken. request_id: of its verdict in the journal and the outputs."""

    request_id: str
    camera: str


class CameraRoutes:
    """Answers the states of `cameras`, which is None without any, and triggers them."""

    def __init__(self, cameras: Cameras | None) -> None:
        self._cameras = cameras

    @route("GET", "/v1/cameras", rights=KNOWN)
    def read(self) -> CameraList:
        """Return each camera that the server reads: its state, its frames, the last error."""
        return CameraList(tuple(self._cameras.states()) if self._cameras else ())

    @route(
        "POST",
        "/v1/cameras/<name>/trigger",
        rights=FRAMES,
        query=TriggerOptions,
        accepted=Triggered,
        errors=(400, 404, 503),
    )
    def trigger(self, name: str) -> Response:
        """Have one fresh frame judged. Its verdict goes to the journal and the outputs."""
        query = read_options(TriggerOptions, request)
        if self._cameras is None:
            raise CameraNotFoundError("there is no camera of this name in the settings")
        if read_body():
            raise InvalidFieldError("a trigger has no body: name the part by ?part= in the address")
        context, asked = current(), time.monotonic()
        names = query.part, query.product, query.batch
        self._cameras.trigger(name, Trigger(context.request_id, asked, *names, context.trace))
        return to_json(Triggered(context.request_id, name), 202)
