"""Valid requests of every operation of the API, for `fuzz_http.py` to spoil."""

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import msgspec
import numpy as np

from server.api.openapi import declared_routes
from server.http.routes import Files, Route

BOUNDARY = "fuzz-0123456789"
KINDS = {
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/bmp": ".bmp",
    "image/webp": ".webp",
    "image/tiff": ".tiff",
}
# Values that the fields of a request can have.
FIELDS = {
    "model": ("parts", "iris", "nuts"),
    "version": ("1", "2"),
    "top_k": ("1", "5"),
    "threshold": ("0.5",),
    "camera": ("st4-top",),
    "part": ("A-1",),
    "captured_at": ("1767225600.25", "2026-01-01T00:00:00Z"),
    "deadline_ms": ("200", "5000"),
    "webhook": ("http://127.0.0.1/hook",),
    "limit": ("1", "100"),
    "cursor": ("1",),
    "before": ("3",),
    "status": ("pending", "200"),
    "since": ("2026-01-01T00:00:00Z", "0"),
    "until": ("1767225600",),
    "order": ("newest", "oldest"),
    "format": ("csv", "jsonl", "json"),
    "id": ("an-id",),
    "image_url": ("http://127.0.0.1/a.jpg",),
    "parameters": ('{"top_k": 1}',),
}


class Request(NamedTuple):
    """One request. path, query: as in a WSGI environment. headers: by their names in HTTP."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


def image(kind: str, rng: random.Random) -> bytes:
    """A small image of one colour."""
    pixels = np.full((24, 32, 3), rng.randrange(256), np.uint8)
    return cv2.imencode(KINDS[kind], pixels)[1].tobytes()


def archive(model: Path) -> bytes:
    """The newest version of a model as the tar archive that /upload takes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file in sorted((model / "1").iterdir()):
            if file.is_file():
                tar.add(file, file.name)
    return buffer.getvalue()


def form(parts: list[tuple[str, str | None, bytes]]) -> bytes:
    """A multipart body of (field, file name, content)."""
    pieces = []
    for name, filename, content in parts:
        file = "" if filename is None else f'; filename="{filename}"\r\nContent-Type: image/jpeg'
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        pieces.append(head.encode() + content + b"\r\n")
    return b"".join(pieces) + f"--{BOUNDARY}--\r\n".encode()


class Seeds:
    """Draws valid requests by `rng`. models: the folder whose `iris` is uploaded; ids: those of
    jobs that were answered, to ask for."""

    def __init__(self, rng: random.Random, models: Path) -> None:
        self._rng = rng
        self._routes = [route for route in declared_routes() if route.described]
        self._archive = archive(models / "iris")
        self.ids = ["0123456789abcdef0123456789abcdef"]

    def draw(self) -> Request:
        """One of them."""
        rng = self._rng
        route = rng.choice(self._routes)
        body, kind = self._body(route)
        query = self._query(route.query) if route.query and rng.random() < 0.5 else ""
        headers = {"Host": "127.0.0.1:8080", "Accept": "*/*"}
        if route.method == "POST" or body:
            headers["Content-Length"] = str(len(body))
        if kind:
            headers["Content-Type"] = kind
        return Request(route.method, self._path(route.path), query, headers, body)

    def _path(self, path: str) -> str:
        numbers = {"name": self._rng.choice(("parts", "iris", "iris", "nuts")), "version": "1"}
        return path.format(
            **numbers,
            label="stable",
            file=self._rng.choice(("app.js", "style.css", "good.jpg")),
            sample="000000001-0123456789abcdef",
            job=self._rng.choice(self.ids),
        )

    def _query(self, kind: type[msgspec.Struct]) -> str:
        known = [name for name in kind.__struct_fields__ if name in FIELDS]
        names = self._rng.sample(known, min(len(known), self._rng.randint(1, 3)))
        return "&".join(f"{name}={self._rng.choice(FIELDS[name])}" for name in names)

    def _body(self, route: Route) -> tuple[bytes, str]:
        if not route.bodies:
            return b"", ""
        kind = self._rng.choice(list(route.bodies))
        body: Any = route.bodies[kind]
        if isinstance(body, Files):
            parts: list[tuple[str, str | None, bytes]] = [
                (self._rng.choice(body.names), "a.jpg", image("image/jpeg", self._rng))
            ]
            for name in self._rng.sample(sorted(FIELDS), self._rng.randint(0, 2)):
                parts.append((name, None, self._rng.choice(FIELDS[name]).encode()))
            return form(parts), f"{kind}; boundary={BOUNDARY}"
        if kind in KINDS:
            return image(kind, self._rng), kind
        if kind.endswith("urlencoded"):
            return b"image_base64=%2F9j%2F&camera=st4&top_k=1", kind
        if body is bytes:
            infer = route.path.endswith("infer")
            return (b'{"inputs": []}' if infer else self._archive), kind
        return json.dumps(route.example).encode(), kind
