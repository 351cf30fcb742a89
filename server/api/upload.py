"""POST /v1/models/NAME/upload: a version as a tar archive, kept beside the others, not loaded."""

from pathlib import Path

import msgspec
from flask import Blueprint, Response, request

from server.api.audit import Auditor
from server.config.settings import Settings
from server.errors import (
    BodyTooLargeError,
    ContentCodingError,
    LengthRequiredError,
    MediaTypeError,
    MissingFieldError,
)
from server.http.body.compressed import coding_of
from server.http.errors import to_json
from server.store.bundles.upload import import_archive, remove_partial_uploads

# Room for the archive's own headers, beside its files.
HEADERS = 2_000_000
TYPES = ("application/x-tar", "application/octet-stream", "")


class UploadResult(msgspec.Struct, frozen=True):
    """What was sent: its version, and whether it was not there before. `activate` serves it."""

    model: str
    version: int
    new: bool


def blueprint(settings: Settings, auditor: Auditor) -> Blueprint:
    """The route that takes versions into the models folder of `settings`. auditor: keeps what
    came."""
    routes = Blueprint("upload", __name__, url_prefix="/v1/models")
    models, most = Path(settings.models), int(settings.max_bundle_mb * 1e6)
    remove_partial_uploads(models)

    @routes.post("/<model:name>/upload")
    def upload(name: str) -> Response:
        length = request.content_length
        if length is None:
            raise LengthRequiredError("send the archive's length as Content-Length, not in chunks")
        if not length:
            raise MissingFieldError("send the bundle's files as a tar archive, with its length")
        if coding_of(request.environ):
            raise ContentCodingError("send the tar archive as it is, without Content-Encoding")
        if request.mimetype not in TYPES:
            raise MediaTypeError(f"send the tar archive as {TYPES[0]}, not as {request.mimetype}")
        if length > most + HEADERS:
            raise BodyTooLargeError(
                f"the archive has {length / 1e6:.1f} MB, and max_bundle_mb is {most / 1e6:g}"
            )
        # Unpacked as it comes, so that no bundle is held in memory.
        version, new = import_archive(models, name, request.environ["wsgi.input"], most)
        auditor.make("upload", name, lambda: None, version)
        return to_json(UploadResult(name, version, new))

    return routes
