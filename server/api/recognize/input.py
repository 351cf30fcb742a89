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


class FrameBody(FrameOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frame as JSON or as form fields: one of `image_base64` (a data: URL is taken too),
    `image_url` (if the operator has allowed its host) and, for a model that takes numbers,
    `input` (a tensor as nested lists, or an object of them by input name)."""

    image_base64: str | None = None
    image_url: str | None = None
    input: Any = None
    parameters: Parameters | None = None


class JsonFrame(FrameBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As FrameBody. render: as of `RecognizeOptions`."""

    render: bool | None = None


T = TypeVar("T", bound=msgspec.Struct)
F = TypeVar("F", bound=FrameBody)


class ImageUrl(msgspec.Struct, frozen=True):
    """An image that is still to be fetched."""

    url: str


class Numbers(msgspec.Struct, frozen=True):
    """Plain numbers: nested lists, or such by input name."""

    value: object


Frame = bytes | ImageUrl | Numbers


def read_frame(kind: type[F]) -> tuple[Frame, F]:
    """Return the frame of this request, in whichever form it came, and its options as a `kind`.

    Raises MissingFieldError without a frame, InvalidFieldError naming what can't be used.
    """
    if request.mimetype == JSON:
        fields = _with_query(read_json(kind))
        return _source(fields), fields
    if request.mimetype not in (MULTIPART, FORM):
        return read_image(request), read_options(kind, request)
    if not request.files and not _has_text():
        raise MissingFieldError(no_file((), request.form))
    if not request.files:
        fields = read_form(kind, SOURCES)
        return _source(fields), fields
    image = read_image(request)
    refuse_unknown(request.files, FILE_FIELDS)
    fields = read_form(kind)
    if _has_text():
        raise InvalidFieldError("a file and a text image were sent together: send one of them")
    return image, fields


def _has_text() -> bool:
    return any(request.form.get(name) for name in SOURCES)


def read_form(kind: type[T], more: Collection[str] = ()) -> T:
    """Return `kind` from this request's form and its query string, which goes first.

    Of the fields in which a frame comes as text, the form may have only `more`; `parameters` is
    JSON in it. Raises InvalidFieldError for a wrong value, or a name that `kind` does not have.
    """
    known = [n for n in kind.__struct_fields__ if n in more or n not in (*SOURCES, "input")]
    refuse_unknown(request.form, known)
    texts = {**request.form.to_dict(), **request.args.to_dict()}
    sent = {name: text for name, text in texts.items() if name in known and text}
    text = sent.pop("parameters", None)
    fields = to_options(kind, sent)
    if text:
        parameters = decode_json(Parameters, text.encode("utf-8", "replace"), name="parameters")
        fields = _with_parameters(fields, parameters, sent)
    return fields


def _with_query(frame: F) -> F:
    """Replace fields by those of the query string, which goes first, as it does for forms."""
    own = set(frame.__struct_fields__) - {*SOURCES, "input", "parameters"}
    sent = {k: v for k, v in request.args.to_dict().items() if k in own and v}
    query = to_options(type(frame), sent)
    values = {name: getattr(query, name) for name in sent}
    if frame.parameters is not None:
        frame = _with_parameters(frame, frame.parameters, sent)
    return msgspec.structs.replace(frame, **values)


def _with_parameters(fields: T, parameters: Parameters, sent: Mapping[str, object]) -> T:
    """Replace those of `fields` that `parameters` has, unless they were `sent` by themselves."""
    values = {
        name: value
        for name in Parameters.__struct_fields__
        if (value := getattr(parameters, name)) is not None and name not in sent
    }
    return msgspec.structs.replace(fields, **values)


def _source(frame: FrameBody) -> Frame:
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
    """Stands in for an ImageFetcher if no host is listed. Raises InvalidFieldError."""
    raise InvalidFieldError(
        "image_url is switched off on this server: its setting image_url_hosts lists no host"
    )
