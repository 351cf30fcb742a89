"""JPEG data in a strip or tile of a TIFF (Adobe's TIFF Technical Note 2)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import UndecodableImageError
from server.recognition.images import jpeg

BEGIN, END, ADOBE = b"\xff\xd8", b"\xff\xd9", b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"


def decode_part(
    part: bytes, tables: bytes, shape: tuple[int, int, int], full_height: int, is_ycbcr: bool
) -> NDArray[np.uint8]:
    """The samples of a strip or tile, [rows, columns * samples of a pixel].

    tables: the tag JPEGTables, may be empty; shape: columns, rows and samples of a pixel (1 or 3)
    that the part must have; full_height: rows that it may have instead, of which the first are
    taken; is_ycbcr: whether colours are stored as YCbCr, else as RGB.

    Raises UndecodableImageError if the data is damaged or of another size.
    """
    width, height, channels = shape
    if not part.startswith(BEGIN) or (tables and not (tables[:2] == BEGIN and tables[-2:] == END)):
        raise UndecodableImageError("the TIFF is damaged: its JPEG data does not begin as such")
    # Says what libjpeg would else guess from the names of the components.
    adobe = ADOBE + bytes([is_ycbcr])
    stream = BEGIN + adobe + tables[2:-2] + part[2:]
    header = jpeg.read_header(stream)
    mode = "RGB" if channels == 3 else "L"
    if header.mode != mode or header.width != width or header.height not in (height, full_height):
        raise UndecodableImageError(
            f"the TIFF is damaged: its JPEG data has {header.width} x {header.height} pixels in"
            f" place of {width} x {height}"
        )
    pixels: NDArray[Any] = jpeg.decode(stream, header)
    return np.ascontiguousarray(pixels[:height, :, :channels]).reshape(height, width * channels)
