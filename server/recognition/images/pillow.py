"""Headers read by Pillow."""

import io
from types import ModuleType

from server.errors import UndecodableImageError
from server.recognition.images import exif
from server.recognition.images.header import Header


def _pillow() -> ModuleType:
    """Pillow, with the first image that needs it: most cameras send JPEG, and it would take a
    twentieth of the start. Its own bound would warn or raise before `Limits` are checked."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    return Image


def read_header(data: bytes, format_: str) -> Header:
    """The header of a file of `format_` (Pillow's name), without decoding it.

    Raises UndecodableImageError for a header that is damaged or cut off.
    """
    pillow = _pillow()
    try:
        image = pillow.open(io.BytesIO(data), formats=(format_,))
        block = image.info.get("exif", b"")
        return Header(format_, image.mode, image.width, image.height, exif.orientation(block))
    except pillow.UnidentifiedImageError:
        raise UndecodableImageError(f"the {format_}'s header is cut off or damaged") from None
    except (OSError, SyntaxError, ValueError, OverflowError, TypeError, KeyError):
        raise UndecodableImageError(f"the {format_}'s header is damaged") from None
