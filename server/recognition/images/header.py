"""The header of an image file, the same for every format."""

import msgspec
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


class Header(msgspec.Struct, frozen=True):
    """What an image file says of itself. Sizes in pixels as stored, before `orientation` (EXIF
    1..8) is applied. bits: of a sample, 16 if samples are reduced to the upper 8 of their bits."""

    format: str
    mode: str
    width: int
    height: int
    orientation: int = 1
    bits: int = 8

    @property
    def transposed(self) -> bool:
        """Whether showing the image upright swaps its sides."""
        return self.orientation >= 5
