"""The image in a request's body, and the options beside it."""

import io
from collections.abc import Iterable, Mapping
from typing import TypeVar, cast
from urllib.parse import parse_qsl

import msgspec
from flask import Request

from server.errors import InvalidFieldError, MissingFieldError

T = TypeVar("T", bound=msgspec.Struct)

FILE_FIELDS = ("file", "image")


def read_image(request: Request) -> bytes:
    """The image of `request`: multipart field `file` or `image`, or the raw body.

    Raises MissingFieldError where there is none.
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
    return not_empty(request.get_data(cache=False))


def only_image(files: Iterable[tuple[str, bytes]]) -> bytes:
    """The image among a form's files, given by field. Raises MissingFieldError where there is none,
    InvalidFieldError where there are several: one that nobody looked at might show a bad part."""
    found = [data for name, data in files if name in FILE_FIELDS]
    if not found:
        raise MissingFieldError("the form has no file field named `file` or `image`")
    if len(found) > 1:
        raise InvalidFieldError(
            f"the form has {len(found)} images, and this takes one; /v1/recognize/batch takes more"
        )
    return found[0]


def not_empty(data: bytes) -> bytes:
    """`data`, a raw body. Raises MissingFieldError where it is empty."""
    if not data:
        raise MissingFieldError(
            "no image: send it as the multipart field `file`, or as the request's body"
        )
    return data


def read_options(kind: type[T], request: Request) -> T:
    """`kind` from the query string and, where the body is a form, from its fields.

    Raises InvalidFieldError naming a value that can't be used. Fields that `kind` does not know
    are left alone.
    """
    values = request.args.to_dict()
    if request.mimetype == "multipart/form-data":
        values = {**request.form.to_dict(), **values}
    return to_options(kind, values)


def query_values(text: str) -> dict[str, str]:
    """The values of a WSGI environment's QUERY_STRING, as `Request.args` has them; the first of
    those of one name."""
    pairs = parse_qsl(
        text.encode("latin1").decode(), keep_blank_values=True, errors="werkzeug.url_quote"
    )
    return dict(reversed(pairs))


def to_options(kind: type[T], values: Mapping[str, str]) -> T:
    """`kind` from text values. Raises InvalidFieldError as `read_options` does."""
    if not values:
        return kind()
    known = {name: values[name] for name in kind.__struct_fields__ if values.get(name)}
    try:
        return msgspec.convert(known, kind, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidFieldError(str(error)) from None
