"""The image in a request's body, and the options beside it."""

import io
import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import TypeVar, cast
from urllib.parse import parse_qsl

import msgspec
from flask import Request

from server.errors import (
    InvalidFieldError,
    LengthRequiredError,
    MediaTypeError,
    MissingFieldError,
)
from server.values import validation
from server.values.validation import InvalidValueError
from server.values.wording import LISTED_NAMES_MAX, shown_name, unknown_name

T = TypeVar("T", bound=msgspec.Struct)

FILE_FIELDS = ("file", "image")
# What scripts in browsers append so that no cache answers; it asks nothing.
IGNORED = "_"
# How a body begins that is JSON, with a byte order mark or without.
JSON_BODY = re.compile(rb"(\xef\xbb\xbf)?[ \t\r\n]{0,64}[{\[]")
# And an image as base64: as a data: URL, or the first letters of JPEG, PNG, WebP, BMP and TIFF.
BASE64_IMAGE = re.compile(
    rb"[\s\"']{0,8}(data:image/[\w.+-]{1,32};base64,|/9j/|iVBORw0KGgo|UklGR|Qk[0-3]|SUkq|TU0A)"
    rb"[A-Za-z0-9+/=\s]{16}"
)


def need_length(request: Request) -> None:
    """Raise LengthRequiredError if `request` says neither its body's length nor that it comes
    in chunks: by RFC 9112, 6.3 it has no body then, which its sender can hardly have meant."""
    environ = request.environ
    if "CONTENT_LENGTH" not in environ and "HTTP_TRANSFER_ENCODING" not in environ:
        raise LengthRequiredError("the request has no body: send its length as Content-Length")


def read_image(request: Request) -> bytes:
    """Return the image of `request`: multipart field `file` or `image`, or the raw body.

    Raises MissingFieldError if there is none.
    """
    kind = request.mimetype
    if kind == "multipart/form-data":
        return only_image(
            (name, cast(io.BytesIO, file.stream).getvalue())
            for name, file in request.files.items(multi=True)
        )
    if kind == "application/x-www-form-urlencoded":
        raise MissingFieldError(
            "no image: send it as the multipart field `file`, or as the body with"
            " Content-Type: image/jpeg"
        )
    return raw_image(request.get_data(cache=False))


def only_image(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Return the image among a form's files, each with its field's name. Raises MissingFieldError
    if there is none, InvalidFieldError if there are several: one that nobody looked at might show a
    bad part."""
    files = list(files)
    images = [data for name, data in files if name in FILE_FIELDS]
    if not images:
        raise MissingFieldError(no_file(name for name, _ in files))
    if len(images) > 1:
        raise InvalidFieldError(
            f"the form has {len(images)} images, and this takes one; /v1/recognize/batch takes more"
        )
    return images[0]


def no_file(files: Iterable[str], fields: Iterable[str] = (), wanted: str = "") -> str:
    """Return a sentence that a form has no file that is taken, and which fields came, of files and
    of text."""
    fields = list(fields)
    if any(name.startswith(("{", "[")) for name in fields):
        return (
            "the body is JSON, not a form: send it with the header Content-Type: application/json"
        )
    came = [
        f"{kind} {', '.join(shown_name(name) for name in names[:LISTED_NAMES_MAX])}"
        for kind, names in (("files", list(files)), ("text fields", fields))
        if names
    ]
    has = f"; it has the {' and the '.join(came)}" if came else "; it has no field at all"
    return f"the form has no file field named {wanted or '`file` or `image`'}{has}"


def raw_image(data: bytes) -> bytes:
    """Return `data`, a raw body. Raises MissingFieldError if it is empty, and what `refuse_text`
    raises."""
    if not data:
        raise MissingFieldError(
            "no image: send it as the multipart field `file`, or as the request's body"
        )
    refuse_text(data)
    return data


def refuse_text(data: bytes) -> None:
    """Raise MediaTypeError if `data`, a raw body, is JSON or base64 and its Content-Type does
    not say so."""
    if JSON_BODY.match(data):
        raise MediaTypeError(
            "the body is JSON: send it with the header Content-Type: application/json"
        )
    if BASE64_IMAGE.match(data):
        raise MediaTypeError(
            "the body is base64 text: send the image's own bytes, or"
            ' {"image_base64": "..."} with the header Content-Type: application/json'
        )


def read_options(kind: type[T], request: Request) -> T:
    """Read `kind` from the query string and, if the body is a form, from its fields.

    Raises InvalidFieldError naming a value that can't be used, or that is missing. Names that
    `kind` does not have are left alone: Lineside's own routes refuse them before, by
    `refuse_unknown`.
    """
    values = request.args.to_dict()
    if request.mimetype == "multipart/form-data":
        values = {**request.form.to_dict(), **values}
    return to_options(kind, values)


def refuse_unknown(given: Iterable[str], known: Collection[str]) -> None:
    """Raise InvalidFieldError for a name of `given` that is not `known`, naming the nearest."""
    for name in given:
        if name not in known and name != IGNORED:
            raise InvalidFieldError(unknown_name(name, known))


def query_values(text: str) -> dict[str, str]:
    """Return the values of a WSGI environment's QUERY_STRING, as `Request.args` has them; the first
    of those of one name."""
    pairs = parse_qsl(
        text.encode("latin1").decode(), keep_blank_values=True, errors="werkzeug.url_quote"
    )
    return dict(reversed(pairs))


@lru_cache(maxsize=64)
def _has_required(kind: type[msgspec.Struct]) -> bool:
    return any(field.required for field in msgspec.structs.fields(kind))


def to_options(kind: type[T], values: Mapping[str, str]) -> T:
    """Read `kind` from text values. Raises InvalidFieldError as `read_options` does."""
    if not values and not _has_required(kind):
        return kind()
    known = {name: values[name] for name in kind.__struct_fields__ if values.get(name)}
    try:
        return validation.convert(known, kind, text=True)
    except InvalidValueError as error:
        raise InvalidFieldError(str(error)) from None
