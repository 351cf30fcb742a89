"""The frame of a request, in whichever form it came."""

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import msgspec
from flask import request

from server.api.recognize.options import FrameOptions, Threshold, TopK
from server.errors import InvalidFieldError, MissingFieldError
from server.http.body.image import (
    FILE_FIELDS,
    no_file,
    read_image,
    read_options,
    refuse_unknown,
    to_options,
)
from server.http.body.json_body import decode_base64, decode_json, read_json
from server.http.routes import FORM, JSON, MULTIPART

# The fields in which a frame comes as text, of a form or of JSON.
SOURCES = ("image_base64", "image_url")


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`top_k` and `threshold`, as some clients send them."""

    top_k: TopK | None = None
    threshold: Threshold | None = None


class JsonFrame(FrameOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frame as JSON or as form fields: one of `image_base64` (a data: URL is taken too),
    `image_url` (where the operator has allowed its host) and, for a model that takes numbers,
    `input` (a tensor as nested lists, or an object of them by input name)."""

    image_base64: str | None = None
    image_url: str | None = None
    input: Any = None
    parameters: Parameters | None = None


T = TypeVar("T", bound=msgspec.Struct)
F = TypeVar("F", bound=JsonFrame)


class ImageUrl(msgspec.Struct, frozen=True):
    """An image that is still to be fetched."""

    url: str


class Numbers(msgspec.Struct, frozen=True):
    """Plain numbers: nested lists, or such by input name."""

    value: object


Frame = bytes | ImageUrl | Numbers


def read_frame(kind: type[F]) -> tuple[Frame, F]:
    """The frame of this request, and what is asked of it as a `kind`, whatever form it came in.

    Raises MissingFieldError where there is none, InvalidFieldError naming what can't be used.
    """
    if request.mimetype == JSON:
        asked = _with_query(read_json(kind))
        return _source(asked), asked
    if request.mimetype not in (MULTIPART, FORM):
        return read_image(request), read_options(kind, request)
    if not request.files and not _has_text():
        raise MissingFieldError(no_file((), request.form))
    if not request.files:
        asked = read_form(kind, SOURCES)
        return _source(asked), asked
    image = read_image(request)
    refuse_unknown(request.files, FILE_FIELDS)
    asked = read_form(kind)
    if _has_text():
        raise InvalidFieldError("a file and a text image were sent together: send one of them")
    return image, asked


def _has_text() -> bool:
    return any(request.form.get(name) for name in SOURCES)


def read_form(kind: type[T], more: Collection[str] = ()) -> T:
    """`kind` from this request's form and, before it, its query string.

    Of the fields in which a frame comes as text, the form may have only `more`; `parameters` is
    JSON in it. Raises InvalidFieldError for a name that `kind` does not have, or a value.
    """
    known = [n for n in kind.__struct_fields__ if n in more or n not in (*SOURCES, "input")]
    refuse_unknown(request.form, known)
    texts = {**request.form.to_dict(), **request.args.to_dict()}
    given = {name: text for name, text in texts.items() if name in known and text}
    parameters = given.pop("parameters", None)
    asked = to_options(kind, given)
    if parameters:
        data = parameters.encode("utf-8", "replace")
        asked = _with_parameters(asked, decode_json(Parameters, data, name="parameters"), given)
    return asked


def _with_query(frame: F) -> F:
    """The query string goes before the body, as it does for forms."""
    own = set(frame.__struct_fields__) - {*SOURCES, "input", "parameters"}
    given = {k: v for k, v in request.args.to_dict().items() if k in own and v}
    asked = to_options(type(frame), given)
    values = {name: getattr(asked, name) for name in given}
    if frame.parameters is not None:
        frame = _with_parameters(frame, frame.parameters, given)
    return msgspec.structs.replace(frame, **values)


def _with_parameters(asked: T, parameters: Parameters, given: Mapping[str, object]) -> T:
    values = {
        name: value
        for name in Parameters.__struct_fields__
        if (value := getattr(parameters, name)) is not None and name not in given
    }
    return msgspec.structs.replace(asked, **values)


def _source(frame: JsonFrame) -> Frame:
    sources = {
        name: value
        for name in ("image_base64", "image_url", "input")
        if (value := getattr(frame, name)) is not None
    }
    if len(sources) != 1:
        what = f"{' and '.join(sources)} were sent together" if sources else "the frame is missing"
        kind = InvalidFieldError if sources else MissingFieldError
        raise kind(f"{what}: send one of image_base64, image_url and input")
    if frame.image_base64 is not None:
        return decode_base64(frame.image_base64, "image_base64")
    if frame.image_url is not None:
        return ImageUrl(frame.image_url)
    return Numbers(frame.input)


def no_fetch(url: str, deadline: float) -> bytes:
    """Stands in for an ImageFetcher where no host is listed. Raises InvalidFieldError."""
    raise InvalidFieldError(
        "image_url is switched off on this server: its setting image_url_hosts lists no host"
    )
