"""/v1/models: what this server can serve, uploads of versions, and the live swap."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from flask import Response, request, send_file

from server.api.audit import Auditor
from server.api.compat.tensorflow_serving import VersionStatus, version_statuses
from server.api.recognize.options import IMAGE_TYPES
from server.errors import (
    BodyTooLargeError,
    ContentCodingError,
    InvalidFieldError,
    LengthRequiredError,
    MediaTypeError,
    MissingFieldError,
    ModelNotFoundError,
    NotFoundError,
)
from server.http.body.image import read_options
from server.http.body.json_body import decode_json, read_body
from server.http.body.reading import coding_of
from server.http.routes import ADMIN, BINARY, KNOWN, TAR, route
from server.observe.drift import Drift, Signal
from server.recognition.manifest import Manifest
from server.recognition.tasks import TaskName
from server.store.bundles.layout import versions
from server.store.bundles.policies import PolicyState, policy_state
from server.store.bundles.repository import BundleRepository
from server.store.bundles.signatures import Signers
from server.store.bundles.upload import import_archive, remove_partial_uploads
from server.store.bundles.version_history import Failure

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=msgspec.Struct)

SAMPLES = "samples"
# Sample frames that are shown, by the ending of their file's name.
SAMPLE_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".bmp": "image/bmp",
    ".webp": "image/webp",
}
# Bytes that an archive's own headers may have, beside its files.
ARCHIVE_HEADERS_BYTES_MAX = 2_000_000


class SampleFrames(msgspec.Struct, frozen=True):
    """The sample frames that a bundle brings along, by file name."""

    model: str
    samples: tuple[str, ...]


class Model(msgspec.Struct, frozen=True):
    """One bundle name: what it takes (`classify`: images, `tensor`: numbers), the versions on
    disk, newest first, the one that serves, and those that were refused with the reason.
    model_version_status: the same as TensorFlow Serving answers it. drift: how far the last frames
    are from the bundle's baseline, by signal, as population stability index; without the signals
    that have too few frames, and null if nothing is measured. policy: the verdict policy of the
    version that serves. note: after a load, the newer
    versions that it skipped and why; else absent. engine: name and version of the runtime that runs
    the version that serves."""

    name: str
    task: TaskName
    versions: tuple[int, ...]
    default: bool
    serving: int | None
    labels: tuple[str, ...]
    failures: tuple[Failure, ...]
    manifest: Manifest | None
    model_version_status: tuple[VersionStatus, ...]
    drift: dict[Signal, float] | None = None
    policy: PolicyState | None = None
    note: str | msgspec.UnsetType = msgspec.UNSET
    engine: str | None = None


class Models(msgspec.Struct, frozen=True):
    """All bundles."""

    models: tuple[Model, ...]


class UploadResult(msgspec.Struct, frozen=True):
    """The version that was sent. new: it was not there before. `activate` has it serve."""

    model: str
    version: int
    new: bool


class VersionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The version that a change is about; null for the one that the rules name."""

    version: Annotated[int, msgspec.Meta(ge=1)] | None = None


def describe(store: BundleRepository, name: str, numbers: tuple[int, ...], drift: Drift) -> Model:
    recognizer = store.served().get(name)
    return Model(
        name=name,
        task=store.task(name, numbers[0]),
        versions=numbers,
        default=name == store.default,
        serving=recognizer.manifest.version if recognizer else None,
        labels=tuple(label.name for label in recognizer.labels) if recognizer else (),
        failures=store.failures(name),
        manifest=recognizer.manifest if recognizer else None,
        model_version_status=version_statuses(store, name),
        drift=drift.of(name, recognizer.manifest.version) if recognizer else None,
        policy=policy_state(recognizer.bundle, recognizer.device_policy) if recognizer else None,
        engine=recognizer.pool.engine.runtime if recognizer else None,
    )


def _note(skipped: Sequence[int]) -> str:
    names = ", ".join(map(str, skipped))
    return (
        f"newer than the version that serves, and skipped since it was rolled back: {names};"
        f' activate with {{"version": {skipped[0]}}} serves it'
    )


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a request without options."""


def read_change(kind: type[T]) -> T:
    """Return `kind` from this request's JSON body and its query string, which goes first. Raises
    InvalidFieldError."""
    query = read_options(kind, request)
    # Whatever its Content-Type is: curl calls every body a form.
    body = read_body()
    if not body:
        return query
    in_query = {
        name: getattr(query, name) for name in kind.__struct_fields__ if request.args.get(name)
    }
    return msgspec.structs.replace(decode_json(kind, body), **in_query)


MODEL_PATH = "/v1/models/<model:name>"
# Declares a change of a model.
change_route = partial(route, "POST", rights=ADMIN, errors=(400, 403, 404, 409, 413, 422, 503))
_version_route = partial(change_route, query=VersionBody, body=VersionBody, example={"version": 1})


class ModelRoutes:
    """Answers and changes the models of `store`, the latter by `auditor`."""

    def __init__(self, store: BundleRepository, drift: Drift, auditor: Auditor) -> None:
        self._store = store
        self._drift = drift
        self._auditor = auditor

    def _described(self, name: str) -> Model:
        known = versions(self._store.folder)
        if name not in known:
            raise ModelNotFoundError(f"there is no model {name}")
        return describe(self._store, name, known[name], self._drift)

    def _activated(self, action: str, name: str, version: int) -> Model:
        self._auditor.make(action, name, lambda: self._store.activate(name, version), version)
        return self._described(name)

    @route("GET", "/v1/models", rights=KNOWN)
    def models(self) -> Models:
        """Return all models."""
        known = versions(self._store.folder).items()
        models = (describe(self._store, name, numbers, self._drift) for name, numbers in known)
        return Models(tuple(models))

    @route("GET", MODEL_PATH, rights=KNOWN, errors=(404,))
    def model(self, name: str) -> Model:
        """Return one model."""
        return self._described(name)

    @_version_route(f"{MODEL_PATH}/load")
    def load(self, name: str) -> Model:
        """Load the newest version on disk, or the one named, and have it serve."""
        version = read_change(VersionBody).version
        if version is not None:
            return self._activated("load", name, version)
        self._auditor.make("load", name, lambda: self._store.refresh(name))
        skipped = self._store.passed_over(name)
        if not skipped:
            return self._described(name)
        fields = {"model": name, "versions": skipped, "reason": "they were rolled back"}
        logger.info("newer versions skipped", extra={"fields": fields})
        return msgspec.structs.replace(self._described(name), note=_note(skipped))

    @_version_route(f"{MODEL_PATH}/activate")
    def activate(self, name: str) -> Model:
        """Have a version serve, now and after a restart."""
        version = read_change(VersionBody).version
        if version is None:
            raise InvalidFieldError('which version? Send {"version": 3}')
        return self._activated("activate", name, version)

    @change_route(f"{MODEL_PATH}/rollback")
    def rollback(self, name: str) -> Model:
        """Have the version serve again that served before."""
        read_change(NoOptions)
        self._auditor.make("rollback", name, lambda: self._store.rollback(name))
        return self._described(name)


class UploadRoutes:
    """Takes versions of at most `max_bytes` each, of `signers`, into the folder `models`."""

    def __init__(
        self, models: Path, max_bytes: int, auditor: Auditor, signers: Signers | None = None
    ) -> None:
        self._models = models
        self._max_bytes = max_bytes
        self._auditor = auditor
        self._signers = signers
        remove_partial_uploads(models)

    @route(
        "POST",
        f"{MODEL_PATH}/upload",
        rights=ADMIN,
        body={TAR: bytes, BINARY: bytes},
        errors=(400, 403, 409, 413, 415, 422, 503),
    )
    def upload(self, name: str) -> UploadResult:
        """Take a version as a tar archive of its files, which is kept and not loaded."""
        length = request.content_length
        if length is None:
            raise LengthRequiredError("send the archive's length as Content-Length, not in chunks")
        if not length:
            raise MissingFieldError("send the bundle's files as a tar archive, with its length")
        if coding_of(request.environ):
            raise ContentCodingError("send the tar archive as it is, without Content-Encoding")
        if request.mimetype not in (TAR, BINARY, ""):
            raise MediaTypeError(f"send the tar archive as {TAR}, not as {request.mimetype}")
        if length > self._max_bytes + ARCHIVE_HEADERS_BYTES_MAX:
            raise BodyTooLargeError(
                f"the archive has {length / 1e6:.1f} MB, and max_bundle_mb is"
                f" {self._max_bytes / 1e6:g}"
            )
        # Unpacked as it comes, so that no bundle is held in memory.
        body = request.environ["wsgi.input"]
        version, new = import_archive(self._models, name, body, self._max_bytes, self._signers)
        self._auditor.make("upload", name, lambda: None, version)
        return UploadResult(name, version, new)


class SampleFrameRoutes:
    """Answers the sample frames that bundles bring along."""

    def __init__(self, store: BundleRepository) -> None:
        self._store = store

    def _samples(self, name: str) -> tuple[str, dict[str, Path]]:
        """Return the model's name, and its sample frames. Raises what `BundleRepository.get`
        raises."""
        model = self._store.get(name)
        folder = model.bundle.folder / SAMPLES
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        return model.manifest.name, {p.name: p for p in files if p.suffix.lower() in SAMPLE_TYPES}

    @route("GET", f"{MODEL_PATH}/samples", rights=KNOWN, errors=(404, 503))
    def samples(self, name: str) -> SampleFrames:
        """Return the names of a model's sample frames."""
        model, files = self._samples(name)
        return SampleFrames(model, tuple(files))

    @route(
        "GET",
        f"{MODEL_PATH}/samples/<file>",
        rights=KNOWN,
        answer=dict.fromkeys(IMAGE_TYPES, bytes),
        errors=(404, 503),
    )
    def sample(self, name: str, file: str) -> Response:
        """Return one sample frame."""
        _, files = self._samples(name)
        if file not in files:
            raise NotFoundError(f"the model {name} has no sample {file}")
        # Flask would look for a relative path beside its own modules.
        path = files[file].absolute()
        response = send_file(path, SAMPLE_TYPES[path.suffix.lower()])
        # Not `public`: a proxy's cache would show it to those who have no key.
        response.headers["Cache-Control"] = "private, max-age=3600"
        return response
