"""Cuts a region out of the frames of a camera, in the reader's process.

So the journal, the samples and the model have the same picture, and a model that is trained on the
samples sees later what it was trained on.
"""

import importlib
import math
import time
from collections.abc import Sequence
from typing import Any

from server.line.cameras.sources import Shot, Source

# Time between two frames that are sent whole, beside their region: for who draws another one.
WHOLE_EVERY_S = 1.0
# As good as no loss: the model sees nothing of a second compression.
JPEG_QUALITY = 98


def cut(data: bytes, region: Sequence[float]) -> bytes:
    """Return the region of an image file as a JPEG; nothing if the file is damaged in any part, or
    is no image. region: x, y, width and height as shares of the upright frame."""
    import numpy as np
    import simplejpeg

    from server.errors import LinesideError
    from server.recognition.frame import decode, shown_part
    from server.recognition.images.header import Limits
    from server.recognition.manifest import Recipe

    x, y, width, height = region
    recipe = Recipe(width=1, height=1, decode="exact", region=(x, y, width, height))
    try:
        # Refuses a file that is cut off, of which other decoders show the beginning.
        pixels = decode(data, recipe, Limits())
    except LinesideError:
        return b""
    left, top, across, down = shown_part(recipe, pixels.shape[1], pixels.shape[0])
    part = np.ascontiguousarray(pixels[top : top + down, left : left + across])
    jpeg: Any = simplejpeg.encode_jpeg(part, JPEG_QUALITY, "RGB", colorsubsampling="444")
    return bytes(jpeg)


class RegionSource(Source):
    """The region of the frames of `source`."""

    def __init__(self, region: Sequence[float], source: Source) -> None:
        super().__init__()
        # Readers of cameras without a region start faster without. With the first frame they would
        # take so long that it is too old to be judged.
        for module in ("simplejpeg", "server.recognition.frame", "server.recognition.manifest"):
            importlib.import_module(module)
        self._region = region
        self._source = source
        self._whole_due = -math.inf

    def take(self, after: float, wait_s: float) -> Shot | None:
        shot = self._source.take(after, wait_s)
        self.seen = self._source.seen
        if shot is None:
            return None
        now, whole = time.monotonic(), b""
        if now >= self._whole_due:
            self._whole_due, whole = now + WHOLE_EVERY_S, shot.data
        return shot._replace(data=cut(shot.data, self._region), whole=whole)
