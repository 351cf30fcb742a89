"""Image files, EXIF blocks, and recipes."""

import cv2
import numpy as np

from fuzz.fuzz_images import LIMITS, repair_checksums
from fuzz.image_kinds import KINDS
from fuzz.mutation import Draw
from fuzz.target import Target, promise
from server.recognition import frame, preprocessing
from server.recognition.images.header import read_orientation
from server.recognition.manifest import Recipe
from server.recognition.preprocessing import TensorSpec
from server.values import json_values
from server.values.validation import InvalidValueError

# As most bundles have it.
RECIPE = Recipe(width=32, height=24)
# MB beside those of MEMORY_FACTOR for the pixels that LIMITS lets through.
SPARE_MB = 32
SIDE_MAX = 256
DTYPES = ("float32", "float16", "uint8", "int8")
SPECS = tuple(
    TensorSpec("image", (1,), dtype, scale, zero)
    for dtype in DTYPES
    for scale, zero in ((0.0, 0), (0.5, -3), (1e-30, 127))
)
RECIPES = (
    b'{"width": 32, "height": 24}',
    b'{"width": 24, "height": 24, "color": "bgr", "resize": "crop", "interpolation": "cubic"}',
    b'{"width": 20, "height": 30, "color": "gray", "resize": "letterbox", "pad": 0, "scale": 0.01}',
    b'{"width": 16, "height": 16, "layout": "nchw", "scale": [1, 2, 3], "offset": [-1, 0, 1e3]}',
    b'{"width": 16, "height": 16, "interpolation": "nearest", "region": [0.1, 0.2, 0.5, 0.001]}',
    b'{"width": 9, "height": 9, "tiles": {"columns": 3, "rows": 2, "overlap": 0.5}}',
    b'{"width": 9, "height": 9, "regions": [{"name": "a", "box": [0, 0, 1, 1]}]}',
)
FIELDS = tuple(f'"{name}"'.encode() for name in Recipe.__struct_fields__)
CHOICES = (
    *(b'"stretch"', b'"crop"', b'"letterbox"', b'"fast_area"', b'"area"', b'"linear"', b'"gray"'),
    *(b"[0, 0, 1e-9, 1]", b"[1, 1, 0.1, 0.1]", b"1e308", b"-1e308", b"8192"),
)


def _decode(data: bytes) -> None:
    decoded = frame.decode_frame(data, RECIPE, LIMITS)
    pixels = decoded.pixels
    promise(pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3, "no pixels")
    promise(min(*pixels.shape[:2], *decoded.size) > 0, "an image of no pixels")
    promise(pixels.size <= 3 * LIMITS.max_pixels, "more pixels than are taken")


def _repaired(data: bytes) -> bytes:
    """Half of the PNGs with right checksums."""
    if not data.startswith(b"\x89PNG") or data[-1] & 1:
        return data
    changed = bytearray(data)
    repair_checksums(changed)
    return bytes(changed)


def _orientation(data: bytes) -> None:
    promise(read_orientation(data) in range(1, 9), "no orientation")


def _preprocess(data: bytes) -> None:
    """A picture's sides and the tensor in the first bytes, then the recipe."""
    draw = Draw(data)
    width, height, spec = draw.whole(1, SIDE_MAX), draw.whole(1, SIDE_MAX), draw.pick(SPECS)
    recipe = json_values.decode(draw.rest(), Recipe, name="it", lenient=False)
    if recipe.width * recipe.height > SIDE_MAX**2:
        return
    pixels = np.full((height, width, 3), 200, np.uint8)
    for view in frame.views(recipe):
        tensor = preprocessing.to_tensor(pixels, view, spec)
        promise(tensor.shape == (1, *view.shape), f"the tensor has the shape {tensor.shape}")
        promise(tensor.dtype == spec.dtype, f"the tensor is {tensor.dtype}")
        place = preprocessing.placement((width, height), (width, height), view)
        promise(bool(np.isfinite(place.part).all()), "the placement is not finite")


def targets() -> tuple[Target, ...]:
    cv2.setNumThreads(1)
    image_mb = frame.MEMORY_FACTOR * 3 * LIMITS.max_pixels // 1_000_000 + SPARE_MB
    decoders = tuple(
        Target(
            f"decode-{name.lower()}",
            _decode,
            tuple(KINDS[name].values()),
            memory_mb=image_mb,
            repair=_repaired,
        )
        for name in KINDS
    )
    picture = KINDS["JPEG"]["exif"]
    exif = picture[picture.find(b"Exif") :][:100]
    tiff = KINDS["TIFF"][min(KINDS["TIFF"])]
    recipes = tuple(bytes((60, 0, 46, 0, number)) + text for number, text in enumerate(RECIPES))
    return (
        *decoders,
        Target("exif", _orientation, (exif, tiff[:400], b"Exif\0\0" + tiff[:400])),
        Target("preprocess", _preprocess, recipes, (*FIELDS, *CHOICES), (InvalidValueError,)),
    )
