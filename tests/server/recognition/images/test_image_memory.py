"""No image takes more memory than a stated multiple of its decoded pixels."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from fuzz.image_kinds import animated, encode, interlaced
from PIL import Image
from server_process import ROOT, environ_without_coverage

from server.recognition.frame import MEMORY_FACTOR

SIDE = 3000
FRAME_BYTES = SIDE * SIDE * 3
# What libraries keep for themselves, and the file.
SPARE_BYTES = 8_000_000
# Reads lines of JSON: an image, a small one, and the significant bits of a sample. Prints the shape
# of each image, and by how much decoding it raised the peak of a child's memory.
PROGRAM = """
import json, os, sys
from pathlib import Path
from server.recognition import frame; from server.system import process
from server.recognition.manifest import Recipe

process.configure_process()
exact = Recipe(width=1, height=1, decode="exact")

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

for line in sys.stdin:
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        continue
    large, small, bits = json.loads(line)
    limits = frame.Limits(significant_bits=bits)
    frame.decode(Path(small).read_bytes(), exact, frame.Limits())
    data = Path(large).read_bytes()
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    shape = frame.decode(data, exact, limits).shape
    print(*shape, peak() - before, flush=True)
    os._exit(0)
"""


def deep(channels: int) -> bytes:
    samples = np.zeros((SIDE, SIDE, channels), np.uint16)
    samples[::7] = 900
    return cv2.imencode(".png", samples)[1].tobytes()


def flat(mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (SIDE, SIDE))


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 5
    return exif


def interlaced_16_bits() -> bytes:
    return interlaced(np.zeros((SIDE, SIDE, 3), np.uint16))


FILES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encode(flat(), "JPEG", subsampling=0),
    "jpeg-progressive": lambda: encode(flat(), "JPEG", subsampling=0, progressive=True),
    "jpeg-cmyk": lambda: encode(flat("CMYK"), "JPEG"),
    "jpeg-cmyk-progressive": lambda: encode(flat("CMYK"), "JPEG", progressive=True),
    "jpeg-turned": lambda: encode(flat(), "JPEG", exif=turned()),
    "png": lambda: encode(flat(), "PNG"),
    "png-alpha": lambda: encode(flat("RGBA"), "PNG"),
    "png-palette": lambda: encode(flat("P"), "PNG"),
    "png-bits": lambda: encode(flat("1"), "PNG"),
    "png-16": lambda: deep(3),
    "png-16-grey": lambda: deep(1),
    "png-16-alpha": lambda: deep(4),
    "png-turned": lambda: encode(flat(), "PNG", exif=turned()),
    "png-interlaced": lambda: interlaced(np.zeros((SIDE, SIDE, 3), np.uint8)),
    "png-interlaced-16": interlaced_16_bits,
    "png-interlaced-16-animated": lambda: animated(interlaced_16_bits(), SIDE, SIDE),
    "bmp": lambda: encode(flat(), "BMP"),
    "bmp-palette": lambda: encode(flat("P"), "BMP"),
    "bmp-bits": lambda: encode(flat("1"), "BMP"),
    "webp": lambda: encode(flat(), "WEBP"),
    "webp-lossless": lambda: encode(flat(), "WEBP", lossless=True),
    "webp-alpha": lambda: encode(Image.new("RGBA", (SIDE, SIDE), (9, 9, 9, 99)), "WEBP"),
    "webp-alpha-lossless": lambda: encode(
        Image.new("RGBA", (SIDE, SIDE), (9, 9, 9, 99)), "WEBP", lossless=True
    ),
}


@pytest.fixture(scope="module")
def reader() -> Iterator[subprocess.Popen[str]]:
    """PROGRAM, which decodes each image in a child of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=environ_without_coverage(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.close()
        assert process.stderr.read() == ""


@pytest.mark.parametrize("name", FILES)
def test_peak_memory_of_an_image(reader: subprocess.Popen[str], name: str, tmp_path: Path) -> None:
    file, small = tmp_path / "large", tmp_path / "small"
    file.write_bytes(FILES[name]())
    # Libraries are loaded, and what they keep for good is taken, with a small one.
    kind = name.split("-")[0].upper()
    small.write_bytes(encode(Image.new("RGB", (64, 48)), kind))
    bits = 12 if "-16" in name else 0
    assert reader.stdin is not None
    assert reader.stdout is not None
    reader.stdin.write(json.dumps([str(file), str(small), bits]) + "\n")
    reader.stdin.flush()
    *shape, taken = map(int, reader.stdout.readline().split())
    assert shape == [SIDE, SIDE, 3]
    assert taken <= MEMORY_FACTOR * FRAME_BYTES + SPARE_BYTES
