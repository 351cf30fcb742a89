"""Messages of Protocol Buffers (proto3), read and written by tables of their fields.

Source: protobuf.dev, "Encoding". The device has no protobuf package: it would be one more, for a
dozen messages, and it makes 700 MB of 16 MB that a stranger sends (8,000,000 empty inputs). Here a
message has at most `FIELDS_MAX` fields, and numbers and bytes are views of what was received.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from server.errors import BodyTooLargeError, InvalidFieldError

# Fields of one message, those of the messages within it counted: an image has about ten, and an
# encoder that does not pack numbers one for each.
FIELDS_MAX = 200_000
# Bytes of packed numbers that are worked on at a time, and of those that are counted.
PIECE_BYTES, COUNTED_BYTES = 1 << 16, 1 << 20
# Bytes of packed numbers, such as a shape's, that are read sooner one by one.
FEW_BYTES = 32
VARINT_BYTES_MAX = 10
MASK = (1 << 64) - 1
VARINT, EIGHT, SIZED, FOUR = 0, 1, 2, 5

Values: TypeAlias = dict[str, Any]


class Scalar(NamedTuple):
    """A type of numbers. wire: its wire type. dtype: of an array of them."""

    wire: int
    dtype: str


class Text(NamedTuple):
    """A string, or bytes."""

    is_bytes: bool


class Enum(NamedTuple):
    """Names with their numbers."""

    numbers: Mapping[str, int]


BOOL, INT32, INT64 = Scalar(VARINT, "bool"), Scalar(VARINT, "int32"), Scalar(VARINT, "int64")
UINT32, UINT64 = Scalar(VARINT, "uint32"), Scalar(VARINT, "uint64")
FLOAT, DOUBLE = Scalar(FOUR, "float32"), Scalar(EIGHT, "float64")
STRING, BYTES = Text(False), Text(True)


class Field(NamedTuple):
    """A field of a message. kind: Scalar, Text, Enum or Message. is_map: repeated messages of a
    `key` and a `value`."""

    number: int
    kind: Any
    repeated: bool = False
    is_map: bool = False


class Message:
    """A kind of message: its fields by name."""

    def __init__(self, **fields: Field) -> None:
        self.fields = fields
        self.by_number = {field.number: (name, field) for name, field in fields.items()}


def one(number: int, kind: Any) -> Field:
    """A field that comes once."""
    return Field(number, kind)


def many(number: int, kind: Any) -> Field:
    """A repeated field."""
    return Field(number, kind, repeated=True)


def mapped(number: int, kind: Message) -> Field:
    """A field map<string, kind>."""
    entry = Message(key=one(1, STRING), value=one(2, kind))
    return Field(number, entry, repeated=True, is_map=True)


def read_message(kind: Message, data: bytes, numbers_bytes_max: int) -> Values:
    """Return the fields of a message of `kind` that `data` has, by name: a number, str, bytes or
    dict; of a repeated field a list of them, or an array of numbers; of a map a dict. Bytes are
    views of `data`.

    numbers_bytes_max: bytes that its packed varints may have as arrays, in which one byte becomes
    up to eight. Raises InvalidFieldError if `data` is no such message, or has more than FIELDS_MAX
    fields, and BodyTooLargeError for more numbers.
    """
    return _Reader(numbers_bytes_max).message(kind, memoryview(data), {})


def _damaged(what: str) -> InvalidFieldError:
    return InvalidFieldError(f"the gRPC message is damaged: {what}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the varint at `at`, of 64 bits, and where it ends."""
    if at < len(data) and data[at] < 0x80:  # nearly all are of one byte
        return data[at], at + 1
    value = shift = 0
    while at < len(data) and shift < 7 * VARINT_BYTES_MAX:
        octet = data[at]
        at += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value & MASK, at
        shift += 7
    raise _damaged("a number in it has no end")


class _Reader:
    """Reads one message, and counts its fields and the bytes of its numbers."""

    def __init__(self, numbers_bytes_max: int) -> None:
        self._left = FIELDS_MAX
        self._numbers_bytes_max = self._numbers_bytes_left = numbers_bytes_max

    def message(self, kind: Message, data: memoryview, into: Values) -> Values:
        arrays: dict[str, list[NDArray[Any]]] = {}
        for number, wire, value in self._fields(data):
            known = kind.by_number.get(number)
            if known is None:
                continue  # of a newer version of the protocol
            name, field = known
            if isinstance(field.kind, Scalar) and field.repeated:
                self._count_numbers(field.kind, wire, value, name)
                arrays.setdefault(name, []).append(_numbers(field.kind, wire, value, name))
                continue
            read = self._value(field, wire, value, name, into)
            if field.is_map:
                into.setdefault(name, {})[read.get("key", "")] = read.get("value", {})
            elif field.repeated:
                into.setdefault(name, []).append(read)
            else:
                into[name] = read
        for name, pieces in arrays.items():
            if name in into:
                pieces.insert(0, into[name])
            into[name] = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return into

    def _count_numbers(self, kind: Scalar, wire: int, value: Any, name: str) -> None:
        """Raise BodyTooLargeError if the packed varints in `value` would take too much memory."""
        if kind.wire != VARINT or wire != SIZED:
            return
        octets = np.frombuffer(value, np.uint8)
        count = sum(
            int(np.count_nonzero(octets[at : at + COUNTED_BYTES] < 0x80))
            for at in range(0, len(octets), COUNTED_BYTES)
        )
        self._numbers_bytes_left -= count * np.dtype(kind.dtype).itemsize
        if self._numbers_bytes_left < 0:
            raise BodyTooLargeError(
                f"the numbers in {name} take more than {self._numbers_bytes_max / 1e6:.1f} MB as"
                " the message's type of them: send raw contents"
            )

    def _fields(self, data: memoryview) -> Iterator[tuple[int, int, Any]]:
        """Yield each field's number, its wire type, and its value: a number, or bytes."""
        at, end = 0, len(data)
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise InvalidFieldError(f"the gRPC message has more than {FIELDS_MAX:,} fields")
            key, at = _varint(data, at)
            number, wire = key >> 3, key & 7
            if not 0 < number < 1 << 29:
                raise _damaged("a field in it has no number")
            if wire == VARINT:
                value, at = _varint(data, at)
                yield number, wire, value
                continue
            if wire == SIZED:
                size, at = _varint(data, at)
            elif wire in (EIGHT, FOUR):
                size = 8 if wire == EIGHT else 4
            else:
                raise _damaged(f"the field {number} has the wire type {wire}")
            if size > end - at:
                raise _damaged(f"the field {number} is cut off")
            yield number, wire, data[at : at + size]
            at += size

    def _value(self, field: Field, wire: int, value: Any, name: str, into: Values) -> Any:
        kind = field.kind
        if isinstance(kind, Message | Text):
            if wire != SIZED:
                raise _damaged(f"{name} is a number")
            if isinstance(kind, Message):
                # A field that comes again adds to what came before.
                before = {} if field.repeated else into.get(name, {})
                return self.message(kind, value, before)
            if kind.is_bytes:
                return value
            try:
                return str(value, "utf-8")
            except UnicodeDecodeError:
                raise _damaged(f"{name} is not UTF-8") from None
        return _numbers(kind, wire, value, name, alone=True)[0].item()


def _numbers(
    kind: Scalar, wire: int, value: Any, name: str, *, alone: bool = False
) -> NDArray[Any]:
    """Return the numbers of a field as an array: one, or those that are packed unless `alone`."""
    if wire == kind.wire:
        if wire != VARINT:
            return np.frombuffer(value, np.dtype(kind.dtype).newbyteorder("<"))
        return _as_dtype(np.array([value], np.uint64), kind.dtype)
    if wire != SIZED or alone:
        raise _damaged(f"{name} has another type")
    if kind.wire == VARINT:
        return _packed(value, kind.dtype, name)
    dtype = np.dtype(kind.dtype).newbyteorder("<")
    if len(value) % dtype.itemsize:
        raise _damaged(f"{name} ends in the middle of a number")
    return np.frombuffer(value, dtype)


def _as_dtype(values: NDArray[np.uint64], dtype: str) -> NDArray[Any]:
    """Return varints as numbers of `dtype`, as proto3 cuts them to its bits."""
    if dtype == "bool":
        truths: NDArray[Any] = values != 0
        return truths
    return values.astype(np.int64).astype(dtype) if dtype[0] == "i" else values.astype(dtype)


def _packed(data: memoryview, dtype: str, name: str) -> NDArray[Any]:
    """Return packed varints, which are worked on in pieces, since each byte takes 40 meanwhile."""
    if len(data) <= FEW_BYTES:
        few, at = list[int](), 0
        while at < len(data):
            value, at = _varint(data, at)
            few.append(value)
        return _as_dtype(np.array(few, np.uint64), dtype)
    octets = np.frombuffer(data, np.uint8)
    if len(octets) and octets[-1] >= 0x80:
        raise _damaged(f"{name} ends in the middle of a number")
    pieces, at = [np.empty(0, dtype)], 0
    while at < len(octets):
        part = octets[at : at + PIECE_BYTES + VARINT_BYTES_MAX]
        ends = np.flatnonzero(part < 0x80)
        starts = np.concatenate([[0], ends[:-1] + 1])
        lengths = ends - starts + 1
        if not len(ends) or lengths.max() > VARINT_BYTES_MAX:
            raise _damaged(f"a number in {name} has no end")
        values = np.zeros(len(ends), np.uint64)
        for place in range(int(lengths.max())):
            longer = lengths > place
            bits = (part[starts[longer] + place] & 0x7F).astype(np.uint64)
            values[longer] |= bits << np.uint64(7 * place)
        pieces.append(_as_dtype(values, dtype))
        at += int(ends[-1]) + 1
    return np.concatenate(pieces)


def write_message(kind: Message, values: Mapping[str, Any]) -> bytes:
    """Return `values`, as `read_message` has them, as a message of `kind`. Names that it does not
    have, None, and what proto3 does not write, zero and the empty text, are left out; of a `oneof`
    too, which no message that is sent has with such a value."""
    parts: list[bytes] = []
    _write(kind, values, parts.append)
    return b"".join(parts)


def _write(kind: Message, values: Mapping[str, Any], put: Callable[[bytes], object]) -> None:
    for name, field in kind.fields.items():
        value = values.get(name)
        if value is None:
            continue
        if field.is_map:
            for key, each in value.items():
                _put_one(field, {"key": key, "value": each}, put)
        elif not field.repeated:
            if isinstance(field.kind, Message) or value:
                _put_one(field, value, put)
        elif isinstance(field.kind, Scalar):
            if len(value):
                _put_sized(field.number, b"".join(_number(field.kind, v) for v in value), put)
        else:
            for each in value:
                _put_one(field, each, put)


def _put_one(field: Field, value: Any, put: Callable[[bytes], object]) -> None:
    kind = field.kind
    if isinstance(kind, Message):
        _put_sized(field.number, write_message(kind, value), put)
    elif isinstance(kind, Text):
        _put_sized(field.number, value if kind.is_bytes else value.encode(), put)
    elif isinstance(kind, Enum):
        put(_to_varint(field.number << 3 | VARINT) + _to_varint(kind.numbers[value]))
    else:
        put(_to_varint(field.number << 3 | kind.wire) + _number(kind, value))


def _put_sized(number: int, data: bytes, put: Callable[[bytes], object]) -> None:
    put(_to_varint(number << 3 | SIZED) + _to_varint(len(data)))
    put(data)


def _number(kind: Scalar, value: Any) -> bytes:
    if kind.wire == VARINT:
        return _to_varint(int(value) & MASK)
    return struct.pack("<f" if kind.wire == FOUR else "<d", value)


def _to_varint(value: int) -> bytes:
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)
