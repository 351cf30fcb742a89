"""Small test pictures and image files of every format."""

import functools
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def picture(width: int = 64, height: int = 48, seed: int = 0) -> Pixels:
    """A smooth RGB picture without symmetry, [height, width, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def plain(color: tuple[int, int, int], width: int = 40, height: int = 30) -> Pixels:
    """A picture of one RGB colour."""
    return np.full((height, width, 3), color, np.uint8)


def grainy_classes(folder: Path, count: int, shape: tuple[int, int], blur: float = 0.0) -> Path:
    """Write `count` grainy pictures of `shape` (height, width) of each of the classes dark and
    light, in a sub-folder each, and return the folder."""
    rng = np.random.default_rng(0)
    for name, level in (("dark", 50), ("light", 190)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            grain = rng.normal(level, 60, (*shape, 3)).clip(0, 255).astype(np.uint8)
            pixels = cv2.GaussianBlur(grain, (0, 0), blur) if blur else grain
            cv2.imwrite(str(folder / name / f"{number}.png"), pixels)
    return folder


def encode(pixels: NDArray[Any], kind: str = "JPEG", mode: str | None = None, **how: Any) -> bytes:
    """`pixels` as an image file that Pillow writes; `mode` converts before."""
    image = Image.fromarray(pixels)
    if mode is not None:
        image = image.convert(mode)
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def files(pixels: Pixels) -> dict[str, bytes]:
    """The same picture as a file of every format that is read, by a telling name."""
    return {
        "jpeg": encode(pixels, "JPEG", quality=95),
        "jpeg-progressive": encode(pixels, "JPEG", quality=95, progressive=True),
        "jpeg-cmyk": encode(pixels, "JPEG", "CMYK", quality=95),
        "png": encode(pixels, "PNG"),
        "bmp": encode(pixels, "BMP"),
        "webp": encode(pixels, "WEBP", quality=95),
        "webp-lossless": encode(pixels, "WEBP", lossless=True),
        "tiff": encode(pixels, "TIFF"),
        "tiff-lzw": encode(pixels, "TIFF", compression="tiff_lzw"),
        "ppm": encode(pixels, "PPM"),
    }


@functools.cache
def huge_png(side: int = 20_000) -> bytes:
    """A valid grey PNG of `side` by `side` pixels in a few kilobytes: one bit a pixel, all zero."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    packed = b"".join([packer.compress(row * 1000) for _ in range(side // 1000)])
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)),
        (b"IDAT", packed + packer.flush()),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
