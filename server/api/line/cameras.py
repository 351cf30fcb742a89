"""/v1/cameras: the cameras that the server reads, listed, added, removed and triggered."""

import time
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from flask import Response, request

from server.api.audit import Auditor
from server.api.recognize.options import IMAGE_TYPES
from server.config.cameras import CAMERA_KINDS, AnyCamera, CameraTable
from server.config.tables import read_table
from server.errors import (
    BodyTooLargeError,
    CameraUnavailableError,
    InvalidFieldError,
    LinesideError,
    SettingsError,
)
from server.http.body.image import need_length, read_options
from server.http.body.json_body import decode_json, read_body
from server.http.routes import ADMIN, FRAMES, KNOWN, route, to_json
from server.http.wsgi import current
from server.line.cameras.camera import CameraState
from server.line.cameras.judge import Trigger
from server.line.cameras.service import Cameras
from server.recognition.frame import read_header
from server.recognition.images.header import ANY_SIZE
from server.recognition.sample import MEDIA_TYPES
from server.values.validation import InvalidValueError

# Bytes of a body that describes a camera.
TABLE_BYTES_MAX = 10_000
_CAMERA = "/v1/cameras/<name>"


class CameraList(msgspec.Struct, frozen=True):
    """The cameras of the settings, in their order, then those that were added."""

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


def _table(given: dict[str, Any]) -> CameraTable:
    """Return the table that a request describes. Raises InvalidFieldError."""
    try:
        return read_table(given, CAMERA_KINDS)
    except (SettingsError, InvalidValueError) as error:
        raise InvalidFieldError(str(error)) from None


def _changed_table(table: CameraTable, keys: dict[str, Any]) -> CameraTable:
    """Return `table` with other `keys`. Raises InvalidFieldError, also for a password that would go
    to another place unseen: nobody who can change a camera may read it."""
    changed = _table(msgspec.to_builtins(table) | keys)
    kept = getattr(table, "password", "") and "password" not in keys
    if kept and _server_of(changed) != _server_of(table):
        raise InvalidFieldError(
            "url leads to another server, which would get the camera's password: send the password"
            " too, or an empty one"
        )
    return changed


def _server_of(table: CameraTable) -> tuple[str, str]:
    parts = urlsplit(getattr(table, "url", ""))
    return parts.scheme, parts.netloc


class CameraRoutes:
    """Answers the states of `cameras`, changes them by `auditor`, and triggers them."""

    def __init__(self, cameras: Cameras, auditor: Auditor) -> None:
        self._cameras = cameras
        self._auditor = auditor

    @route("GET", "/v1/cameras", rights=KNOWN)
    def read(self) -> CameraList:
        """Return each camera that the server reads: its state, its frames, the last error."""
        return CameraList(tuple(self._cameras.states()))

    @route(
        "POST",
        "/v1/cameras",
        rights=ADMIN,
        body=AnyCamera,
        example={"name": "gate", "kind": "folder", "path": "frames"},
        errors=(400, 403, 409, 413, 503),
    )
    def add(self) -> CameraState:
        """Read one more camera from now on, also after a restart. The body is what a table
        [[camera]] of the settings has."""
        need_length(request)
        data = read_body()
        if len(data) > TABLE_BYTES_MAX:
            raise BodyTooLargeError(f"a camera has at most {TABLE_BYTES_MAX:,} bytes")
        table = _table(decode_json(dict[str, Any], data))
        return self._auditor.change_camera("add", table.name, lambda: self._cameras.add(table))

    @route(
        "POST",
        _CAMERA,
        rights=ADMIN,
        body=dict[str, Any],
        example={"region": [0.25, 0.25, 0.5, 0.5]},
        errors=(400, 403, 404, 409, 413, 503),
    )
    def change(self, name: str) -> CameraState:
        """Change keys of a camera that was added by a request; the others, its password among them,
        stay. A `url` on another server needs the password again. Its reader is replaced."""
        need_length(request)
        data = read_body()
        if len(data) > TABLE_BYTES_MAX:
            raise BodyTooLargeError(f"a camera has at most {TABLE_BYTES_MAX:,} bytes")
        keys = decode_json(dict[str, Any], data)
        if fixed := [key for key in ("name", "kind") if key in keys]:
            raise InvalidFieldError(f"{fixed[0]} of a camera stays: delete it, and add another")

        return self._auditor.change_camera(
            "change",
            name,
            lambda: self._cameras.change(name, lambda table: _changed_table(table, keys)),
        )

    @route("DELETE", _CAMERA, rights=ADMIN, errors=(403, 404, 409, 503))
    def remove(self, name: str) -> CameraState:
        """Read a camera no more that was added by a request."""
        return self._auditor.change_camera("remove", name, lambda: self._cameras.remove(name))

    @route(
        "GET",
        f"{_CAMERA}/frame",
        rights=ADMIN,
        answer=dict.fromkeys((*IMAGE_TYPES, "image/x-portable-anymap"), bytes),
        errors=(403, 404, 503),
    )
    def frame(self, name: str) -> Response:
        """Return the newest frame that was taken from a camera, as it came: whole, also if a region
        of it is judged."""
        data = self._cameras.picture(name)
        try:
            media_type = MEDIA_TYPES[read_header(data, ANY_SIZE).format]
        except LinesideError:
            raise CameraUnavailableError(f"the newest frame of {name} can't be read") from None
        response = Response(data, content_type=media_type)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        return response

    @route(
        "POST",
        f"{_CAMERA}/trigger",
        rights=FRAMES,
        query=TriggerOptions,
        accepted=Triggered,
        errors=(400, 404, 503),
    )
    def trigger(self, name: str) -> Response:
        """Have one fresh frame judged. Its verdict goes to the journal and the outputs."""
        query = read_options(TriggerOptions, request)
        if read_body():
            raise InvalidFieldError("a trigger has no body: name the part by ?part= in the address")
        context, asked = current(), time.monotonic()
        names = query.part, query.product, query.batch
        self._cameras.trigger(name, Trigger(context.request_id, asked, *names, context.trace))
        return to_json(Triggered(context.request_id, name), 202)
