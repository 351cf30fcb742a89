"""What a server takes of images: their formats and sizes, and how deep samples are read."""

import msgspec

# Every format that is read, and those that a server takes unless its settings say otherwise.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
DEFAULT_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
# Bits that a sample of 16 may really have.
MIN_SIGNIFICANT_BITS, MAX_SIGNIFICANT_BITS = 9, 16


class Limits(msgspec.Struct, frozen=True):
    """max_pixels: width times height an image may have; max_side: pixels of its longer side.
    formats: those of `FORMATS` that are taken. significant_bits: how many bits of a sample that is
    stored in 16 the camera fills, the lowest; 0 for all."""

    max_pixels: int = 50_000_000
    max_side: int = 16_384
    formats: tuple[str, ...] = FORMATS
    significant_bits: int = 0
