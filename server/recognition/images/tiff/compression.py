"""Decompression of one strip or tile of a TIFF.

Each function knows how much there may be and where the end must be, and raises
UndecodableImageError for anything else: libtiff fills up what is missing, and goes on.
"""

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import UndecodableImageError
from server.recognition.images import jpeg

# Bytes of a deflate stream at a time, so that it is never in memory twice.
INFLATE_INPUT_BYTES, INFLATE_OUTPUT_BYTES = 1 << 16, 1 << 18
# LZW (TIFF 6.0, section 13): codes of 9 to 12 bits, most significant first.
CLEAR, END, FIRST_FREE = 256, 257, 258
MAX_LZW_CODES = (1 << 12) - FIRST_FREE + 1
# The width of the code i behind a Clear. It grows one code before the table needs it.
LZW_WIDTHS: NDArray[np.int64] = 9 + np.searchsorted(
    [511, 1023, 2047], 257 + np.arange(MAX_LZW_CODES), side="right"
)
LZW_ENDS: NDArray[np.int64] = np.cumsum(LZW_WIDTHS)
LZW_STARTS: NDArray[np.int64] = LZW_ENDS - LZW_WIDTHS
# The codes before which the width grows: libtiff before 4.2 did not let it grow for an End there.
LZW_STEPS = np.flatnonzero(np.diff(LZW_WIDTHS)) + 1
# NumPy copies this many codes or more, of this many bytes or fewer on average, all at once. Others
# are copied code by code.
VECTOR_CODES_MIN, VECTOR_CODE_BYTES_MAX = 100, 16
JPEG_BEGIN, JPEG_END = b"\xff\xd8", b"\xff\xd9"
# Adobe's segment up to its last byte, which says how colours are stored.
ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"
LITERALS = [bytes([value]) for value in range(256)] + [b"", b""]


def _damaged(name: str, fault: str) -> UndecodableImageError:
    return UndecodableImageError(f"the TIFF is cut off or damaged: its {name} data {fault}")


def inflate(data: bytes, most: int) -> bytearray:
    """Inflates a zlib stream to at most `most` bytes, and checks its checksum."""
    stream = zlib.decompressobj()
    raw, start, rest = bytearray(), 0, b""
    try:
        while not stream.eof and (rest or start < len(data)):
            if not rest:
                rest, start = data[start : start + INFLATE_INPUT_BYTES], start + INFLATE_INPUT_BYTES
            raw += stream.decompress(rest, INFLATE_OUTPUT_BYTES)
            rest = stream.unconsumed_tail
            if len(raw) > most:
                raise _damaged("deflate", "holds more than its part of the picture")
    except zlib.error:
        raise _damaged("deflate", "has an error or a wrong checksum") from None
    if not stream.eof:
        raise _damaged("deflate", "has no end")
    return raw


def unpack_bits(data: bytes, row: int, most: int) -> bytearray:
    """Unpacks PackBits (TIFF 6.0, section 9) to at most `most` bytes. No run goes over the end of a
    row of `row` bytes, as the specification asks, and no encoder writes two literal runs of one
    byte in place of one of two: zeros where data was look so."""
    raw = bytearray()
    at, room, single = 0, row, False
    while at < len(data) and len(raw) < most:
        code = data[at]
        if code < 128:
            piece = data[at + 1 : at + 2 + code]
            number = code + 1
            at += 1 + number
        elif code > 128:
            number = 257 - code
            piece = data[at + 1 : at + 2] * number
            at += 2
        else:
            at += 1
            continue
        if len(piece) < number:
            raise _damaged("PackBits", "ends within a run")
        if number > room:
            raise _damaged("PackBits", "has a run over the end of a row")
        if code == 0 and single and room < row:
            raise _damaged("PackBits", "has two runs in place of one")
        single = code == 0
        room = room - number or row
        raw += piece
    # Some programs fill up to an even number of bytes.
    if len(data) - at > 1:
        raise _damaged("PackBits", "holds more than its part of the picture")
    return raw


def decode_lzw(data: bytes, most: int) -> bytearray:
    """Decodes LZW to at most `most` bytes, from its Clear code to its End code."""
    padded = data + b"\0\0\0"
    if int.from_bytes(padded[:2], "big") >> 7 != CLEAR:
        raise _damaged("LZW", "does not begin with a Clear code")
    raw, at, bits = bytearray(), 9, 8 * len(data)
    while True:
        codes, ended = _read_codes(padded, at, bits)
        _expand(codes, raw)
        if len(raw) > most:
            raise _damaged("LZW", "holds more than its part of the picture")
        if ended:
            return raw
        at += int(LZW_ENDS[len(codes)])


def _read_codes(padded: bytes, at: int, bits: int) -> tuple[NDArray[np.int64], bool]:
    """Returns the codes from bit `at`, behind a Clear, up to the next Clear or End, and whether it
    is an End. bits: how many there are, without the three bytes of padding."""
    number = int(np.searchsorted(LZW_ENDS, bits - at, side="right"))
    first, skip = divmod(at, 8)
    window = np.frombuffer(padded, np.uint8, offset=first)
    window = window[: (skip + int(LZW_STARTS[min(number, len(LZW_STARTS) - 1)])) // 8 + 3]
    starts = LZW_STARTS[:number] + skip
    codes = _take_codes(window, starts, LZW_WIDTHS[:number])
    stops = np.flatnonzero((codes == CLEAR) | (codes == END))
    stop = int(stops[0]) if len(stops) else number
    for step in LZW_STEPS[: np.searchsorted(LZW_STEPS, stop, side="right")].tolist():
        narrow = int(LZW_WIDTHS[step]) - 1
        end = at + int(LZW_STARTS[step]) + narrow
        if bits - 8 < end <= bits:
            start = LZW_STARTS[step : step + 1] + skip
            if _take_codes(window, start, np.array([narrow]))[0] == END:
                return _check_codes(codes[:step]), True
    if stop == number:
        raise _damaged("LZW", "has no End code")
    return _check_codes(codes[:stop]), bool(codes[stop] == END)


def _take_codes(
    window: NDArray[np.uint8], starts: NDArray[np.int64], widths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Returns the numbers of `widths` bits that begin at the bits `starts` of `window`."""
    byte = starts >> 3
    wide = window[byte].astype(np.int64) << 16
    wide |= window[byte + 1].astype(np.int64) << 8
    wide |= window[byte + 2]
    codes: NDArray[np.int64] = (wide >> (24 - (starts & 7) - widths)) & ((1 << widths) - 1)
    return codes


def _check_codes(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Raises UndecodableImageError for codes that the table does not have yet."""
    if len(codes) and (codes[0] >= CLEAR or (codes > FIRST_FREE - 1 + np.arange(len(codes))).any()):
        raise _damaged("LZW", "has a code that does not stand for anything yet")
    return codes


def _expand(codes: NDArray[np.int64], raw: bytearray) -> None:
    """Appends what `codes`, checked, stand for.

    The code 258 + j stands for what the code j behind the Clear stands for and one byte more, so
    that it repeats the bytes from where these begin.
    """
    if len(codes) < VECTOR_CODES_MIN:
        _expand_singly(codes, raw)
        return
    literal = codes < CLEAR
    origins = np.where(literal, np.arange(len(codes)), codes - FIRST_FREE)
    lengths = _distances(origins)[0] + 1
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    if total > VECTOR_CODE_BYTES_MAX * len(codes):
        _expand_singly(codes, raw)
        return
    starts = ends - lengths
    sources = np.arange(total) + np.repeat(starts[origins] - starts, lengths)
    values = np.zeros(total, np.uint8)
    values[starts[literal]] = codes[literal]
    raw += values[_distances(sources)[1]].tobytes()


def _distances(origins: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Returns how many steps each index is from one that is its own origin, and which that is."""
    steps = (origins != np.arange(len(origins))).astype(np.intp)
    while True:
        further = origins[origins]
        if (further == origins).all():
            return steps, origins
        steps = steps + steps[origins]
        origins = further


def _expand_singly(codes: NDArray[np.int64], raw: bytearray) -> None:
    """Does what `_expand` does, faster for few codes, or if they stand for many bytes each."""
    if not len(codes):
        return
    table = LITERALS.copy()
    first, *rest = codes.tolist()
    last = table[first]
    raw += last
    for code in rest:
        # The newest entry ends in the first byte of the code behind it, even if that is itself.
        table.append(last + (table[code] if code < len(table) else last)[:1])
        last = table[code]
        raw += last


def decode_jpeg(
    part: bytes, tables: bytes, shape: tuple[int, int, int], full_height: int, is_ycbcr: bool
) -> NDArray[np.uint8]:
    """Decodes a strip or tile of JPEG data (Adobe's TIFF Technical Note 2) to its samples, uint8
    [rows, columns * samples of a pixel].

    tables: the tag JPEGTables, may be empty; shape: columns, rows and samples of a pixel (1 or 3)
    that the part must have; full_height: rows that it may have instead, and the first are taken;
    is_ycbcr: whether colours are stored as YCbCr, else as RGB.

    Raises UndecodableImageError if the data is damaged or of another size.
    """
    width, height, channels = shape
    if not part.startswith(JPEG_BEGIN) or (
        tables and not (tables[:2] == JPEG_BEGIN and tables[-2:] == JPEG_END)
    ):
        raise UndecodableImageError("the TIFF is damaged: its JPEG data does not begin as such")
    # Says what libjpeg would else guess from the names of the components.
    adobe = ADOBE + bytes([is_ycbcr])
    stream = JPEG_BEGIN + adobe + tables[2:-2] + part[2:]
    header = jpeg.read_header(stream)
    mode = "RGB" if channels == 3 else "L"
    if header.mode != mode or header.width != width or header.height not in (height, full_height):
        raise UndecodableImageError(
            f"the TIFF is damaged: its JPEG data has {header.width} x {header.height} pixels in"
            f" place of {width} x {height}"
        )
    pixels: NDArray[Any] = jpeg.decode(stream, header)
    return np.ascontiguousarray(pixels[:height, :, :channels]).reshape(height, width * channels)
