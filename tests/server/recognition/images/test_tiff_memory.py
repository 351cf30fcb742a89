"""Peak memory of TIFF and PNM files that declare much, and of large ones that are right."""

import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from fuzz import tiff_files as tiffs
from fuzz.tiff_files import BLACK_IS_ZERO, CMYK, LONG, RGB, SHORT, Tags
from server_process import ROOT, environ_without_coverage

from server.recognition.frame import MEMORY_FACTOR

# Beyond the multiple: blocks that are converted at a time, tables, changes of CCITT lines.
SOME_MB = 64
# Each file in a process of its own, that begins with nothing but the imports.
CHILD = """
import json, os, re, sys
from pathlib import Path
from server.errors import LinesideError
from server.recognition import frame; from server.system import process
from server.recognition.images.header import Limits
from server.recognition.manifest import Recipe

def status(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

process.configure_process()
exact = Recipe(width=1, height=1, decode="exact")
for path in map(Path, sys.argv[1:]):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        continue
    data = path.read_bytes()
    before, answer = status("VmRSS"), "decoded"
    try:
        size = frame.decode(data, exact, Limits()).size
    except LinesideError as error:
        size, answer = 0, error.code
    print(json.dumps([path.name, answer, size, status("VmHWM") - before]), flush=True)
    os._exit(0)
"""


def zeros(side: int, bits: int, channels: int, **how: Any) -> bytes:
    """A deflated TIFF of side x side pixels, all zero, in one strip."""
    row = -(-side * bits * channels // 8)
    packer = zlib.compressobj(level=1)
    packed = b"".join([packer.compress(bytes(row)) for _ in range(side)]) + packer.flush()
    planes = how.get("planes", 1)
    if planes > 1:
        packer = zlib.compressobj(level=1)
        rows = bytes(row // planes)
        packed = b"".join([packer.compress(rows) for _ in range(side)]) + packer.flush()
    tags: Tags = {
        tiffs.WIDTH: (LONG, [side]),
        tiffs.HEIGHT: (LONG, [side]),
        tiffs.BITS: (SHORT, [bits] * channels),
        tiffs.COMPRESSION: (SHORT, [8]),
        tiffs.PHOTOMETRIC: (
            SHORT,
            [how.get("photometric", BLACK_IS_ZERO if channels < 3 else RGB)],
        ),
        tiffs.SAMPLES: (SHORT, [channels]),
        tiffs.PLANAR: (SHORT, [2 if planes > 1 else 1]),
        tiffs.ROWS: (LONG, [side]),
    }
    return tiffs.assemble(tags | how.get("tags", {}), [packed] * planes).data


def bomb(compression: str) -> bytes:
    """A TIFF of 16 x 16 pixels whose strip holds a gigabyte, or what its bytes can hold."""
    number, _ = tiffs.COMPRESSIONS[compression]
    if compression == "deflate":
        # The same block again and again, an empty last one, and the Adler-32 of zeros (RFC 1950).
        packer, checksum = zlib.compressobj(wbits=-15), (1 << 30) % 65521 << 16 | 1
        block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
        part = b"\x78\x9c" + block * 1024 + b"\x03\0" + checksum.to_bytes(4)
    elif compression == "packbits":
        part = b"\x81\0" * 1_000_000
    else:
        part = tiffs.lzw(bytes(1 << 20)) + bytes(1_000_000)
    tags: Tags = {
        tiffs.COMPRESSION: (SHORT, [number]),
        tiffs.WIDTH: (LONG, [16]),
        tiffs.HEIGHT: (LONG, [16]),
        tiffs.BITS: (SHORT, [8]),
        tiffs.PHOTOMETRIC: (SHORT, [BLACK_IS_ZERO]),
        tiffs.SAMPLES: (SHORT, [1]),
        tiffs.ROWS: (LONG, [16]),
    }
    return tiffs.assemble(tags, [part]).data


def tile(width: int, height: int) -> bytes:
    """Eight by eight pixels in a tile of this size, of which 64 bytes are there."""
    tags: Tags = {
        tiffs.WIDTH: (LONG, [8]),
        tiffs.HEIGHT: (LONG, [8]),
        tiffs.BITS: (SHORT, [8] * 3),
        tiffs.COMPRESSION: (SHORT, [1]),
        tiffs.PHOTOMETRIC: (SHORT, [RGB]),
        tiffs.SAMPLES: (SHORT, [3]),
        tiffs.TILE_WIDTH: (LONG, [width]),
        tiffs.TILE_HEIGHT: (LONG, [height]),
    }
    return tiffs.assemble(tags, [bytes(64)], tiled=True).data


def group4(side: int) -> bytes:
    """Alternate pixels, the most changes that a line can have."""
    row = np.packbits(np.arange(side) % 2)
    part = tiffs.group4(np.tile(row, (side, 1)).tobytes(), side)
    tags: Tags = {
        tiffs.WIDTH: (LONG, [side]),
        tiffs.HEIGHT: (LONG, [side]),
        tiffs.BITS: (SHORT, [1]),
        tiffs.COMPRESSION: (SHORT, [4]),
        tiffs.PHOTOMETRIC: (SHORT, [BLACK_IS_ZERO]),
        tiffs.SAMPLES: (SHORT, [1]),
        tiffs.ROWS: (LONG, [side]),
    }
    return tiffs.assemble(tags, [part]).data


RIGHT = {
    "grey": lambda: zeros(3000, 8, 1),
    "bits": lambda: zeros(3000, 1, 1),
    "grey-12": lambda: zeros(3000, 12, 1),
    "grey-16": lambda: zeros(3000, 16, 1),
    "rgb": lambda: zeros(3000, 8, 3),
    "rgb-16": lambda: zeros(3000, 16, 3),
    "rgba-16": lambda: zeros(3000, 16, 4, tags={tiffs.EXTRA_SAMPLES: (SHORT, [2])}),
    "cmyk-16": lambda: zeros(3000, 16, 4, tags={tiffs.PHOTOMETRIC: (SHORT, [CMYK])}),
    "planes-16": lambda: zeros(3000, 16, 3, planes=3),
    "predictor-16": lambda: zeros(3000, 16, 3, tags={tiffs.PREDICTOR: (SHORT, [2])}),
    "lzw": lambda: tiffs.write(np.zeros((600, 600, 3), int), 8, RGB, "lzw", rows=600).data,
    "packbits": lambda: (
        tiffs.write(np.zeros((1000, 1000, 3), int), 8, RGB, "packbits", rows=1000).data
    ),
    "group4": lambda: group4(1000),
    "p1": lambda: b"P1 3000 3000\n" + b"0" * 9_000_000,
    "p2": lambda: b"P2 2000 2000 255\n" + b"0 " * 4_000_000,
    "p3": lambda: b"P3 1500 1500 65535\n" + b"0 " * 6_750_000,
    "p4": lambda: b"P4 8000 4000\n" + bytes(4_000_000),
    "p5": lambda: b"P5 3000 3000 255\n" + bytes(9_000_000),
    "p5-16": lambda: b"P5 3000 2000 65535\n" + bytes(12_000_000),
    "p6": lambda: b"P6 2000 2000 255\n" + bytes(12_000_000),
    "p6-16": lambda: b"P6 1500 1500 4095\n" + bytes(13_500_000),
}
HOSTILE = {
    "tile-high": lambda: tile(16, 16_777_200),
    "tile-wide": lambda: tile(16_777_200, 16),
    "tile-both": lambda: tile(1 << 30, 1 << 30),
    "deflate-bomb": lambda: bomb("deflate"),
    "lzw-bomb": lambda: bomb("lzw"),
    "packbits-bomb": lambda: bomb("packbits"),
    "too-large": lambda: zeros(8000, 1, 1),
    "p4-comment": lambda: b"P4 8#1000000\n1\n" + bytes(1_000_000),
    "p5-too-large": lambda: b"P5 9000 9000 255\n",
    "p1-too-long": lambda: b"P1 8 8\n" + b"0" * 15_000_000,
    "p2-too-long": lambda: b"P2 8 8 255\n" + b"0 " * 7_000_000,
    "p2-long-number": lambda: b"P2 8 8 255\n" + b"0" * 15_000_000,
    "p5-long-comment": lambda: b"P5 #" + b"x" * 15_000_000 + b"\n8 8 255\n" + bytes(64),
}


def test_peak_memory_is_in_proportion_to_the_frame(tmp_path: Path) -> None:
    paths = []
    for name, make in (RIGHT | HOSTILE).items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(make())
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, paths)],
        cwd=ROOT,
        env=environ_without_coverage(),
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    rows = [json.loads(line) for line in child.stdout.splitlines()]
    print(*rows, sep="\n")
    assert [row[0] for row in rows] == [path.name for path in paths]
    for path, (name, answer, size, peak) in zip(paths, rows, strict=True):
        assert (answer == "decoded") == (name in RIGHT), (name, answer)
        allowed = MEMORY_FACTOR * size + path.stat().st_size + (SOME_MB << 20)
        assert peak <= allowed, (name, size, peak)
