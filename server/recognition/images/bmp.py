"""BMP files."""

from server.recognition.images import opencv, pillow
from server.recognition.images.header import Header, Pixels

SIGNATURE = b"BM"


def read_header(data: bytes) -> Header:
    """The header of a BMP. Raises UndecodableImageError if it is damaged or cut off."""
    return pillow.read_header(data, "BMP")


def decode(data: bytes, header: Header) -> Pixels:
    """A BMP's pixels as RGB, uint8 [height, width, 3]; alpha is dropped.

    Raises UndecodableImageError if it does not decode.
    """
    return opencv.decode(data, "BMP")
