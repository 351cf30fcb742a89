"""WebP files."""

import re

from server.recognition.images import opencv, pillow
from server.recognition.images.header import Header, Pixels

SIGNATURE = re.compile(rb"RIFF.{4}WEBP", re.DOTALL)


def read_header(data: bytes) -> Header:
    """The header of a WEBP. Raises UndecodableImageError if it is damaged or cut off."""
    return pillow.read_header(data, "WEBP")


def decode(data: bytes, header: Header) -> Pixels:
    """A WEBP's pixels as RGB, uint8 [height, width, 3]; alpha is dropped.

    Raises UndecodableImageError if it does not decode.
    """
    return opencv.decode(data, "WEBP")
