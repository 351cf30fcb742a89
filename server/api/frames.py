"""The frame of a request, in whichever form it came."""

from collections.abc import Mapping

import msgspec
from flask import request

from server.api.body import read_image, read_options
from server.api.json_body import JsonFrame, Parameters, decode_base64, decode_json, read_json
from server.api.query import Query
from server.errors import InvalidFieldError, MissingFieldError

FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
JSON = "application/json"


class ImageUrl(msgspec.Struct, frozen=True):
    """An image that is still to be fetched."""

    url: str


class Numbers(msgspec.Struct, frozen=True):
    """Plain numbers: nested lists, or such by input name."""

    value: object


Frame = bytes | ImageUrl | Numbers


def read_frame() -> tuple[Frame, Query]:
    """The frame of this request, and what is asked of it.

    Raises MissingFieldError where there is none, InvalidFieldError naming what can't be used.
    """
    if request.mimetype == JSON:
        frame = _with_query(read_json(JsonFrame))
        return _source(frame), frame
    if request.mimetype in FORMS and not request.files and _has_text():
        frame = _from_form()
        return _source(frame), frame
    return read_image(request), read_options(Query, request)


def _has_text() -> bool:
    return "image_base64" in request.form or "image_url" in request.form


def _from_form() -> JsonFrame:
    values: dict[str, object] = {**request.form.to_dict(), **request.args.to_dict()}
    parameters = values.pop("parameters", None)
    known = set(JsonFrame.__struct_fields__) - {"input"}
    values = {name: value for name, value in values.items() if name in known and value}
    try:
        frame = msgspec.convert(values, JsonFrame, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidFieldError(str(error)) from None
    if isinstance(parameters, str) and parameters:
        return _with_parameters(frame, decode_json(Parameters, parameters), values)
    return frame


def _with_query(frame: JsonFrame) -> JsonFrame:
    """The query string goes before the body, as it does for forms."""
    given = {k: v for k, v in request.args.to_dict().items() if k in Query.__struct_fields__ and v}
    asked = read_options(Query, request) if given else None
    values = {name: getattr(asked, name) for name in given}
    if frame.parameters is not None:
        frame = _with_parameters(frame, frame.parameters, given)
    return msgspec.structs.replace(frame, **values)


def _with_parameters(
    frame: JsonFrame, parameters: Parameters, given: Mapping[str, object]
) -> JsonFrame:
    values = {
        name: value
        for name in Parameters.__struct_fields__
        if (value := getattr(parameters, name)) is not None and name not in given
    }
    return msgspec.structs.replace(frame, **values)


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
