"""Frames read as the server reads them, and damage to their bytes."""

import random
from collections.abc import Callable

from fuzz.image_kinds import picture

from server.recognition.frame import Limits, Pixels, decode
from server.recognition.manifest import Recipe

EXACT = Recipe(width=1, height=1, decode="exact")
LIMITS = Limits()
PICTURE = picture()


def read(data: bytes, limits: Limits = LIMITS) -> Pixels:
    return decode(data, EXACT, limits)


def zeros(data: bytes, start: int, size: int) -> bytes:
    return data[:start] + bytes(size) + data[start + size :]


def noise(data: bytes, start: int, size: int) -> bytes:
    return data[:start] + random.Random(start).randbytes(size) + data[start + size :]


def repeat(data: bytes, start: int, size: int) -> bytes:
    return data[: start + size] + data[start:]


def swap(data: bytes, start: int, size: int) -> bytes:
    one, two = data[start : start + size], data[start + size : start + 2 * size]
    return data[:start] + two + one + data[start + 2 * size :]


Damage = Callable[[bytes, int, int], bytes]
