"""The reader of JPEG: every coding right, no damage answered."""

import io
import struct
from typing import Any

import cv2
import numpy as np
import pytest
from fuzz.image_kinds import KINDS, encode
from image_reading import LIMITS, PICTURE, read, zeros
from PIL import Image

from server.errors import UndecodableImageError
from server.recognition import frame


@pytest.mark.parametrize("kind", ["progressive", "progressive-444", "grey-progressive"])
def test_progressive_jpeg_without_any_scan(kind: str) -> None:
    """A file that lost scans but has its end mark: each scan once, and all from each one on."""
    data = KINDS["JPEG"][kind]
    starts = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    ends = [*starts[1:], len(data) - 2]
    assert len(starts) > 4
    for start, end in zip(starts, ends, strict=True):
        for damaged in (data[:start] + data[end:], data[:start] + b"\xff\xd9"):
            with pytest.raises(UndecodableImageError):
                read(damaged)
    # The same scan twice.
    with pytest.raises(UndecodableImageError):
        read(data[: ends[-1]] + data[starts[-1] : ends[-1]] + data[ends[-1] :])


def in_scans(parts: list[bytes]) -> bytes:
    """A sequential JPEG of three components, each in a scan of its own, of grey JPEGs."""
    first = parts[0]
    frame_at, scan_at = first.index(b"\xff\xc0"), first.index(b"\xff\xda")
    header = first[frame_at + 4 : frame_at + 9]
    components = b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3))
    frame_header = b"\xff\xc0" + struct.pack(">H", 17) + header + b"\3" + components
    tables = first[:frame_at] + first[frame_at + 13 : scan_at]
    scans = b"".join(
        b"\xff\xda\0\x08\1%c\0\0\x3f\0" % number + part[part.index(b"\xff\xda") + 10 : -2]
        for number, part in enumerate(parts, 1)
    )
    return tables + frame_header + scans + b"\xff\xd9"


def test_sequential_jpeg_in_scans() -> None:
    channels = cv2.cvtColor(PICTURE, cv2.COLOR_RGB2YCrCb)
    parts = [encode(Image.fromarray(channels[..., i]), "JPEG", quality=95) for i in (0, 2, 1)]
    data = in_scans(parts)
    assert np.abs(read(data).astype(int) - PICTURE).mean() < 4
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    without = data[: scans[1]] + data[scans[2] :]
    twice = data[:-2] + data[scans[1] : scans[2]] + data[-2:]
    for damaged in (without, twice, data[: scans[2]] + b"\xff\xd9"):
        with pytest.raises(UndecodableImageError):
            read(damaged)


@pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF])
def test_jpeg_of_a_coding_that_no_camera_writes(marker: int) -> None:
    data = KINDS["JPEG"]["plain"].replace(b"\xff\xc0", bytes((0xFF, marker)))
    with pytest.raises(UndecodableImageError, match="baseline and progressive"):
        read(data)


def test_jpeg_of_two_frames() -> None:
    data = KINDS["JPEG"]["plain"]
    at = data.index(b"\xff\xc0")
    with pytest.raises(UndecodableImageError, match="twice"):
        read(data[:at] + data[at : at + 19] + data[at:])


def test_jpeg_work_is_bounded_by_scans_times_pixels() -> None:
    data = encode(Image.new("L", (7000, 7000)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(UndecodableImageError, match="goes over its pixels 22 times"):
        frame.read_header(data[:-2] + last * 40 + data[-2:], LIMITS)


@pytest.mark.parametrize("kind", ["plain", "progressive", "restarts", "cmyk"])
@pytest.mark.parametrize("number", [1, 2, 9, 50, 5000])
def test_zero_padding_of_a_jpeg(kind: str, number: int, capfd: pytest.CaptureFixture[str]) -> None:
    data = KINDS["JPEG"][kind]
    tables, scan = data.index(b"\xff\xdb"), data.index(b"\xff\xda")
    padding = bytes(number)
    padded_files = (
        data[:tables] + padding + data[tables:],
        data[:scan] + padding + data[scan:],
        data[:-2] + padding + data[-2:],
        data[:tables] + padding + data[tables:-2] + padding + data[-2:],
    )
    for file in padded_files:
        assert (read(file) == read(data)).all()
    # Zeros in place of what was there are no padding.
    with pytest.raises(UndecodableImageError):
        read(data[: len(data) // 2] + padding + b"\xff\xd9")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"subsampling": 0},
        {"subsampling": 1, "quality": 95},
        {"restart_marker_rows": 1},
        {"quality": 20},
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_zeros_inside_a_baseline_jpeg(how: dict[str, Any], mode: str, sample: bytes) -> None:
    image = Image.open(io.BytesIO(sample)).convert(mode)
    data = encode(image, "JPEG", **how)
    scan = data.index(b"\xff\xda") + 14
    for start in range(scan, len(data) - 300, (len(data) - scan) // 40):
        with pytest.raises(UndecodableImageError):
            read(zeros(data, start, 200))


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("quality", [1, 30, 75, 100])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_plain_pictures_are_not_zeros(optimize: bool, quality: int, mode: str) -> None:
    """Whose codes may be zeros for long: of one colour, in halves, in stripes."""
    plain = np.zeros((400, 600, 3), np.uint8)
    halves = plain.copy()
    halves[:, 300:] = 255
    stripes = plain.copy()
    stripes[::2] = 128
    for pixels in (plain, plain + 77, plain + 255, halves, stripes, halves.swapaxes(0, 1)):
        image = Image.fromarray(np.ascontiguousarray(pixels)).convert(mode)
        exif = Image.Exif()
        exif[0x927C] = bytes(500)
        data = encode(image, "JPEG", quality=quality, optimize=optimize, exif=exif)
        assert read(data).shape[:2] == pixels.shape[:2]
