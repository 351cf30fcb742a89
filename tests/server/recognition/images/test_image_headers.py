"""headers: small files that declare much are refused before a library believes them."""

import struct
import zlib
from pathlib import Path

import pytest
from images import encode, files, picture

from server.errors import UndecodableImageError
from server.recognition.frame import Limits, decode
from server.recognition.images import png
from server.recognition.images.header import EXIF_ORIENTATION, read_orientation
from server.recognition.manifest import Recipe

EXACT = Recipe(width=32, height=32, decode="exact")
LIMITS = Limits()
PICTURE = picture()
FILES = files(PICTURE)
PNG = FILES["png"]
# A PNG's signature and IHDR, and its IEND.
HEAD, END = 33, -12
SHORT, LONG, UNDEFINED = 3, 4, 7


def chunk(kind: bytes, data: bytes = b"", declared: int | None = None) -> bytes:
    length = len(data) if declared is None else declared
    return struct.pack(">I", length) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tags(*entries: tuple[int, int, int, int], order: str = "<") -> bytes:
    """A TIFF of one directory with these (tag, type, number of values, value)."""
    return b"".join(
        (
            struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8),
            struct.pack(order + "H", len(entries)),
            *(struct.pack(order + "HHII", *entry) for entry in entries),
            struct.pack(order + "I", 0),
        )
    )


def grey_tiff(*more: tuple[int, int, int, int]) -> bytes:
    """A black TIFF of 40 x 30 pixels with further tags."""
    size, strip = 1200, 2000
    entries = [
        (256, LONG, 1, 40),
        (257, LONG, 1, 30),
        (258, SHORT, 1, 8),
        (259, SHORT, 1, 1),
        (262, SHORT, 1, 1),
        (273, LONG, 1, strip),
        (277, SHORT, 1, 1),
        (278, LONG, 1, 30),
        (279, LONG, 1, size),
        *more,
    ]
    return tags(*entries).ljust(strip, b"\0") + bytes(size)


def peak() -> int:
    """The most memory that this process had since `begin_peak`, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split(maxsplit=1)[0]) * 1024


def begin_peak() -> int:
    """Forget what other tests took before, which would hide what this one takes; return the memory
    that this process has, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # proc(5)
    return peak()


@pytest.mark.parametrize("declared", [0x7FFFFFFF, 0x60000000, 40_000])
@pytest.mark.parametrize("kind", [b"IDAT", b"tEXt", b"fdAT"])
@pytest.mark.parametrize("at", [HEAD, END], ids=["before", "after"])
def test_a_png_chunk_longer_than_the_file_takes_no_memory(
    kind: bytes, declared: int, at: int
) -> None:
    before = begin_peak()
    with pytest.raises(UndecodableImageError, match=f"a chunk declares {declared} bytes"):
        decode(PNG[:at] + chunk(kind, bytes(100), declared) + PNG[at:], EXACT, LIMITS)
    assert peak() - before < 200_000_000


def test_png_of_empty_chunks_is_refused_early() -> None:
    """A PNG of empty chunks is refused before all of them are read."""
    empty = chunk(b"prVt")
    for at, most in ((HEAD, png.MAX_CHUNKS_BEFORE_PIXELS), (END, png.MAX_CHUNKS)):
        with pytest.raises(UndecodableImageError, match="more chunks than a picture needs"):
            decode(PNG[:at] + empty * most + PNG[at:], EXACT, LIMITS)


def test_png_texts_after_pixels_are_inflated_in_bounds() -> None:
    """Texts after the pixels of a PNG are not inflated without end."""
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(7_900_000), 9))
    with pytest.raises(UndecodableImageError, match="more chunks than a picture needs"):
        decode(PNG[:END] + text * 17 + PNG[END:], EXACT, LIMITS)


def test_a_png_as_programs_write_it_is_read() -> None:
    """With a chunk for each row's worth of pixels, hundreds of texts, and some after the pixels."""
    length = int.from_bytes(PNG[HEAD : HEAD + 4])
    packed = PNG[HEAD + 8 : HEAD + 8 + length]
    data = b"".join(
        (
            PNG[:HEAD],
            *(chunk(b"tEXt", b"Comment\0number %d" % i) for i in range(500)),
            *(chunk(b"IDAT", packed[i : i + 2]) for i in range(0, length, 2)),
            chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"after")) * 3,
            PNG[END:],
            b"what follows the end is not looked at",
        )
    )
    assert (decode(data, EXACT, LIMITS) == PICTURE).all()


def test_tiff_tags_that_share_bytes_take_no_memory() -> None:
    shared = [(40_000 + i, UNDEFINED, 1_000_000, 8) for i in range(1000)]
    data = grey_tiff(*shared).ljust(1_500_000, b"\0")
    before = begin_peak()
    with pytest.raises(UndecodableImageError, match="its tags declare 1000"):
        decode(data, EXACT, LIMITS)
    assert peak() - before < 200_000_000


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ([(40_000, LONG, 300_000, 8)], "a tag declares 300000 numbers"),
        ([(40_000, UNDEFINED, 0xFFFFFFFF, 8)], "its tags declare 42949"),
        ([(40_000 + i, SHORT, 1, 0) for i in range(5000)], "it declares 5009 tags"),
    ],
    ids=["numbers", "bytes", "tags"],
)
def test_a_tiff_that_declares_more_than_it_has_is_refused(
    more: list[tuple[int, int, int, int]], sentence: str
) -> None:
    with pytest.raises(UndecodableImageError, match=sentence):
        decode(grey_tiff(*more).ljust(2_000_000, b"\0"), EXACT, LIMITS)


def test_a_tiff_with_many_tags_of_its_own_is_read() -> None:
    kept = [(40_000 + i, UNDEFINED, 20, 8) for i in range(100)]
    assert decode(grey_tiff(*kept), EXACT, LIMITS).shape == (30, 40, 3)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [SHORT, LONG])
@pytest.mark.parametrize("name", [b"", b"Exif\0\0"])
def test_the_orientation_of_an_exif_block(name: bytes, kind: int, order: str) -> None:
    value = 6 << 16 if (order, kind) == (">", SHORT) else 6
    block = tags((0x0100, LONG, 1, 9), (EXIF_ORIENTATION, kind, 1, value), order=order)
    assert read_orientation(name + block) == 6


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"Exif\0\0",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff".ljust(40, b"\0"),
        b"II+\0\x08\0\0\0".ljust(40, b"\xff"),
        tags((EXIF_ORIENTATION, SHORT, 1, 9)),
        tags((EXIF_ORIENTATION, UNDEFINED, 1, 6)),
        tags(*[(0x0100, SHORT, 1, 1)] * 5000, (EXIF_ORIENTATION, SHORT, 1, 6)),
    ],
)
def test_an_exif_block_that_says_nothing(block: bytes) -> None:
    assert read_orientation(block) == 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_tags_that_share_bytes_are_not_read(kind: str) -> None:
    shared = [(40_000 + i, UNDEFINED, 200_000, 8) for i in range(4000)]
    block = tags((EXIF_ORIENTATION, SHORT, 1, 3), *shared) + bytes(200_000)
    before = begin_peak()
    assert decode(encode(PICTURE, kind, exif=block), EXACT, LIMITS).shape == PICTURE.shape
    assert peak() - before < 200_000_000


def segment(marker: int, data: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def with_segments(*segments: bytes, name: str = "jpeg") -> bytes:
    """The picture as a JPEG, with these before all other segments."""
    return FILES[name][:2] + b"".join(segments) + FILES[name][2:]


def test_jpeg_of_empty_segments_is_refused_early() -> None:
    """A JPEG of empty segments is refused before all of them are read."""
    data = with_segments(segment(0xE1) * 3_900_000)
    before = begin_peak()
    with pytest.raises(UndecodableImageError, match="more than 1000 segments"):
        decode(data, EXACT, LIMITS)
    assert peak() - before < 100_000_000


def test_a_jpeg_of_markers_without_a_segment_is_refused() -> None:
    with pytest.raises(UndecodableImageError, match="more than 1000 segments"):
        decode(with_segments(b"\xff\xd0" * 1000), EXACT, LIMITS)


def test_jpeg_with_too_many_scans_is_refused() -> None:
    """A JPEG that goes over its pixels again and again is refused."""
    data = FILES["jpeg-progressive"]
    last = data[data.rindex(b"\xff\xda") : -2]
    decode(data, EXACT, LIMITS)
    with pytest.raises(UndecodableImageError, match="the JPEG goes over its pixels 1"):
        decode(data[:-2] + last * 100 + data[-2:], EXACT, LIMITS)


def test_a_jpeg_with_what_cameras_add_is_read() -> None:
    """Thousands of fill bytes, and as many segments as a profile and a depth map need."""
    exif = segment(0xE1, b"Exif\0\0" + tags((EXIF_ORIENTATION, SHORT, 1, 3)))
    profile = [segment(0xE2, b"ICC_PROFILE\0%c\xff" % i + bytes(60_000)) for i in range(1, 256)]
    data = with_segments(exif, *profile, segment(0xE1, b"depth") * 300, b"\xff" * 5000)
    assert (decode(data, EXACT, LIMITS) == decode(FILES["jpeg"], EXACT, LIMITS)[::-1, ::-1]).all()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"\xff\xd8\xff\xd9", "no pixels"),
        (b"\xff\xd8\xff" + b"\xff" * 100_000, "no pixels"),
        (with_segments(b"\xff\xe1\0\1"), "declares 1 bytes"),
        (FILES["jpeg"][:20] + b"\xff\xe1\xff\xff", "declares 65535 bytes"),
        (b"\xff\xd8" + segment(0xDA, bytes(6)), "how large"),
        (b"\xff\xd8" + segment(0xC0, bytes(3)) + segment(0xDA, bytes(6)), "how large"),
        (FILES["jpeg"].replace(b"\xff\xc0\0\x11\x08\0\x30", b"\xff\xc0\0\x11\x08\0\0"), "64 x 0"),
        (FILES["jpeg"].replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), "12 bits"),
    ],
)
def test_a_damaged_header_of_a_jpeg(data: bytes, sentence: str) -> None:
    with pytest.raises(UndecodableImageError, match=sentence):
        decode(data, EXACT, LIMITS)
