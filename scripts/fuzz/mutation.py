"""Inputs out of seeds: bytes changed at random, and values drawn out of bytes."""

import math
import random
import struct
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

NUMBERS = (0, 1, 2, 3, 4, 7, 8, 15, 16, 127, 128, 255, 256, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
# Pieces of text that parsers stumble over.
WORDS = (
    *(b"", b"\0", b"\r\n", b"\n", b" ", b"\t", b'"', b"\\", b"'", b"\xff", b"\xc3\x28"),
    *(b"-1", b"0", b"1e400", b"-1e400", b"nan", b"inf", b"NaN", b"1" * 30, b"9" * 5000),
    *(b"null", b"true", b"[]", b"{}", b"[" * 300, b'{"a":' * 300, b"\\u0000", b"\\ud800"),
    *(b"../", b"/", b";", b",", b"=", b":", b"%00", b"%ff", b"\xed\xa0\x80", b"0x" + b"f" * 4200),
    "ü\N{BYTE ORDER MARK}\u2028\N{ARABIC-INDIC DIGIT ONE}".encode(),
)
# Floats that arithmetic stumbles over.
FLOATS = (
    *(0.0, -0.0, 1.0, -1.0, 0.5, math.nan, math.inf, -math.inf, 1e30, -1e30, 3.4e38, -3.4e38),
    *(1e-45, 1e-38, 2.0**24, 2.0**31, 2.0**63, -(2.0**63), 255.0, 1e9),
)


class Mutator:
    """Draws inputs of at most `size_max` bytes: `seeds` changed in up to eight places, by `rng`.
    words: pieces that mean something to the parser."""

    def __init__(
        self, rng: random.Random, seeds: Sequence[bytes], words: Sequence[bytes], size_max: int
    ) -> None:
        self._rng = rng
        self._seeds = seeds
        self._words = (*words, *words, *WORDS)
        self._size_max = size_max

    def draw(self) -> bytes:
        """One of them; one in thirty is a seed as it is."""
        rng = self._rng
        data = bytearray(rng.choice(self._seeds))
        for _ in range(rng.choice((0, *(1,) * 12, *(2,) * 9, *(3,) * 5, 5, 8))):
            self._change(data)
        return bytes(data[: self._size_max])

    def _change(self, data: bytearray) -> None:
        rng = self._rng
        at = rng.randint(0, len(data))
        end = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 30, 200)))
        match rng.randrange(10):
            case 0 | 1 if data:
                data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
            case 2:
                data[at:at] = rng.choice(self._words)
            case 3:
                data[at:end] = rng.choice(self._words)
            case 4:
                del data[at:end]
            case 5:
                data[at:at] = data[at:end] * rng.choice((1, 1, 2, 50))
            case 6:
                width = rng.choice((1, 2, 4, 8))
                number = rng.choice(NUMBERS) + rng.choice((0, 0, -1, 1))
                octets = (number % (1 << 8 * width)).to_bytes(width, "big")
                data[at : at + width] = octets if rng.random() < 0.5 else octets[::-1]
            case 7:
                form = rng.choice(("<f", "<d", ">f"))
                data[at : at + struct.calcsize(form)] = struct.pack(form, rng.choice(FLOATS))
            case 8:
                data[at:end] = rng.randbytes(end - at)
            case _:
                other = rng.choice(self._seeds)
                start = rng.randint(0, len(other))
                data[at:] = other[start : start + rng.choice((8, 60, len(other)))] + data[end:]


class Draw:
    """Values out of an input's bytes, from its beginning: a change of the bytes is one of the
    values. Beyond the end all bytes are zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        piece = self._data[self._at : self._at + size]
        self._at += size
        return piece.ljust(size, b"\0")

    def whole(self, low: int, high: int) -> int:
        """A whole number in low..high, both included, of at most 65,536 values."""
        return low + int.from_bytes(self.take(2), "little") % (high - low + 1)

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.take(1)[0] % len(choices)]

    @property
    def left(self) -> bool:
        """Return True if bytes are left."""
        return self._at < len(self._data)

    def rest(self) -> bytes:
        """All bytes that are left."""
        return self.take(max(0, len(self._data) - self._at))
