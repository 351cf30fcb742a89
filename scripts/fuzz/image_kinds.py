"""A small picture as a file of every kind of every format: what the fuzzer damages."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fuzz import tiff_files

Pixels = NDArray[np.uint8]
WIDTH, HEIGHT = 61, 46


def picture() -> Pixels:
    """A smooth RGB picture with some noise, [HEIGHT, WIDTH, 3]."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (5, 7, 3), np.uint8)
    smooth = cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR).astype(int)
    return np.asarray((smooth + rng.integers(-4, 5, smooth.shape)).clip(0, 255), np.uint8)


def encode(image: Image.Image, format_: str, **how: Any) -> bytes:
    """`image` as a file that Pillow writes."""
    out = io.BytesIO()
    image.save(out, format_, **how)
    return out.getvalue()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def jpegs(image: Image.Image) -> dict[str, bytes]:
    """Baseline and progressive ones of several samplings."""
    how: dict[str, dict[str, Any]] = {
        "plain": {},
        "444": {"subsampling": 0, "quality": 95},
        "422": {"subsampling": 1, "optimize": True},
        "progressive": {"progressive": True},
        "progressive-444": {"progressive": True, "subsampling": 0, "quality": 95},
        "restarts": {"restart_marker_rows": 1},
        "exif": {"exif": _exif()},
    }
    files = {name: encode(image, "JPEG", **options) for name, options in how.items()}
    files["grey"] = encode(image.convert("L"), "JPEG")
    files["grey-progressive"] = encode(image.convert("L"), "JPEG", progressive=True)
    files["cmyk"] = encode(image.convert("CMYK"), "JPEG")
    return files


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(header: tuple[int, ...], rows: bytes, *before: bytes) -> bytes:
    """A PNG of an IHDR's fields, its filtered rows, and chunks that stand before them."""
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", *header)),
            *before,
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND"),
        )
    )


def interlaced(pixels: NDArray[Any]) -> bytes:
    """RGB or grey pixels, uint8 or uint16, as an interlaced PNG."""
    deep = pixels.dtype == np.uint16
    stored = pixels.astype(">u2") if deep else pixels
    steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
    rows = b"".join(
        b"\0" + row.tobytes()
        for left, top, right, down in (*steps, (0, 1, 1, 2))
        for row in stored[top::down, left::right]
        if row.size
    )
    color = 2 if pixels.ndim == 3 else 0
    size = pixels.shape[1], pixels.shape[0]
    return png((*size, 16 if deep else 8, color, 0, 0, 1), rows)


def animated(file: bytes, width: int, height: int) -> bytes:
    """The PNG `file` as an animation of two frames; the second is one pixel."""
    place = struct.pack(">II", width, height) + bytes(14)
    pixel = zlib.compress(bytes(8))
    first = chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", bytes(4) + place)
    second = chunk(b"fcTL", struct.pack(">III", 1, 1, 1) + bytes(14))
    second += chunk(b"fdAT", struct.pack(">I", 2) + pixel)
    return file[:33] + first + file[33:-12] + second + file[-12:]


def pngs(image: Image.Image) -> dict[str, bytes]:
    """Every colour type and depth, interlaced ones, animations."""
    pixels = np.asarray(image)
    deep = pixels.astype(np.uint16) * 257
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    alpha = np.dstack([pixels, np.full(pixels.shape[:2], 200, np.uint8)])
    files = {
        "rgb": encode(image, "PNG"),
        "rgba": encode(Image.fromarray(alpha), "PNG"),
        "grey": encode(image.convert("L"), "PNG"),
        "grey-alpha": encode(image.convert("LA"), "PNG"),
        "palette": encode(palette, "PNG"),
        "palette-transparent": encode(palette, "PNG", transparency=3),
        "bits": encode(image.convert("1"), "PNG"),
        "exif": encode(image, "PNG", exif=_exif()),
        "grey-16": encode(Image.fromarray(deep[..., 1]), "PNG"),
        "rgb-16": cv2.imencode(".png", deep)[1].tobytes(),
        "interlaced": interlaced(pixels),
        "interlaced-grey-16": interlaced(deep[..., 1]),
        "animation": encode(image, "PNG", save_all=True, append_images=[image.rotate(180)]),
        "animation-beside": encode(
            image, "PNG", save_all=True, append_images=[image.rotate(180)], default_image=True
        ),
    }
    for bits in (2, 4):
        few = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=1 << bits)
        files[f"palette-{bits}"] = encode(few, "PNG", bits=bits)
    return files


def bmp(
    pixels: bytes,
    bits: int,
    *,
    compression: int = 0,
    size: int = 40,
    palette: bytes = b"",
    masks: tuple[int, ...] = (),
    height: int = HEIGHT,
) -> bytes:
    """A BMP of stored rows with a second header of `size` bytes."""
    if size == 12:
        second = struct.pack("<IHHHH", size, WIDTH, height, 1, bits)
        entry = 3
    else:
        entry = 4
        colors = len(palette) // entry
        second = struct.pack(
            "<IiiHHIIiiII", size, WIDTH, height, 1, bits, compression, len(pixels), 0, 0, colors, 0
        )
        second += b"".join(mask.to_bytes(4, "little") for mask in masks)
        second = second.ljust(size, b"\0")
    start = 14 + len(second) + len(palette)
    first = struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start)
    return first + second + palette + pixels


def padded(rows: NDArray[Any]) -> bytes:
    """Rows from the lowest up, each of a multiple of four bytes."""
    packed = [row.tobytes() for row in rows[::-1]]
    return b"".join(row.ljust(-(-len(row) // 4) * 4, b"\0") for row in packed)


def run_lengths(indices: Pixels) -> bytes:
    """Rows of indices in run-length codes of eight bits: runs, and literals between them."""
    out = bytearray()
    for row in indices[::-1]:
        at = 0
        while at < len(row):
            run = 1
            while at + run < len(row) and run < 255 and row[at + run] == row[at]:
                run += 1
            if run == 1 and len(row) - at >= 3:
                literal = row[at : at + 3].tobytes()
                out += bytes((0, 3)) + literal + b"\0"
                at += 3
            else:
                out += bytes((run, row[at]))
                at += run
        out += bytes((0, 0))
    return bytes(out) + bytes((0, 1))


def half_run_lengths(indices: Pixels) -> bytes:
    """Rows of indices below 16 in run-length codes of four bits, in pairs."""
    out = bytearray()
    for row in indices[::-1]:
        for at in range(0, len(row), 2):
            pair = row[at : at + 2]
            out += bytes((len(pair), int(pair[0]) << 4 | int(pair[-1])))
        out += bytes((0, 0))
    return bytes(out) + bytes((0, 1))


def bmps(image: Image.Image) -> dict[str, bytes]:
    """Every header, depth and compression that programs write."""
    pixels = np.asarray(image)
    indexed = image.convert("P", palette=Image.Palette.ADAPTIVE)
    few = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    colors = np.array(indexed.getpalette(), np.uint8).reshape(-1, 3)
    colors = np.vstack([colors, np.zeros((256 - len(colors), 3), np.uint8)])
    four = np.array(few.getpalette(), np.uint8).reshape(-1, 3)[:16]
    bgr = pixels[..., ::-1]
    bgrx = np.dstack([bgr, np.full(pixels.shape[:2], 255, np.uint8)])
    wide = pixels.astype(np.uint32)
    r565 = (wide[..., 0] >> 3 << 11 | wide[..., 1] >> 2 << 5 | wide[..., 2] >> 3).astype("<u2")
    r555 = (wide[..., 0] >> 3 << 10 | wide[..., 1] >> 3 << 5 | wide[..., 2] >> 3).astype("<u2")
    rgbx = (wide[..., 0] | wide[..., 1] << 8 | wide[..., 2] << 16).astype("<u4")
    palette = np.hstack([colors[:, ::-1], np.zeros((256, 1), np.uint8)]).tobytes()
    small = np.hstack([four[:, ::-1], np.zeros((len(four), 1), np.uint8)]).tobytes()
    index, index4 = np.asarray(indexed), np.asarray(few)
    nibbles = np.pad(index4, ((0, 0), (0, WIDTH % 2)))
    nibbles = nibbles[:, ::2] << 4 | nibbles[:, 1::2]
    masks565 = (0xF800, 0x07E0, 0x001F)
    return {
        "24": encode(image, "BMP"),
        "32": encode(image.convert("RGBA"), "BMP"),
        "grey": encode(image.convert("L"), "BMP"),
        "palette": encode(indexed, "BMP"),
        "bits": encode(image.convert("1"), "BMP"),
        "24-os2": bmp(padded(bgr), 24, size=12),
        "8-os2": bmp(padded(index), 8, size=12, palette=colors[:, ::-1].tobytes()),
        "24-v4": bmp(padded(bgr), 24, size=108),
        "24-v5": bmp(padded(bgr), 24, size=124),
        "24-down": bmp(padded(bgr[::-1]), 24, height=-HEIGHT),
        "32-plain": bmp(padded(bgrx), 32),
        "32-masks": bmp(
            padded(rgbx), 32, size=108, compression=3, masks=(0xFF, 0xFF00, 0xFF0000, 0xFF000000)
        ),
        "16": bmp(padded(r555), 16),
        "16-565": bmp(padded(r565), 16, compression=3, size=56, masks=(*masks565, 0)),
        "4": bmp(padded(nibbles), 4, palette=small),
        "rle8": bmp(run_lengths(index), 8, compression=1, palette=palette),
        "rle4": bmp(half_run_lengths(index4), 4, compression=2, palette=small),
    }


def webps(image: Image.Image) -> dict[str, bytes]:
    """Lossy and lossless ones, with alpha, with EXIF, animated."""
    alpha = image.convert("RGBA")
    alpha.putalpha(image.convert("L"))
    return {
        "lossy": encode(image, "WEBP"),
        "lossy-95": encode(image, "WEBP", quality=95),
        "lossy-20": encode(image, "WEBP", quality=20, method=6),
        "lossless": encode(image, "WEBP", lossless=True),
        "lossless-0": encode(image, "WEBP", lossless=True, quality=0, method=0),
        "alpha": encode(alpha, "WEBP"),
        "alpha-lossless": encode(alpha, "WEBP", lossless=True),
        "exif": encode(image, "WEBP", exif=_exif()),
        "animation": encode(image, "WEBP", save_all=True, append_images=[image.rotate(180)]),
    }


def tiffs(image: Image.Image) -> dict[str, bytes]:
    """Every compression, depth and layout that is read, in both orders of bytes."""
    names = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    files = {f"pillow-{name}": encode(image, "TIFF", compression=name) for name in names}
    files["pillow-grey-jpeg"] = encode(image.convert("L"), "TIFF", compression="jpeg")
    files["pillow-group4"] = encode(image.convert("1"), "TIFF", compression="group4")
    files["pillow-exif"] = encode(image, "TIFF", exif=_exif())
    rgb = np.asarray(image).astype(np.int64)
    grey = rgb[..., 1:2]
    samples = {
        "bits": (grey >> 7, 1, tiff_files.BLACK_IS_ZERO),
        "grey": (grey, 8, tiff_files.BLACK_IS_ZERO),
        "grey-4": (grey >> 4, 4, tiff_files.BLACK_IS_ZERO),
        "grey-16": (grey * 257, 16, tiff_files.BLACK_IS_ZERO),
        "inverted": (grey, 8, tiff_files.WHITE_IS_ZERO),
        "rgb": (rgb, 8, tiff_files.RGB),
        "rgb-16": (rgb * 257, 16, tiff_files.RGB),
        "palette": (grey >> 4, 4, tiff_files.PALETTE),
        "cmyk": (np.dstack([rgb, grey]), 8, tiff_files.CMYK),
    }
    layouts: dict[str, dict[str, Any]] = {
        "strips": {"rows": 16},
        "tiles": {"tile": (32, 16)},
        "big-endian": {"order": ">", "rows": 16},
        "big-endian-tiles": {"order": ">", "tile": (16, 16)},
        "bigtiff": {"big": True, "rows": 16},
    }
    colors = [value * 4111 % 65536 for value in range(48)]
    for (name, (values, bits, kind)), compression, layout in product(
        samples.items(), tiff_files.COMPRESSIONS, layouts
    ):
        if compression == "group4" and name != "bits":
            continue
        how = layouts[layout] | {"predictor": name.startswith("rgb") and compression == "lzw"}
        if kind == tiff_files.PALETTE:
            how["tags"] = {tiff_files.COLOR_MAP: (tiff_files.SHORT, colors)}
        made = tiff_files.write(values, bits, kind, compression, **how)
        files[f"{name}-{compression}-{layout}"] = made.data
    return files


def ppms(image: Image.Image) -> dict[str, bytes]:
    """Plain and binary ones of several depths, with and without comments."""
    rgb = np.asarray(image).astype(np.int64)
    grey = rgb[..., 1]
    size = f"{WIDTH} {HEIGHT}"
    files = {
        "p6": encode(image, "PPM"),
        "p5": encode(image.convert("L"), "PPM"),
        "p4": encode(image.convert("1"), "PPM"),
        "p1": f"P1\n# bits\n{size}\n".encode() + numbers(grey >> 7),
        "p1-dense": f"P1 {size}\n".encode() + numbers(grey >> 7).replace(b" ", b""),
    }
    for white in (1, 100, 255, 4095, 65535):
        head = f"{size}\n# the largest\n{white}\n".encode()
        kind = ">u2" if white > 255 else "u1"
        files[f"p2-{white}"] = b"P2\n" + head + numbers(grey * white // 255)
        files[f"p3-{white}"] = b"P3\n" + head + numbers(rgb * white // 255)
        files[f"p5-{white}"] = b"P5\n" + head + (grey * white // 255).astype(kind).tobytes()
        files[f"p6-{white}"] = b"P6\n" + head + (rgb * white // 255).astype(kind).tobytes()
    return files


def numbers(samples: NDArray[np.int64]) -> bytes:
    """Samples as a plain PNM has them, a row a line."""
    rows = samples.reshape(len(samples), -1).tolist()
    return "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()


MAKERS: dict[str, Callable[[Image.Image], dict[str, bytes]]] = {
    "JPEG": jpegs,
    "PNG": pngs,
    "BMP": bmps,
    "WEBP": webps,
    "TIFF": tiffs,
    "PPM": ppms,
}


def _kinds() -> Iterator[tuple[str, dict[str, bytes]]]:
    image = Image.fromarray(picture())
    for format_, make in MAKERS.items():
        yield format_, make(image)


KINDS: dict[str, dict[str, bytes]] = dict(_kinds())
