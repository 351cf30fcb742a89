"""/v1/models: what this server can serve, how well it is known to, and the live swap."""

import logging
from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

import msgspec
from flask import Blueprint, Response, request

from server.api.audit import Auditor
from server.api.compat.tensorflow_serving import VersionStatus, version_statuses
from server.errors import InvalidFieldError, ModelNotFoundError
from server.http.body.compressed import read_body
from server.http.body.image import read_options
from server.http.body.json_body import decode_json
from server.http.errors import to_json
from server.observe.drift import Drift, Signal
from server.recognition.manifest import Manifest
from server.store.bundles.layout import versions
from server.store.bundles.records import Failure
from server.store.bundles.repository import BundleRepository

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=msgspec.Struct)


class SampleFrames(msgspec.Struct, frozen=True):
    """The sample frames that a bundle brings along, by file name."""

    model: str
    samples: tuple[str, ...]


class Model(msgspec.Struct, frozen=True):
    """One bundle name: what it takes (`classify`: images, `tensor`: numbers), the versions on
    disk, newest first, the one that serves, and those that were refused with the reason.
    model_version_status: the same as TensorFlow Serving tells it. drift: how far the last frames
    are from the bundle's baseline, by signal, as population stability index; without the signals
    that too few frames tell of, and null where nothing is measured. note: after a load, which newer
    versions it skipped and why; else absent."""

    name: str
    task: Literal["classify", "tensor"]
    versions: tuple[int, ...]
    default: bool
    serving: int | None
    labels: tuple[str, ...]
    failures: tuple[Failure, ...]
    manifest: Manifest | None
    model_version_status: tuple[VersionStatus, ...]
    drift: dict[Signal, float] | None = None
    note: str | msgspec.UnsetType = msgspec.UNSET


class Models(msgspec.Struct, frozen=True):
    """All bundles."""

    models: tuple[Model, ...]


class VersionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which version a change is about; None for the one that the rules name."""

    version: Annotated[int, msgspec.Meta(ge=1)] | None = None


def describe(store: BundleRepository, name: str, numbers: tuple[int, ...], drift: Drift) -> Model:
    """`name` as the API tells it."""
    recognizer = store.served().get(name)
    return Model(
        name=name,
        task="tensor" if name in store.tensor_models() else "classify",
        versions=numbers,
        default=name == store.default,
        serving=recognizer.manifest.version if recognizer else None,
        labels=tuple(label.name for label in recognizer.labels) if recognizer else (),
        failures=store.failures(name),
        manifest=recognizer.manifest if recognizer else None,
        model_version_status=version_statuses(store, name),
        drift=drift.of(name, recognizer.manifest.version) if recognizer else None,
    )


def _note(skipped: Sequence[int]) -> str:
    names = ", ".join(map(str, skipped))
    return (
        f"newer than the version that serves, and skipped since it was rolled back: {names};"
        f' activate with {{"version": {skipped[0]}}} serves it'
    )


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a request that asks nothing more."""


def _read(kind: type[T]) -> T:
    """`kind` from this request's JSON body and its query string, which goes first. Raises
    InvalidFieldError."""
    asked = read_options(kind, request)
    # Whatever its type is said to be: curl calls every body that it is given a form.
    body = read_body()
    if not body:
        return asked
    given = {
        name: getattr(asked, name) for name in kind.__struct_fields__ if request.args.get(name)
    }
    return msgspec.structs.replace(decode_json(kind, body), **given)


def blueprint(store: BundleRepository, drift: Drift, auditor: Auditor) -> Blueprint:
    """The model routes over `store`, whose changes `auditor` makes."""
    routes = Blueprint("models", __name__, url_prefix="/v1/models")

    def described(name: str) -> Model:
        found = versions(store.folder)
        if name not in found:
            raise ModelNotFoundError(f"there is no model {name}")
        return describe(store, name, found[name], drift)

    def activated(action: str, name: str, version: int) -> Response:
        auditor.make(action, name, lambda: store.activate(name, version), version)
        return to_json(described(name))

    @routes.get("")
    def models() -> Response:
        found = versions(store.folder)
        return to_json(
            Models(tuple(describe(store, name, numbers, drift) for name, numbers in found.items()))
        )

    @routes.get("/<model:name>")
    def model(name: str) -> Response:
        return to_json(described(name))

    @routes.post("/<model:name>/load")
    def load(name: str) -> Response:
        version = _read(VersionBody).version
        if version is not None:
            return activated("load", name, version)
        auditor.make("load", name, lambda: store.refresh(name))
        skipped = store.passed_over(name)
        if not skipped:
            return to_json(described(name))
        fields = {"model": name, "versions": skipped, "reason": "they were rolled back"}
        logger.info("newer versions skipped", extra={"fields": fields})
        return to_json(msgspec.structs.replace(described(name), note=_note(skipped)))

    @routes.post("/<model:name>/activate")
    def activate(name: str) -> Response:
        version = _read(VersionBody).version
        if version is None:
            raise InvalidFieldError('which version? Send {"version": 3}')
        return activated("activate", name, version)

    @routes.post("/<model:name>/rollback")
    def rollback(name: str) -> Response:
        _read(NoOptions)
        auditor.make("rollback", name, lambda: store.rollback(name))
        return to_json(described(name))

    return routes
