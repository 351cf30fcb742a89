"""TIFF: what a file declares is checked before a library believes it."""

from server.errors import UndecodableImageError
from server.recognition.images import opencv, pillow
from server.recognition.images.exif import TIFF_SIGNATURES, TIFF_SIZES, read_tags
from server.recognition.images.header import Header, Pixels

SIGNATURES = TIFF_SIGNATURES
# A strip for every row and colour, or small tiles, stay below.
MAX_TIFF_NUMBERS = 1 << 18


def read_header(data: bytes) -> Header:
    """The header of a TIFF's first page.

    Raises UndecodableImageError if it is damaged, or declares more than the file holds.
    """
    check_tiff(data)
    header = pillow.read_header(data, "TIFF")
    # OpenCV applies a TIFF's orientation, whatever it is asked.
    return Header(header.format, header.mode, header.width, header.height)


def decode(data: bytes, header: Header) -> Pixels:
    """A TIFF's first page as RGB pixels, uint8 [height, width, 3].

    Raises UndecodableImageError if it does not decode.
    """
    return opencv.decode(data, "TIFF")


def check_tiff(data: bytes) -> None:
    """Raises UndecodableImageError for a TIFF whose first directory declares more than the file
    holds: libraries copy the values of each tag, even where all tags point to the same bytes."""
    declared = 0
    for _, kind, number, _ in read_tags(data):
        size = TIFF_SIZES.get(kind, 0)
        if size > 1 and number > MAX_TIFF_NUMBERS:
            raise UndecodableImageError(f"the TIFF is damaged: a tag declares {number} numbers")
        declared += size * number
    if declared > len(data):
        raise UndecodableImageError(
            f"the TIFF is damaged: its tags declare {declared} bytes and the file has {len(data)}"
        )
