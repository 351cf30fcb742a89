"""BMP, read by numpy: every kind that holds plain or run-length encoded pixels.

Programs read some kinds differently (16-bit colours, masks, palettes that are too short, rows that
a run-length code leaves out). Those are read as the format's description says, or refused.
"""

import struct
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from server.errors import UndecodableImageError
from server.recognition.images.header import Header
from server.recognition.images.pixels import Pixels
from server.values.wording import counted

SIGNATURE = b"BM"
FILE_HEADER = struct.Struct("<2sIHHI")
CORE_HEADER = struct.Struct("<IHHHH")
INFO_HEADER = struct.Struct("<IiiHHIIiiII")
# Sizes of the second header: OS/2 1, OS/2 2, Windows 3, with masks, with an alpha mask, 4, 5.
CORE, OS2, INFO, PROFILED = 12, 64, 40, 124
HEADERS = (CORE, OS2, INFO, 52, 56, 108, PROFILED)
RGB, RLE8, RLE4, BITFIELDS, ALPHA_BITFIELDS = 0, 1, 2, 3, 6
DEPTHS = {RGB: (1, 2, 4, 8, 16, 24, 32), RLE8: (8,), RLE4: (4,)}
DEPTHS |= {BITFIELDS: (16, 32), ALPHA_BITFIELDS: (16, 32)}
MASKS_AT, ALPHA_AT = FILE_HEADER.size + INFO, FILE_HEADER.size + INFO + 12
# Red, green and blue in 16 bits, as programs write them; in 32 bits each takes a byte.
MASKS_555, MASKS_565 = (0x7C00, 0x03E0, 0x001F), (0xF800, 0x07E0, 0x001F)
BYTE_MASKS = (0x000000FF, 0x0000FF00, 0x00FF0000, 0xFF000000)
# Codes of a run-length encoding, each gone over in Python: as many as a real frame of some
# megapixels has.
MAX_CODES = 1 << 21
# Values after a zero in them; 0 ends the row, LAST the picture, DELTA leaves pixels out.
LAST, DELTA = 1, 2


class _Layout(NamedTuple):
    """Content of the headers. height: in rows; up: the lowest row is stored first; entry: bytes of
    a colour of the palette; palette, start: offsets of the palette and of the pixels."""

    width: int
    height: int
    up: bool
    bits: int
    compression: int
    colors: int
    entry: int
    palette: int
    start: int
    masks: tuple[int, ...]

    @property
    def stride(self) -> int:
        """Bytes of a row: a multiple of four."""
        return (self.width * self.bits + 31) // 32 * 4


def read_header(data: bytes) -> Header:
    """Returns the header of a BMP. Raises UndecodableImageError if it is damaged, cut off, or of a
    kind that is not read."""
    layout = _read_layout(data)
    return Header("BMP", "P" if layout.bits <= 8 else "RGB", layout.width, layout.height)


def decode(data: bytes, header: Header) -> Pixels:
    """Returns a BMP's pixels as RGB, uint8 [height, width, 3]; alpha is dropped.

    Raises UndecodableImageError if pixels are missing or have a colour that there is not, or if
    more bytes follow them than the file says.
    """
    layout = _read_layout(data)
    if layout.compression in (RLE8, RLE4):
        return _colored(data, layout, _run_lengths(data, layout))
    _check_size(data, layout)
    if layout.bits <= 8:
        return _colored(data, layout, _indices(data, layout))
    if layout.masks:
        pixels = _masked(data, layout)
    else:
        rows = _rows(data, layout, layout.bits // 8)
        code = cv2.COLOR_BGR2RGB if layout.bits == 24 else cv2.COLOR_BGRA2RGB
        pixels = np.asarray(cv2.cvtColor(rows, code), np.uint8)
    return np.asarray(cv2.flip(pixels, 0), np.uint8) if layout.up else pixels


def _read_layout(data: bytes) -> _Layout:
    if len(data) < FILE_HEADER.size + CORE_HEADER.size:
        raise UndecodableImageError("the BMP is cut off: its header is")
    start = FILE_HEADER.unpack_from(data)[4]
    size = int.from_bytes(data[14:18], "little")
    if size not in HEADERS:
        raise UndecodableImageError(
            f"the BMP is damaged, or of a kind that is not read: its header has {size} bytes"
        )
    end = FILE_HEADER.size + size
    if end > len(data):
        raise UndecodableImageError("the BMP is cut off: its header is")
    if size == CORE:
        _, width, height, planes, bits = CORE_HEADER.unpack_from(data, FILE_HEADER.size)
        compression = colors = 0
    else:
        _, width, height, planes, bits, compression, _, _, _, colors, _ = INFO_HEADER.unpack_from(
            data, FILE_HEADER.size
        )
    # OS/2 calls other things 3 and 4, and knows no rows from above.
    known = bits in DEPTHS.get(compression, ()) and not (size == OS2 and compression > RLE4)
    up = height > 0
    if planes != 1 or not known or width <= 0 or height == 0:
        raise UndecodableImageError(
            f"the BMP is damaged, or of a kind that is not read: {width} x {height} pixels of"
            f" {counted(bits, 'bit')} in {counted(planes, 'plane')}, compression {compression}"
        )
    if not up and compression in (RLE8, RLE4):
        raise UndecodableImageError("the BMP is damaged: run-length codes begin with the last row")
    masks: tuple[int, ...] = ()
    if compression in (BITFIELDS, ALPHA_BITFIELDS):
        if size == INFO:
            end += 12 if compression == BITFIELDS else 16
        masks = _read_masks(data, bits, end)
    elif bits == 16:
        masks = MASKS_555
    entry = 3 if size == CORE else 4
    if bits > 8:
        colors = 0
    elif colors == 0:
        # OS/2 1 does not say how many there are.
        colors = min(1 << bits, (start - end) // entry) if size == CORE else 1 << bits
    if colors > 256 or not end + colors * entry <= start <= len(data):
        raise UndecodableImageError(
            f"the BMP is damaged: {colors} colours and then the pixels, from byte {start}, do not"
            f" fit behind its header of {end} bytes"
        )
    return _Layout(width, abs(height), up, bits, compression, colors, entry, end, start, masks)


def _read_masks(data: bytes, bits: int, end: int) -> tuple[int, ...]:
    """Returns the masks of red, green and blue; end: offset of the headers' end.

    Raises UndecodableImageError for masks other than those that programs write.
    """
    if end > len(data):
        raise UndecodableImageError("the BMP is cut off: its header is")
    masks = struct.unpack_from("<III", data, MASKS_AT)
    alpha = int.from_bytes(data[MASKS_AT + 12 : MASKS_AT + 16], "little") if end > ALPHA_AT else 0
    if bits == 16:
        known = masks in (MASKS_555, MASKS_565) and alpha in (0, 0xFFFF & ~sum(masks))
    else:
        used = [mask for mask in (*masks, alpha) if mask]
        known = all(masks) and set(used) <= set(BYTE_MASKS) and len(set(used)) == len(used)
    if not known:
        raise UndecodableImageError(
            "the BMP is damaged, or of a kind that is not read: the masks of its colours are "
            + ", ".join(f"{mask:08x}" for mask in (*masks, alpha))
        )
    return masks


def _check_size(data: bytes, layout: _Layout) -> None:
    """Raises UndecodableImageError if rows are missing, or if bytes follow them that are neither
    zeros nor a colour profile."""
    end = layout.start + layout.stride * layout.height
    if end > len(data):
        raise UndecodableImageError(
            f"the BMP is cut off: its pixels take {end - layout.start} bytes and"
            f" {len(data) - layout.start} are left"
        )
    _check_rest(data, end)


def _check_rest(data: bytes, end: int) -> None:
    # Only the newest header knows of anything behind the pixels.
    profiled = int.from_bytes(data[14:18], "little") == PROFILED
    declared = FILE_HEADER.unpack_from(data)[1]
    if not (profiled and declared == len(data)) and data[end:].strip(b"\0"):
        raise UndecodableImageError(
            f"the BMP is damaged: {len(data) - end} bytes follow its pixels, and its header knows"
            " of none"
        )


def _rows(data: bytes, layout: _Layout, samples: int) -> NDArray[np.uint8]:
    """Returns the file's rows without what fills them up, [height, width, samples], not copied."""
    return np.ndarray(
        (layout.height, layout.width, samples),
        np.uint8,
        data,
        layout.start,
        (layout.stride, samples, 1),
    )


def _indices(data: bytes, layout: _Layout) -> NDArray[np.uint8]:
    """Returns the number in the palette of each pixel, [height, width]."""
    if layout.bits == 8:
        return np.ascontiguousarray(_rows(data, layout, 1)[..., 0])
    each = 8 // layout.bits
    shape, strides = (layout.height, -(-layout.width // each)), (layout.stride, 1)
    packed = np.ndarray(shape, np.uint8, data, layout.start, strides)
    indices = np.empty((layout.height, shape[1] * each), np.uint8)
    for place in range(each):
        shift = 8 - layout.bits * (place + 1)
        np.bitwise_and(packed >> shift, (1 << layout.bits) - 1, out=indices[:, place::each])
    return np.ascontiguousarray(indices[:, : layout.width])


def _colored(data: bytes, layout: _Layout, indices: NDArray[np.uint8]) -> Pixels:
    """Returns the colours of `indices`, [height, width, 3], from the uppermost row on."""
    if indices.max() >= layout.colors:
        raise UndecodableImageError(
            f"the BMP is damaged: a pixel has the colour {indices.max()}, and there are"
            f" {layout.colors}"
        )
    table = np.zeros((1, 256, 3), np.uint8)
    entries = np.frombuffer(data, np.uint8, layout.colors * layout.entry, layout.palette)
    table[0, : layout.colors] = entries.reshape(-1, layout.entry)[:, 2::-1]
    grey = np.ascontiguousarray(table[..., 0])
    if layout.up:
        indices = np.asarray(cv2.flip(indices, 0), np.uint8)
    if (table == grey[..., None]).all():
        return np.asarray(cv2.cvtColor(cv2.LUT(indices, grey), cv2.COLOR_GRAY2RGB), np.uint8)
    pixels = cv2.cvtColor(indices, cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.LUT(pixels, table, pixels), np.uint8)


def _masked(data: bytes, layout: _Layout) -> Pixels:
    """Returns the colours of pixels of 16 or 32 bits by their masks, [height, width, 3]; each
    scaled to 255."""
    pixels: Pixels = np.empty((layout.height, layout.width, 3), np.uint8)
    if layout.bits == 32:
        stored = _rows(data, layout, 4)
        order = [(BYTE_MASKS.index(mask), channel) for channel, mask in enumerate(layout.masks)]
        cv2.mixChannels([stored], [pixels], [each for pair in order for each in pair])
        return pixels
    shape, strides = (layout.height, layout.width), (layout.stride, 2)
    words: NDArray[np.uint16] = np.ndarray(shape, "<u2", data, layout.start, strides)
    tables = []
    for mask in layout.masks:
        shift, most = (mask & -mask).bit_length() - 1, mask.bit_count()
        table = np.rint(np.arange(1 << most) * (255 / ((1 << most) - 1))).astype(np.uint8)
        tables.append((mask, shift, table))
    for row in range(layout.height):
        for channel, (mask, shift, table) in enumerate(tables):
            pixels[row, :, channel] = table[(words[row] & mask) >> shift]
    return pixels


def _run_lengths(data: bytes, layout: _Layout) -> NDArray[np.uint8]:
    """Returns the number in the palette of each pixel, [height, width], from run-length codes of 4
    or 8 bits (Windows GDI, «Bitmap Compression»).

    Raises UndecodableImageError unless the codes give every pixel once, and end with their mark.
    """
    width, at, codes = layout.width, layout.start, 0
    half = layout.bits == 4
    indices = bytearray()
    for row in range(1, layout.height + 1):
        while True:
            codes += 1
            if at + 2 > len(data) or codes > MAX_CODES:
                raise UndecodableImageError("the BMP is cut off or damaged: its codes do not end")
            count, value = data[at], data[at + 1]
            at += 2
            if count:
                indices += _run(value, count, half=half)
            elif value > DELTA:
                size = (value + 1) // 2 if half else value
                indices += _literal(data[at : at + size], value, half=half)
                at += size + size % 2
            else:
                break
            if len(indices) > row * width:
                break
        if (
            len(indices) != row * width
            or value == DELTA
            or (value == LAST) > (row == layout.height)
        ):
            raise UndecodableImageError("the BMP is damaged: a row has too many pixels or too few")
    if value != LAST and data[at : at + 2] == bytes((0, LAST)):
        at, value = at + 2, LAST
    if value != LAST:
        raise UndecodableImageError("the BMP is cut off or damaged: its codes do not end")
    _check_rest(data, at)
    return np.frombuffer(indices, np.uint8).reshape(layout.height, width)


def _run(value: int, count: int, *, half: bool) -> bytes:
    """Returns `count` times the index `value`, or, in codes of four bits, its two halves in
    turns."""
    return (bytes((value >> 4, value & 15)) * count)[:count] if half else bytes((value,)) * count


def _literal(stored: bytes, count: int, *, half: bool) -> bytes:
    """Returns `count` indices that are stored one after the other."""
    if not half:
        return stored
    return b"".join(bytes((value >> 4, value & 15)) for value in stored)[:count]
