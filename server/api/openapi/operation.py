"""One operation of the HTTP API: a method at a path, with the types that validate it."""

from typing import Any

import msgspec

from server.api.recognize.options import FrameOptions

JSON, MULTIPART, FORM = (
    "application/json",
    "multipart/form-data",
    "application/x-www-form-urlencoded",
)
BINARY, TAR = "application/octet-stream", "application/x-tar"
IMAGE_TYPES = ("image/jpeg", "image/png", "image/bmp", "image/webp", "image/tiff")
# What a recognising route may answer beside its result.
FRAME_ERRORS = (400, 404, 413, 415, 422, 503)
NUMBER_ERRORS = (400, 404, 413, 503)


class Files(msgspec.Struct, frozen=True):
    """A form: its file fields, of which one is sent (or, where `several`, any number), and the
    type that its other fields belong to."""

    names: tuple[str, ...]
    fields: type | None = FrameOptions
    several: bool = False


class Operation(msgspec.Struct, frozen=True):
    """One method at one path.

    bodies: what it takes, by media type: a type, `Files`, or `bytes`. answers: what it answers
    with 200, by media type; several types are alternatives. errors: the other statuses. foreign:
    its errors have the shape of another protocol. accepted: what it answers with 202. asks: what
    its query string may hold, where `query` is set.
    """

    method: str
    path: str
    tag: str
    summary: str
    answers: dict[str, tuple[Any, ...]]
    query: bool = False
    bodies: dict[str, Any] = {}
    errors: tuple[int, ...] = ()
    foreign: bool = False
    accepted: tuple[Any, ...] = ()
    asks: type[msgspec.Struct] = FrameOptions


def getting(
    path: str, tag: str, summary: str, answer: Any, *errors: int, foreign: bool = False
) -> Operation:
    """A GET without a query string. `errors` are its other statuses."""
    return Operation("get", path, tag, summary, {JSON: (answer,)}, errors=errors, foreign=foreign)


def posting(
    path: str,
    tag: str,
    summary: str,
    answers: tuple[Any, ...],
    bodies: dict[str, Any],
    errors: tuple[int, ...] = FRAME_ERRORS,
    foreign: bool = True,
) -> Operation:
    """A POST of frames or numbers, with their options in the query string too."""
    return Operation("post", path, tag, summary, {JSON: answers}, True, bodies, errors, foreign)
