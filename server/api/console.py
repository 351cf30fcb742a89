"""The page at / and what it shows, the sample frames of a bundle, and the API's description."""

from pathlib import Path

from flask import Blueprint, Response, request, send_file

from server.api.models import SampleFrames
from server.errors import NotFoundError
from server.http.errors import to_json
from server.http.paths import SENT
from server.store.bundles.repository import BundleRepository

FOLDER = Path(__file__).parents[1] / "console"
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
IMAGES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".bmp": "image/bmp",
    ".webp": "image/webp",
}
SAMPLES = "samples"
# Nothing from elsewhere, no inline script: what a page of this server may load and do.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def _samples(store: BundleRepository, name: str) -> tuple[str, dict[str, Path]]:
    """The model's name, and its sample frames. Raises what `BundleRepository.get` raises."""
    model = store.get(name)
    folder = model.bundle.folder / SAMPLES
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return model.manifest.name, {p.name: p for p in found if p.suffix.lower() in IMAGES}


def _static(file: str) -> Response:
    response = send_file(FOLDER / file, TYPES[Path(file).suffix], etag=True)
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-cache"
    return response


def blueprint(store: BundleRepository) -> Blueprint:
    """The pages, the API's description, and the samples."""
    routes = Blueprint("console", __name__)

    @routes.get("/")
    def page() -> Response:
        return _static("index.html")

    @routes.get("/docs")
    def docs() -> Response:
        sent = request.environ.get(SENT, "")
        if up := len(sent) - len(sent.rstrip("/")):
            # Its scripts and styles are named relative to its own address.
            return Response(status=308, headers={"Location": "../" * up + "docs"})
        return _static("docs.html")

    @routes.get("/openapi.json")
    def described() -> Response:
        # Imported when it is asked for, which cameras never do.
        from server.api.openapi.document import Description
        from server.api.openapi.operations import operations

        return to_json(Description(operations()).document())

    @routes.get("/console/<file>")
    def static(file: str) -> Response:
        known = {path.name for path in FOLDER.iterdir() if path.suffix in TYPES}
        if file not in known:
            raise NotFoundError(f"there is no file {file}")
        return _static(file)

    @routes.get("/v1/models/<model:name>/samples")
    def samples(name: str) -> Response:
        model, files = _samples(store, name)
        return to_json(SampleFrames(model, tuple(files)))

    @routes.get("/v1/models/<model:name>/samples/<file>")
    def sample(name: str, file: str) -> Response:
        _, files = _samples(store, name)
        if file not in files:
            raise NotFoundError(f"the model {name} has no sample {file}")
        # Flask would look for a relative path beside its own modules.
        response = send_file(files[file].absolute(), IMAGES[files[file].suffix.lower()])
        # Not `public`: a proxy's cache would show it to those who have no key.
        response.headers["Cache-Control"] = "private, max-age=3600"
        return response

    return routes
