"""JSON as typed values; what is wrong with it is said in words of ours."""

import json
import re
from typing import Any, TypeVar

import msgspec

from server.values import validation
from server.values.validation import InvalidValueError
from server.values.wording import shown

T = TypeVar("T")

BOM = b"\xef\xbb\xbf"
# Not part of JSON; some protocols allow them.
NOT_FINITE = (b"NaN", b"Infinity")
AT_BYTE = re.compile(r"\(byte ([0-9]+)\)$")
HALF_OF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


def decode(
    data: bytes, kind: type[T], *, name: str = "", not_finite: bool = False, lenient: bool = True
) -> T:
    """Reads `data` as a value of `kind`, with what `validation.convert` allows.

    name: what the user calls `data`, unless it is the body of a request. not_finite: NaN and
    Infinity are taken as numbers. Raises InvalidValueError that names what is wrong.
    """
    data = data.removeprefix(BOM)
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError:
        pass
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if not (not_finite and any(word in data for word in NOT_FINITE)):
            raise _malformed(data, name, error) from None
    value = _values(data, name, not_finite=not_finite)
    return validation.convert(value, kind, name=name, lenient=lenient)


def _values(data: bytes, name: str, *, not_finite: bool) -> Any:
    """Reads `data` as plain values of whatever types. Raises InvalidValueError."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if not (not_finite and any(word in data for word in NOT_FINITE)):
            raise _malformed(data, name, error) from None
    try:
        # As bytes, other encodings than UTF-8 would be taken as well.
        value = json.loads(data.decode())
        if HALF_OF_A_PAIR.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        what = name or "the body"
        raise InvalidValueError(
            f"{what} is not valid JSON: a \\u escape in it is half of a pair"
        ) from None
    except (ValueError, RecursionError) as error:
        raise _malformed(data, name, error) from None
    return value


def _malformed(data: bytes, name: str, error: Exception) -> InvalidValueError:
    """Makes the error that says where `data` stops being JSON."""
    what = name or "the body"
    no_json = f"{what} is not valid JSON"
    if isinstance(error, RecursionError):
        return InvalidValueError(f"{what} has lists or objects that are nested too deeply")
    if isinstance(error, UnicodeDecodeError):
        return InvalidValueError(f"{no_json}: it is not UTF-8")
    at = None
    if isinstance(error, json.JSONDecodeError):
        at = len(error.doc[: error.pos].encode())
    elif match := AT_BYTE.search(str(error)):
        at = int(match[1])
    elif isinstance(error, msgspec.DecodeError) and not isinstance(error, msgspec.ValidationError):
        hint = ", or a \\u escape in it is half of a pair" if HALF_OF_A_PAIR.search(data) else ""
        return InvalidValueError(f"{no_json}: it ends too early{hint}")
    if at is None:
        return InvalidValueError(f"{what} has a number that is too large, or has too many digits")
    sign = data[at : at + 1].decode("latin1")
    if not sign:
        return InvalidValueError(f"{no_json}: it ends too early")
    return InvalidValueError(f"{no_json}: {shown(sign)} at byte {at} is not expected there")
