"""The pages at / and /docs, what they load, and the API's description."""

from pathlib import Path

from flask import Response, send_file

from server.errors import NotFoundError
from server.http.routes import OPEN, current_table, route, to_json
from server.http.wsgi import current

FOLDER = Path(__file__).parents[1] / "console"
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere, no inline script: what a page of this server may load and do.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class ConsoleRoutes:
    """The pages, what they load, and the API's description."""

    @route("GET", "/", rights=OPEN, described=False)
    def page(self) -> Response:
        """Answer the console."""
        return _static("index.html")

    @route("GET", "/docs", rights=OPEN, described=False)
    def docs(self) -> Response:
        """Answer the page that shows the API's description."""
        sent = current().sent_path
        if up := len(sent) - len(sent.rstrip("/")):
            # Its scripts and styles are named relative to its own address.
            return Response(status=308, headers={"Location": "../" * up + "docs"})
        return _static("docs.html")

    @route("GET", "/openapi.json", rights=OPEN, described=False)
    def openapi(self) -> Response:
        """Answer the API's description."""
        # Imported with the first such request, which no camera sends.
        from server.api.openapi import Description

        return to_json(Description(current_table()).document())

    @route("GET", "/console/<path:file>", rights=OPEN, described=False, unlimited=True)
    def static(self, file: str) -> Response:
        """Answer a file that a page loads."""
        files = (path for path in FOLDER.rglob("*") if path.suffix in TYPES)
        known = {path.relative_to(FOLDER).as_posix() for path in files}
        if file not in known:
            raise NotFoundError(f"there is no file {file}")
        return _static(file)


def _static(file: str) -> Response:
    response = send_file(FOLDER / file, TYPES[Path(file).suffix], etag=True)
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-cache"
    return response
