"""GET and DELETE /v1/image_health: list what is usual for each camera, learn it anew."""

from typing import Annotated

import msgspec
from flask import request

from server.api.audit import Auditor
from server.errors import CameraNotFoundError, MissingFieldError
from server.http.body.image import read_options
from server.http.routes import ADMIN, KNOWN, route
from server.line.health.monitor import CameraHealth, HealthMonitor

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class ImageHealthList(msgspec.Struct, frozen=True):
    """The cameras whose pictures are judged, by name and model."""

    cameras: tuple[CameraHealth, ...]


class ForgetQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A camera whose usual values are learned anew, for one model, or without for all."""

    camera: Name | None = None
    model: Name | None = None


class ImageHealthRoutes:
    """Answers what `monitor` knows, which is None if image health is off; changes are recorded by
    `auditor`."""

    def __init__(self, monitor: HealthMonitor | None, auditor: Auditor) -> None:
        self._monitor = monitor
        self._auditor = auditor

    @route("GET", "/v1/image_health", rights=KNOWN)
    def read(self) -> ImageHealthList:
        """Return each camera whose pictures are judged: whether it learns, and its problems."""
        return ImageHealthList(tuple(self._monitor.states()) if self._monitor else ())

    @route(
        "DELETE",
        "/v1/image_health",
        rights=ADMIN,
        query=ForgetQuery,
        errors=(400, 403, 404, 503),
    )
    def forget(self) -> ImageHealthList:
        """Learn what is usual for a camera anew, from its next frames: after it was moved, or its
        light was changed."""
        query = read_options(ForgetQuery, request)
        if query.camera is None:
            raise MissingFieldError("name the camera that learns anew: ?camera=NAME")
        if self._monitor is None:
            raise CameraNotFoundError("image_health is off, so no camera's pictures are judged")
        monitor, camera, model = self._monitor, query.camera, query.model
        self._auditor.change_camera(
            "image_health", camera, lambda: monitor.forget(camera, model), model or ""
        )
        return self.read()
