"""The reader of WebP: every encoding right, no damage answered."""

import io
import struct
from contextlib import suppress

import numpy as np
import pytest
from fuzz.image_kinds import HEIGHT, KINDS, WIDTH, encode
from image_reading import Damage, noise, read, repeat, swap, zeros
from PIL import Image

from server.errors import UndecodableImageError


def test_animated_webp_is_refused() -> None:
    with pytest.raises(UndecodableImageError, match="animation"):
        read(KINDS["WEBP"]["animation"])


def riff(*chunks: tuple[bytes, bytes], pad: bytes = b"\0") -> bytes:
    body = b"".join(
        kind + struct.pack("<I", len(data)) + data + pad * (len(data) % 2) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def webp_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    at, chunks = 12, []
    while at < len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        chunks.append((kind, data[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    return chunks


[LOSSY] = webp_chunks(KINDS["WEBP"]["lossy"])
EXTENDED = b"\x08\0\0\0" + (WIDTH - 1).to_bytes(3, "little") + (HEIGHT - 1).to_bytes(3, "little")
ODD = (b"ODD ", b"123")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("two pictures", riff(LOSSY, LOSSY)),
        ("other canvas", riff((b"VP8X", EXTENDED[:4] + bytes(6)), LOSSY)),
        ("no picture", riff((b"VP8X", EXTENDED))),
        ("header later", riff(LOSSY, (b"VP8X", EXTENDED))),
        ("short header", riff((b"VP8X", EXTENDED[:9]), LOSSY)),
        ("animation flag", riff((b"VP8X", b"\2" + EXTENDED[1:]), LOSSY)),
        ("frames", riff((b"VP8X", EXTENDED), (b"ANMF", bytes(16)), LOSSY)),
        ("filling byte", riff(LOSSY, ODD, pad=b"\1")),
        ("bytes behind", riff(LOSSY) + b"more"),
        ("size", riff(LOSSY)[:4] + b"\0\0\0\0" + riff(LOSSY)[8:]),
        ("chunk beyond", riff((b"VP8 ", LOSSY[1]))[:16] + b"\xff\xff\0\0" + LOSSY[1]),
        ("no key frame", riff((b"VP8 ", bytes((LOSSY[1][0] | 1,)) + LOSSY[1][1:]))),
        ("start code", riff((b"VP8 ", LOSSY[1][:3] + b"\0" + LOSSY[1][4:]))),
        ("cut inside", riff((b"VP8 ", LOSSY[1][:-10]))),
        ("more inside", riff((b"VP8 ", LOSSY[1] + bytes(10)))),
    ],
)  # fmt: skip
def test_damaged_webp(name: str, data: bytes) -> None:
    with pytest.raises(UndecodableImageError):
        read(data)


def test_webp_with_chunks_that_nobody_knows() -> None:
    data = riff((b"VP8X", EXTENDED), ODD, LOSSY, ODD)
    assert (read(data) == read(KINDS["WEBP"]["lossy"])).all()


@pytest.mark.parametrize("quality", [5, 50, 80, 100])
@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("side", [1, 17, 130])
def test_webp_of_any_encoding_is_whole(quality: int, lossless: bool, side: int) -> None:
    """None is taken for damaged, of plain pictures, of noise and of real ones."""
    noisy = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    for pixels in (noisy, noisy // 200 * 90, np.zeros_like(noisy), np.full_like(noisy, 90)):
        for method in (0, 4, 6):
            how = {"quality": quality, "lossless": lossless, "method": method}
            data = encode(Image.fromarray(pixels), "WEBP", **how)
            assert read(data).shape == (side, side, 3)


@pytest.mark.parametrize("damage", [zeros, noise, repeat, swap])
def test_damage_inside_a_lossy_webp_is_seen(damage: Damage, sample: bytes) -> None:
    """Of a camera's frame, by the end of its codes; one in fifty may end as it should."""
    data = encode(Image.open(io.BytesIO(sample)).convert("RGB"), "WEBP")
    answered = 0
    for start in range(60, len(data) - 450, len(data) // 50):
        with suppress(UndecodableImageError):
            read(damage(data, start, 200))
            answered += 1
    assert answered <= 1
