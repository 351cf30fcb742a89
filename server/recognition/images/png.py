"""PNG (PNG, third edition): read from a file that is rebuilt of the chunks that hold the picture.

Every chunk is checked by its CRC and the compressed rows are inflated to their end, before a
native reader sees them: libpng's readers differ in what they report of damaged rows. Chunks beside
the picture (animation, texts, profiles, transparency) never reach it.
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np

from server.errors import UndecodableImageError
from server.recognition.images.header import Header, read_orientation
from server.recognition.images.pixels import Pixels, decode_by_opencv

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHUNK = struct.Struct(">I4s")
IHDR = struct.Struct(">IIBBBBB")
# A row of pixels may have a chunk of its own; texts and profiles come in dozens.
MAX_CHUNKS, MAX_CHUNKS_BEFORE_PIXELS = 100_000, 1_000
# No picture needs them; readers inflate each.
MAX_TEXTS_AFTER_PIXELS = 16
# Bits of a sample that each colour type may have (section 11.2.1), and its samples a pixel.
BIT_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
PALETTE = 3
# Adam7 (section 8.2): first column and row of each pass, and the steps between its pixels.
PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
LAST_FILTER = 4
# A frame's number, size and place (section 11.3.4).
ANIMATION, FRAME_CONTROL = (b"fcTL", b"fdAT"), struct.Struct(">IIIII6x")
INFLATE_INPUT_BYTES, INFLATE_OUTPUT_BYTES = 1 << 16, 1 << 18
# zlib's header for a stream that is not compressed, and the most bytes of one block in it.
STORED, STORED_BLOCK = b"\x78\x01", 0xFFFF


def read_header(data: bytes) -> Header:
    """Returns the header of a PNG, after a walk over its chunks. Of an animation, that of the
    picture that readers without animation show.

    Raises UndecodableImageError if it is damaged or cut off, or has more chunks than a picture.
    """
    ihdr, orientation = b"", 1
    for kind, start, length in _chunks(data):
        if not ihdr:
            if kind != b"IHDR" or length != IHDR.size:
                raise UndecodableImageError("the PNG is damaged: it does not say how large it is")
            ihdr = data[start : start + length]
        elif kind == b"eXIf":
            orientation = read_orientation(data[start : start + length])
    width, height, bits, color, _ = _read_ihdr(ihdr)
    return Header("PNG", MODES[color], width, height, orientation, bits)


def _read_ihdr(data: bytes) -> tuple[int, int, int, int, int]:
    """Returns width, height, bits a sample, colour type and interlace method."""
    width, height, bits, color, compression, filters, interlace = IHDR.unpack(data)
    if (
        not (width and height)
        or bits not in BIT_DEPTHS.get(color, ())
        or (compression or filters or interlace > 1)
    ):
        raise UndecodableImageError(
            f"the PNG's header is damaged: {width} x {height} pixels of {bits} bits, colour type"
            f" {color}, methods {compression}, {filters} and {interlace}"
        )
    return width, height, bits, color, interlace


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields (type, offset of its data, length) of each chunk up to IEND.

    Raises UndecodableImageError for a chunk longer than what is left of the file, or more chunks
    than any picture needs (section 5: Datastream structure).
    """
    at, texts, pixels = len(SIGNATURE), 0, False
    for number in range(MAX_CHUNKS):
        if at + 12 > len(data):
            raise UndecodableImageError("the PNG is cut off: its last chunk is missing")
        length, kind = CHUNK.unpack_from(data, at)
        if at + 12 + length > len(data):
            raise UndecodableImageError(
                f"the PNG is cut off or damaged: a chunk declares {length} bytes and"
                f" {len(data) - at - 12} are left"
            )
        yield kind, at + 8, length
        if kind == b"IEND":
            return
        if kind == b"IDAT":
            pixels = True
        elif pixels:
            texts += kind in (b"zTXt", b"iTXt")
        if (number >= MAX_CHUNKS_BEFORE_PIXELS and not pixels) or texts > MAX_TEXTS_AFTER_PIXELS:
            break
        at += 12 + length
    raise UndecodableImageError("the PNG has more chunks than a picture needs")


def decode(data: bytes, header: Header, significant_bits: int = 0) -> Pixels:
    """Returns a PNG's pixels as RGB, uint8 [height, width, 3]; alpha is dropped, 16-bit samples are
    reduced to the upper 8 of their `significant_bits` (0: of all 16).

    Raises UndecodableImageError for a chunk whose CRC is wrong or that is in a wrong place, and for
    rows that are damaged, or fewer or more than the header declares.
    """
    ihdr, palette, packed = _picture(data)
    plain = _rebuilt(ihdr, palette, packed)
    return decode_by_opencv(plain, "PNG", bits=header.bits, significant_bits=significant_bits)


def _picture(data: bytes) -> tuple[bytes, bytes, list[memoryview]]:
    """Returns IHDR's data, PLTE's if the pixels need it, and the data of each IDAT."""
    view = memoryview(data)
    ihdr, palette, packed, ended, frames = b"", b"", [], False, 0
    for kind, start, length in _chunks(data):
        content = view[start : start + length]
        crc = int.from_bytes(data[start + length : start + length + 4], "big")
        if zlib.crc32(content, zlib.crc32(kind)) != crc:
            raise UndecodableImageError("the PNG is damaged: the checksum of a chunk is wrong")
        if kind == b"IDAT":
            if ended:
                raise UndecodableImageError("the PNG is damaged: its pixels lie in two places")
            packed.append(content)
            continue
        ended = bool(packed)
        if kind in ANIMATION:
            _check_frame(ihdr, kind, content, frames, shared=not packed)
            frames += 1
        elif kind == b"IHDR" and not ihdr:
            ihdr = bytes(content)
        elif kind == b"PLTE" and not (palette or packed):
            palette = bytes(content)
        # The fifth bit of the first letter is set in names of chunks that a reader may pass over.
        elif kind != b"IEND" and not (kind.isalpha() and kind[0] & 0x20):
            raise UndecodableImageError("the PNG is damaged: a chunk stands where it can't")
    color = ihdr[9]
    if len(palette) % 3 or len(palette) > 768 or (palette and color in (0, 4)):
        raise UndecodableImageError("the PNG is damaged: its palette is")
    if color != PALETTE:
        return ihdr, b"", packed
    if not palette:
        raise UndecodableImageError("the PNG is damaged: it has no palette")
    return ihdr, palette[: 3 << ihdr[8]], packed


def _check_frame(
    ihdr: bytes, kind: bytes, content: memoryview, number: int, *, shared: bool
) -> None:
    """Raises UndecodableImageError for a chunk of an animation that is not the one of this number,
    or whose frame lies outside the picture. Nothing more of an animation is read.

    shared: whether the frame is the picture itself, which it must then fill.
    """
    fits = len(content) >= 4 and int.from_bytes(content[:4], "big") == number
    if fits and kind == b"fcTL":
        fits = len(content) == FRAME_CONTROL.size
        if fits:
            _, width, height, left, top = FRAME_CONTROL.unpack(content)
            right, bottom = struct.unpack_from(">II", ihdr)
            inside = 0 < width <= right - left and 0 < height <= bottom - top
            fits = inside and (not shared or (width, height) == (right, bottom))
    if not fits:
        raise UndecodableImageError("the PNG is damaged: its animation is")


def _rebuilt(ihdr: bytes, palette: bytes, packed: list[memoryview]) -> bytearray:
    """Returns a PNG of nothing but the picture, its rows checked by `_rows`. They are stored
    without compression, so that they are inflated once; rows of 16 bits, which would take too much
    memory, as they came."""
    plain = bytearray(SIGNATURE)
    _append(plain, b"IHDR", ihdr)
    if palette:
        _append(plain, b"PLTE", palette)
    if ihdr[8] == 16:
        for _ in _rows(ihdr, packed):
            pass
        for content in packed:
            _append(plain, b"IDAT", content)
    else:
        sum_, start = 1, STORED
        for block in _rows(ihdr, packed):
            sum_ = zlib.adler32(block, sum_)
            _append(plain, b"IDAT", start, *_stored(block))
            start = b""
        # An empty block is the last one.
        _append(plain, b"IDAT", b"\x01\0\0\xff\xff", sum_.to_bytes(4, "big"))
    _append(plain, b"IEND")
    return plain


def _append(plain: bytearray, kind: bytes, *parts: bytes | memoryview) -> None:
    plain += CHUNK.pack(sum(map(len, parts)), kind)
    crc = zlib.crc32(kind)
    for part in parts:
        plain += part
        crc = zlib.crc32(part, crc)
    plain += crc.to_bytes(4, "big")


def _stored(block: bytes) -> Iterator[bytes | memoryview]:
    """Yields `block` as stored blocks of deflate (RFC 1951, 3.2.4), none of them the last."""
    view = memoryview(block)
    for at in range(0, len(block), STORED_BLOCK):
        part = view[at : at + STORED_BLOCK]
        yield struct.pack("<BHH", 0, len(part), len(part) ^ 0xFFFF)
        yield part


def _passes(ihdr: bytes) -> Iterator[tuple[int, int]]:
    """Yields (bytes of a row with its filter, rows) of each pass that has pixels."""
    width, height, bits, color, interlace = _read_ihdr(ihdr)
    for column, row, right, down in PASSES if interlace else ((0, 0, 1, 1),):
        columns, rows = -(-(width - column) // right), -(-(height - row) // down)
        if columns > 0 and rows > 0:
            yield 1 + (columns * bits * SAMPLES[color] + 7) // 8, rows


def _rows(ihdr: bytes, packed: list[memoryview]) -> Iterator[bytes]:
    """Yields the inflated rows, some at a time.

    Raises UndecodableImageError unless the stream is whole, its checksum right, its rows as many
    as `ihdr` declares, and each has a filter that there is.
    """
    inflater = Inflater(packed)
    for stride, rows in _passes(ihdr):
        step = max(1, INFLATE_OUTPUT_BYTES // stride)
        for done in range(0, rows, step):
            block = inflater.read(min(step, rows - done) * stride)
            if np.frombuffer(block, np.uint8)[::stride].max() > LAST_FILTER:
                raise UndecodableImageError("the PNG is damaged: a row has an unknown filter")
            yield block
    inflater.end()


class Inflater:
    """Reads a zlib stream that is in several parts."""

    def __init__(self, parts: list[memoryview]) -> None:
        self._zlib = zlib.decompressobj()
        # With every read, zlib copies the input that it has not used yet.
        self._parts = (
            part[at : at + INFLATE_INPUT_BYTES]
            for part in parts
            for at in range(0, len(part), INFLATE_INPUT_BYTES)
        )
        self._rest: bytes | memoryview = b""

    def read(self, size: int) -> bytes:
        """Returns the next `size` bytes. Raises UndecodableImageError if there are fewer."""
        blocks, missing = [], size
        while missing:
            block = self._next(missing)
            if not block:
                raise UndecodableImageError("the PNG is cut off or damaged: rows are missing")
            blocks.append(block)
            missing -= len(block)
        return b"".join(blocks)

    def end(self) -> None:
        """Raises UndecodableImageError unless the stream ends here, with the right checksum."""
        if self._next(1) or not self._zlib.eof:
            raise UndecodableImageError("the PNG is damaged: its pixels do not end where they must")

    def _next(self, size: int) -> bytes:
        """Returns 1 to `size` bytes; none at the stream's end."""
        while not self._zlib.eof:
            try:
                block = self._zlib.decompress(self._rest, size)
            except zlib.error:
                raise UndecodableImageError("the PNG is damaged: its pixels are") from None
            self._rest = self._zlib.unconsumed_tail
            if block:
                return block
            if not self._rest:
                part = next(self._parts, None)
                if part is None:
                    break
                self._rest = part
        return b""
