"""One frame as an HTTP request, in the form that each server documents."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

BOUNDARY = b"lineside-bench-7d1f"
FORMS = ("raw", "multipart", "v2json")


@dataclass(frozen=True)
class Request:
    """A POST: its headers, and its body of `len(body)` bytes."""

    headers: dict[str, str]
    body: bytes

    def wire(self, path: str, host: str) -> bytes:
        """The bytes of the whole HTTP/1.1 request, for a connection that stays open."""
        lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + self.body

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Writes body and headers (`Name: value` a line) to two files in `folder`, for wrk."""
        body, headers = folder / f"{name}.body", folder / f"{name}.headers"
        body.write_bytes(self.body)
        headers.write_text("".join(f"{k}: {v}\n" for k, v in self.headers.items()))
        return body, headers


def _multipart(field: str, data: bytes) -> Request:
    head = (
        f'Content-Disposition: form-data; name="{field}"; filename="frame.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    body = b"--" + BOUNDARY + b"\r\n" + head.encode() + data + b"\r\n--" + BOUNDARY + b"--\r\n"
    return Request({"Content-Type": "multipart/form-data; boundary=" + BOUNDARY.decode()}, body)


def _v2json(field: str, data: bytes) -> Request:
    tensor = {
        "name": field,
        "datatype": "BYTES",
        "shape": [1],
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(data).decode()],
    }
    return Request({"Content-Type": "application/json"}, json.dumps({"inputs": [tensor]}).encode())


def build(form: str, field: str, data: bytes) -> Request:
    """A JPEG's bytes as a request: `raw` body, `multipart` with a file field, or `v2json`, the
    Open Inference Protocol v2 with one base64 BYTES tensor. `field` names field or tensor.

    Raises ValueError for another form.
    """
    if form == "raw":
        return Request({"Content-Type": "image/jpeg"}, data)
    if form == "multipart":
        return _multipart(field, data)
    if form == "v2json":
        return _v2json(field, data)
    raise ValueError(f"unknown form {form!r}; known are {', '.join(FORMS)}")
