"""GET /v1/models: what this server can serve, and how well it is known to."""

import msgspec
from flask import Blueprint, Response

from server.api.responses import to_json
from server.errors import ModelNotFoundError
from server.recognition.manifest import Manifest
from server.store.bundles import BundleStore, Failure, versions


class Model(msgspec.Struct, frozen=True):
    """One bundle name: the versions on disk, newest first, the one that serves, and those that
    were refused with the reason."""

    name: str
    versions: tuple[int, ...]
    default: bool
    serving: int | None
    labels: tuple[str, ...]
    failures: tuple[Failure, ...]
    manifest: Manifest | None


class Models(msgspec.Struct, frozen=True):
    """All bundles."""

    models: tuple[Model, ...]


def describe(store: BundleStore, name: str, numbers: tuple[int, ...]) -> Model:
    """`name` as the API tells it."""
    recognizer = store.served().get(name)
    return Model(
        name=name,
        versions=numbers,
        default=name == store.default,
        serving=recognizer.manifest.version if recognizer else None,
        labels=tuple(label.name for label in recognizer.labels) if recognizer else (),
        failures=store.failures(name),
        manifest=recognizer.manifest if recognizer else None,
    )


def blueprint(store: BundleStore) -> Blueprint:
    """The model routes over `store`."""
    routes = Blueprint("models", __name__, url_prefix="/v1/models")

    @routes.get("")
    def models() -> Response:
        found = versions(store.folder)
        return to_json(
            Models(tuple(describe(store, name, numbers) for name, numbers in found.items()))
        )

    @routes.get("/<name>")
    def model(name: str) -> Response:
        found = versions(store.folder)
        if name not in found:
            raise ModelNotFoundError(f"there is no model {name}")
        return to_json(describe(store, name, found[name]))

    return routes
