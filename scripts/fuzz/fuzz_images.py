"""Compares how the server reads damaged image files with how Pillow reads them.

    python scripts/fuzz/fuzz_images.py --count 20000 --seed 1 PNG WEBP

Small pictures of every kind of a format are damaged in many ways. Each file that Pillow calls
damaged and the server answers is reported, and so is each of which both see another picture. The
readers run in child processes: one that ends is reported with the file that it was reading.
"""

import argparse
import io
import multiprocessing
import random
import struct
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fuzz.image_kinds import KINDS
from server.errors import LinesideError
from server.recognition import frame
from server.recognition.images.header import FORMATS, Limits
from server.recognition.manifest import Recipe
from server.system import process

EXACT = Recipe(width=1, height=1, decode="exact")
LIMITS = Limits(max_pixels=1_000_000)
# Grey levels by which two right pictures differ: rounding of a colour, of CMYK, of chroma.
TOLERANCE = {"JPEG": 2, "PNG": 0, "BMP": 1, "WEBP": 0, "TIFF": 2, "PPM": 1}
# Pillow's messages for files that are not damaged, but of a kind that it does not read.
UNSUPPORTED = ("Unsupported BMP bitfields layout", "Unsupported BMP pixel depth (2)")
DAMAGES = ("flip", "zeros", "cut", "repeat", "swap", "noise", "field", "repaired")
NUMBERS = (0, 1, 2, 3, 4, 7, 8, 15, 16, 255, 256, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
HEADER_BYTES, NOISE_BYTES = 160, 200
PNG_START = 8


@dataclass(frozen=True)
class Finding:
    """A file that the server reads otherwise than Pillow. fault: `damaged` (Pillow refuses it),
    `differs`, `failed` (an error that is none of ours) or `crashed`."""

    format: str
    kind: str
    damage: str
    number: int
    fault: str
    detail: str


def damaged(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """`data`, damaged in one of the ways `DAMAGES`, and in which."""
    how = rng.choice(DAMAGES)
    start, size = rng.randrange(len(data)), min(len(data), rng.choice((1, 2, 8, 30, 200, 1000)))
    end = min(len(data), start + size)
    if how == "cut":
        return how, data[:start]
    if how == "repeat":
        return how, data[:end] + data[start:end] + data[end:]
    if how == "swap":
        other = rng.randrange(len(data))
        first, second = sorted((start, other))
        size = min(size, second - first, len(data) - second)
        one, two = data[first : first + size], data[second : second + size]
        middle = data[first + size : second]
        return how, data[:first] + two + middle + one + data[second + size :]
    changed = bytearray(data)
    if how == "flip":
        for _ in range(rng.choice((1, 1, 2, 5))):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == "zeros":
        changed[start:end] = bytes(end - start)
    elif how == "noise":
        end = min(len(data), start + NOISE_BYTES)
        changed[start:end] = rng.randbytes(end - start)
    else:
        for _ in range(rng.choice((1, 1, 2))):
            width = rng.choice((1, 2, 4))
            at = rng.randrange(min(len(data), HEADER_BYTES))
            number = rng.choice(NUMBERS) & ((1 << 8 * width) - 1)
            changed[at : at + width] = number.to_bytes(width, rng.choice(("big", "little")))
        if how == "repaired":
            repair_checksums(changed)
    return how, bytes(changed)


def repair_checksums(data: bytearray) -> None:
    """Makes the checksums of a PNG's chunks right again, as a tool would that changes them."""
    if not data.startswith(b"\x89PNG"):
        return
    at = PNG_START
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            return
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4


def by_pillow(data: bytes, format_: str, *, upright: bool = True) -> NDArray[np.uint8]:
    """The picture that Pillow reads as RGB, upright or as stored. Raises whatever Pillow raises."""
    from PIL import Image, ImageOps

    names = ("JPEG", "MPO") if format_ == "JPEG" else (format_,)
    image: Image.Image = Image.open(io.BytesIO(data), formats=names)
    if image.width * image.height > LIMITS.max_pixels:
        raise ValueError("too large for this comparison")
    image.load()
    # A damaged block says nothing about the pixels.
    with suppress(SyntaxError, ValueError, KeyError, struct.error):
        image = ImageOps.exif_transpose(image) if upright else image
    if image.mode.startswith("I"):
        # Pillow's own conversion cuts values off at 255.
        deep = np.asarray(image).astype(np.int64)
        grey = (deep >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "P":
        image = image.convert("RGBA") if "transparency" in image.info else image
    return np.asarray(image.convert("RGB"), np.uint8)


def compare(data: bytes, format_: str) -> tuple[str, str] | None:
    """Return how the server's reading of a file differs from Pillow's: fault and detail."""
    try:
        ours = frame.decode(data, EXACT, LIMITS)
    except LinesideError:
        return None
    except Exception as error:  # noqa: BLE001, any other error is a finding
        return "failed", repr(error)
    try:
        # Of a damaged EXIF block, programs read more or less of the orientation.
        pictures = [by_pillow(data, format_, upright=upright) for upright in (True, False)]
    except Exception as error:  # noqa: BLE001, Pillow raises many
        if any(text in str(error) for text in UNSUPPORTED):
            return None
        return "damaged", f"{type(error).__name__}: {error}"
    alike = [theirs for theirs in pictures if theirs.shape == ours.shape]
    if not alike:
        return "differs", f"{ours.shape} and {pictures[0].shape}"
    off = min(int(np.abs(ours.astype(int) - theirs).max()) for theirs in alike)
    return ("differs", f"by {off} levels") if off > TOLERANCE[format_] else None


def case(format_: str, seed: int, number: int) -> tuple[str, str, bytes]:
    """The file `number` of a run: its kind, its damage, its bytes."""
    rng = random.Random(f"{format_} {seed} {number}")
    kind = rng.choice(sorted(KINDS[format_]))
    how, data = damaged(KINDS[format_][kind], rng)
    return kind, how, data


def _work(
    format_: str,
    seed: int,
    numbers: Sequence[int],
    at: "Synchronized[int]",
    report: Callable[[object], None],
) -> None:
    process.configure_process()
    warnings.simplefilter("ignore")
    for number in numbers:
        at.value = number
        kind, how, data = case(format_, seed, number)
        if difference := compare(data, format_):
            report(Finding(format_, kind, how, number, *difference))
    report(None)


def run(format_: str, seed: int, count: int) -> Iterator[Finding]:
    """The findings of `count` files of a format, each read in a child process."""
    context = multiprocessing.get_context("spawn")
    first = 0
    while first < count:
        at = context.Value("q", first)
        receive, send = context.Pipe(duplex=False)
        child = context.Process(
            target=_work, args=(format_, seed, range(first, count), at, send.send)
        )
        child.start()
        send.close()
        ended = False
        try:
            while (finding := receive.recv()) is not None:
                yield finding
            ended = True
        except EOFError:
            pass
        child.join()
        if ended:
            return
        kind, how, _ = case(format_, seed, at.value)
        yield Finding(format_, kind, how, at.value, "crashed", f"exit code {child.exitcode}")
        first = at.value + 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("--count", type=int, default=20_000, help="files of each format")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for the files that are reported")
    options = parser.parse_args()
    formats = [name.upper() for name in options.formats] or list(FORMATS)
    total = 0
    for format_ in formats:
        faults: Counter[str] = Counter()
        for finding in run(format_, options.seed, options.count):
            faults[finding.fault] += 1
            where = f"{format_} {finding.number} {finding.kind} {finding.damage}"
            print(f"{where}: {finding.fault}, {finding.detail}")
            if options.keep:
                options.keep.mkdir(parents=True, exist_ok=True)
                data = case(format_, options.seed, finding.number)[2]
                (options.keep / f"{format_}-{options.seed}-{finding.number}").write_bytes(data)
        print(f"{format_}: {options.count} files, {dict(faults) or 'no findings'}")
        total += sum(faults.values())
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
