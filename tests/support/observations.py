"""Answered frames as listeners are told of them, without a server."""

import struct
from typing import Any

from images import encode, picture

from server.recognition.answers import Answer, FrameAnswered, Options, Prediction

PICTURE = encode(picture(), "JPEG")


def jpeg(number: int, size: int = 0) -> bytes:
    """A JPEG that differs from that of another number in a comment (ISO/IEC 10918-1, B.2.4.5),
    with `size` bytes more."""
    text = b"%d:" % number + bytes(size)
    chunks = [text[start : start + 60_000] for start in range(0, len(text), 60_000)]
    comments = b"".join(b"\xff\xfe" + struct.pack(">H", len(c) + 2) + c for c in chunks)
    return PICTURE[:2] + comments + PICTURE[2:]


def observation(
    data: bytes | None = None,
    *,
    label: str = "good",
    probability: float = 0.9,
    model: str = "parts",
    version: int = 1,
    camera: str = "",
    brightness: float | None = None,
    cached: bool = False,
    at: float = 1_800_000_000.0,
) -> FrameAnswered:
    """A frame that was answered with `label`."""
    best = Prediction(0, label, probability)
    timing: dict[str, Any] = {"total": 0.005}
    answer = Answer(model, version, best, (best,), "pass", timing, brightness)
    return FrameAnswered(at, "r1", answer, Options(camera=camera, part="A-1"), data, cached)
