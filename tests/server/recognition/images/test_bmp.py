"""The reader of BMP: rows and run lengths right, no damage answered."""

import pytest
from fuzz.fuzz_images import by_pillow
from fuzz.image_kinds import HEIGHT, WIDTH, bmp, encode, padded
from image_reading import PICTURE, read
from PIL import Image

from server.errors import UndecodableImageError

ROWS_24 = padded(PICTURE[..., ::-1])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut", bmp(ROWS_24[:-1], 24)),
        ("bytes behind", bmp(ROWS_24, 24) + b"more"),
        ("bytes behind that it knows", bmp(ROWS_24 + b"more", 24)),
        ("depth", bmp(ROWS_24, 23)),
        ("depth 64", bmp(ROWS_24 * 3, 64)),
        ("planes", bmp(ROWS_24, 24)[:26] + b"\2" + bmp(ROWS_24, 24)[27:]),
        ("no rows", bmp(ROWS_24, 24, height=0)),
        ("jpeg inside", bmp(ROWS_24, 24, compression=4)),
        ("png inside", bmp(ROWS_24, 24, compression=5)),
        ("header", bmp(ROWS_24, 24, size=48)),
        ("huffman", bmp(ROWS_24, 1, compression=3, size=64, palette=bytes(8))),
        ("no colour", bmp(bytes(HEIGHT * 64), 8, palette=b"")),
        ("colour beyond", bmp(b"\7" * HEIGHT * 64, 8, palette=bytes(7 * 4))),
        ("masks alike", bmp(ROWS_24 * 2, 32, compression=3, size=56, masks=(255, 255, 255))),
        ("mask of a bit", bmp(ROWS_24 * 2, 32, compression=3, size=56, masks=(1, 255, 65280))),
        ("no mask", bmp(ROWS_24 * 2, 16, compression=3, size=56, masks=(0, 0, 0))),
    ],
)  # fmt: skip
def test_damaged_bmp(name: str, data: bytes) -> None:
    with pytest.raises(UndecodableImageError):
        read(data)


# Each row a run of one colour.
RUNS = [bytes((WIDTH, row)) for row in range(HEIGHT)]
NEXT, LAST = b"\0\0", b"\0\1"
GREYS = b"".join(bytes((i, i, i, 0)) for i in range(256))


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("ends early", NEXT.join(RUNS[:-1]) + LAST),
        ("row empty", NEXT.join([*RUNS[:-1], b""]) + LAST),
        ("row short", NEXT.join([*RUNS[:-1], bytes((WIDTH - 1, 5))]) + LAST),
        ("row long", NEXT.join([*RUNS[:-1], bytes((WIDTH + 1, 5))]) + LAST),
        ("row more", NEXT.join([*RUNS, RUNS[0]]) + LAST),
        ("left out", b"\0\2\1\0" + NEXT.join([bytes((WIDTH - 1, 5)), *RUNS[1:]]) + LAST),
        ("no end", NEXT.join(RUNS)),
        ("no end of a row", b"".join(RUNS) + LAST),
        ("zeros", NEXT.join(RUNS[:20]) + bytes(200) + NEXT.join(RUNS[25:]) + LAST),
        ("literal cut", NEXT.join(RUNS[:-1]) + NEXT + bytes((0, WIDTH)) + bytes(9)),
        ("bytes behind", NEXT.join(RUNS) + LAST + b"more"),
    ],
)
def test_damaged_run_lengths(name: str, codes: bytes) -> None:
    with pytest.raises(UndecodableImageError):
        read(bmp(codes, 8, compression=1, palette=GREYS))


@pytest.mark.parametrize("end", [LAST, NEXT + LAST])
def test_run_lengths_end_in_two_ways(end: bytes) -> None:
    pixels = read(bmp(NEXT.join(RUNS) + end, 8, compression=1, palette=GREYS))
    assert pixels[:, 0, 0].tolist() == list(range(HEIGHT))[::-1]


def test_bmp_with_a_profile_behind_its_pixels() -> None:
    assert (read(bmp(ROWS_24 + b"profile", 24, size=124)) == PICTURE).all()
    assert (read(bmp(ROWS_24, 24) + bytes(2)) == PICTURE).all()


@pytest.mark.parametrize("width", range(1, 12))
def test_bmp_rows_of_any_width(width: int) -> None:
    image = Image.fromarray(PICTURE[:, :width])
    for mode in ("RGB", "L", "1", "P"):
        data = encode(image.convert(mode), "BMP")
        assert (read(data) == by_pillow(data, "BMP")).all()
