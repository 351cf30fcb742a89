"""JSON bodies, and images as text in them."""

import binascii
import codecs
from typing import Any, TypeVar

import msgspec

from server.api.compressed import read_body
from server.api.query import Query, Threshold, TopK
from server.errors import InvalidFieldError, MissingFieldError

T = TypeVar("T")

# Lists and objects in a body; 20 images of 224x224 pixels have as many. They take 50 times their
# text's memory, and all of the time that it takes to make them no other frame is answered.
MOST_NESTED = 1_000_000


class Parameters(msgspec.Struct, frozen=True):
    """`top_k` and `threshold`, as some clients send them."""

    top_k: TopK | None = None
    threshold: Threshold | None = None


class JsonFrame(Query, frozen=True, kw_only=True):
    """A frame as JSON or as form fields: one of `image_base64` (a data: URL is taken too),
    `image_url` (where the operator has allowed its host) and, for a model that takes numbers,
    `input` (a tensor as nested lists, or an object of them by input name)."""

    image_base64: str | None = None
    image_url: str | None = None
    input: Any = None
    parameters: Parameters | None = None


def decode_json(kind: type[T], data: bytes | str) -> T:
    """`data` as a value of `kind`. Raises InvalidFieldError that names the place of what is wrong,
    MissingFieldError for no data."""
    if not data:
        raise MissingFieldError("the request has no body: send a JSON object")
    bom = codecs.BOM_UTF8 if isinstance(data, bytes) else "\ufeff"
    data = data.removeprefix(bom)  # type: ignore[arg-type]
    many = data.count(b"[") + data.count(b"{") if isinstance(data, bytes) else data.count("[")
    if many > MOST_NESTED:
        raise InvalidFieldError(f"the JSON has more than {MOST_NESTED:,} lists and objects")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidFieldError(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidFieldError(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidFieldError("the JSON is nested too deeply") from None


def read_json(kind: type[T]) -> T:
    """This request's body as `kind`. Errors are those of `decode_json` and `read_body`."""
    return decode_json(kind, read_body())


def decode_base64(text: str, field: str) -> bytes:
    """The bytes that `text` stands for: base64 (RFC 4648, 4), with line ends (RFC 2045, 6.8) or as
    a data: URL (RFC 2397). Raises InvalidFieldError naming `field`."""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise InvalidFieldError(f"{field} is a data: URL but not of base64")
    if "\n" in text or "\r" in text:
        text = text.replace("\r", "").replace("\n", "")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        reason = str(error).removesuffix(".")
        raise InvalidFieldError(f"{field} is not valid base64: {reason}") from None
