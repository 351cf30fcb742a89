"""RGB pixels -> input tensor, exactly as the bundle's recipe says.

Pure functions; the only code in the project that does this, for training, evaluation and serving.
"""

import math
from typing import Any

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from server.recognition.frame import Pixels, scaled_size, shown_part
from server.recognition.manifest import Layout, Recipe

Tensor = NDArray[Any]

INTERPOLATIONS = {
    "area": cv2.INTER_AREA,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "nearest": cv2.INTER_NEAREST,
}


class TensorSpec(msgspec.Struct, frozen=True):
    """One tensor of a model. `scale` and `zero_point` are its quantisation: real = (q -
    zero_point) * scale; a scale of 0 means that it is not quantised. `signature` is its name in
    the model's serving signature, '' if it has none."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float = 0.0
    zero_point: int = 0
    signature: str = ""

    @property
    def quantized(self) -> bool:
        return self.scale != 0.0 and self.dtype in ("uint8", "int8")


def dequantize(tensor: Tensor, spec: TensorSpec) -> NDArray[np.float32]:
    """Returns real = (q - zero_point) * scale of a quantised tensor (TensorFlow Lite's 8-bit
    quantisation specification), else the values as float32. Same shape."""
    if not spec.quantized:
        return np.asarray(tensor, np.float32)
    return (tensor.astype(np.float32) - spec.zero_point) * np.float32(spec.scale)


class Placement(msgspec.Struct, frozen=True):
    """The place of a frame in the model's input.

    size: width and height of the frame as sent, upright, in pixels. scale, offset: along x and y,
    input = frame * scale + offset, both in pixels from the left and upper edge. visible: left, top,
    right and bottom of the part of the input that shows the frame, or its region, and no bars.
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float]
    visible: tuple[float, float, float, float]

    @property
    def part(self) -> NDArray[np.float64]:
        """Left, top, right and bottom of the part of the frame that the input shows."""
        corners: NDArray[np.float64] = self.to_frame(np.array([self.visible], np.float32))[0]
        return corners

    def to_frame(self, boxes: NDArray[np.float32]) -> NDArray[np.float64]:
        """Turns boxes [n, 4] (left, top, right, bottom) in the input to the frame's pixels."""
        offset, scale = np.array(self.offset * 2), np.array(self.scale * 2)
        return np.asarray((boxes - offset) / scale, np.float64)


def _resize(pixels: Pixels, size: tuple[int, int], interpolation: str) -> Pixels:
    width, height = size
    if pixels.shape[1::-1] == size:
        return pixels
    if interpolation != "fast_area":
        return np.asarray(
            cv2.resize(pixels, size, interpolation=INTERPOLATIONS[interpolation]), np.uint8
        )
    # OpenCV averages 2 x 2 pixels with vector instructions, and any other ratio without. So the
    # side that shrinks less is halved as often as the other, but never magnified twofold for it.
    ratios = pixels.shape[1] / width, pixels.shape[0] / height
    most = max(0, math.floor(math.log2(max(ratios))))
    across, down = (min(most, max(0, math.ceil(math.log2(ratio)))) for ratio in ratios)
    out = cv2.resize(pixels, (width << across, height << down), interpolation=cv2.INTER_LINEAR)
    for halvings in reversed(range(most)):
        size = width << min(halvings, across), height << min(halvings, down)
        out = cv2.resize(out, size, interpolation=cv2.INTER_AREA)
    return np.asarray(out, np.uint8)


def _centre(width: int, height: int, recipe: Recipe) -> tuple[int, int, int, int]:
    """Returns left, top, width and height of an image's largest centred part of the recipe's
    aspect ratio."""
    ratio = max(recipe.width / width, recipe.height / height)
    wide, high = max(1, round(recipe.width / ratio)), max(1, round(recipe.height / ratio))
    return (width - wide) // 2, (height - high) // 2, wide, high


def _pad(pixels: Pixels, recipe: Recipe) -> Pixels:
    """Pads the resized image to [recipe.height, recipe.width, 3], centred."""
    height, width = pixels.shape[:2]
    if (width, height) == (recipe.width, recipe.height):
        return pixels
    out = np.full((recipe.height, recipe.width, 3), recipe.pad, np.uint8)
    top, left = (recipe.height - height) // 2, (recipe.width - width) // 2
    out[top : top + height, left : left + width] = pixels
    return out


def to_input_pixels(pixels: Pixels, recipe: Recipe) -> Pixels:
    """Resizes the recipe's region of RGB uint8 [h, w, 3] to uint8 [recipe.height, recipe.width,
    recipe.channels] in the recipe's colour order, not yet scaled."""
    if recipe.region is not None:
        left, top, width, height = shown_part(recipe, pixels.shape[1], pixels.shape[0])
        pixels = pixels[top : top + height, left : left + width]
    if recipe.resize == "crop":
        # Pixels outside are never resized, so that a long and narrow image needs no more memory
        # than another.
        left, top, width, height = _centre(pixels.shape[1], pixels.shape[0], recipe)
        pixels = pixels[top : top + height, left : left + width]
        size = recipe.width, recipe.height
    else:
        size = scaled_size(pixels.shape[1], pixels.shape[0], recipe)
    pixels = _pad(_resize(pixels, size, recipe.interpolation), recipe)
    if recipe.color == "gray":
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)[..., None]
    return pixels[..., ::-1] if recipe.color == "bgr" else pixels


def placement(size: tuple[int, int], decoded: tuple[int, int], recipe: Recipe) -> Placement:
    """Returns the place at which `to_input_pixels` puts a frame.

    size: width and height of the frame as sent, upright. decoded: those of its decoded pixels,
    which are fewer if a JPEG was decoded at a part of its size; the last column and row then cover
    less than a pixel's worth of the frame, so that places are exact to one decoded pixel.
    """
    inside = recipe.width, recipe.height
    *corner, width, height = shown_part(recipe, *decoded)
    part: tuple[int, int] = width, height
    if recipe.resize == "crop":
        left, top, wide, high = _centre(*part, recipe)
        scale = inside[0] / wide, inside[1] / high
        offset: tuple[float, float] = (-left * scale[0], -top * scale[1])
    else:
        resized = scaled_size(*part, recipe)
        scale = resized[0] / part[0], resized[1] / part[1]
        offset = (inside[0] - resized[0]) // 2, (inside[1] - resized[1]) // 2
    x, y = (
        (max(0.0, offset[i]), min(float(inside[i]), offset[i] + part[i] * scale[i])) for i in (0, 1)
    )
    return Placement(
        size,
        (scale[0] * decoded[0] / size[0], scale[1] * decoded[1] / size[1]),
        (offset[0] - corner[0] * scale[0], offset[1] - corner[1] * scale[1]),
        (x[0], y[0], x[1], y[1]),
    )


def mean_grey(pixels: Pixels) -> float:
    """Returns the mean grey level 0..255 of `to_input_pixels`'s pixels, all channels weighing
    alike: the brightness by which drift is measured."""
    # OpenCV adds up in an eighth of NumPy's time, but copies what runs backwards, as BGR does.
    forwards = pixels if pixels.strides[-1] > 0 else pixels[..., ::-1]
    return float(cv2.sumElems(forwards.reshape(len(forwards), -1))[0] / pixels.size)


def scaling_table(recipe: Recipe, spec: TensorSpec) -> Tensor:
    """Returns the tensor's value for each pixel value 0..255: [256, channels] in its dtype.

    tensor = pixel * scale + offset in float64, then rounded to the dtype; a quantised input is
    quantised here: round(tensor / spec.scale + spec.zero_point). Whole numbers are clipped to the
    dtype's range.
    """
    pixel = np.arange(256, dtype=np.float64)[:, None]
    channels = recipe.channels
    scale = np.broadcast_to(np.asarray(recipe.scale, np.float64), (channels,))
    offset = np.broadcast_to(np.asarray(recipe.offset, np.float64), (channels,))
    real = pixel * scale + offset
    if spec.quantized:
        real = real / spec.scale + spec.zero_point
    if np.issubdtype(spec.dtype, np.floating):
        return real.astype(spec.dtype)
    info = np.iinfo(spec.dtype)
    return np.clip(np.rint(real), info.min, info.max).astype(spec.dtype)


def apply_table(pixels: Pixels, table: Tensor, layout: Layout = "nhwc") -> Tensor:
    """Turns uint8 [h, w, c] to table's dtype, [1, h, w, c] or, if `layout` is nchw, [1, c, h, w];
    looks each value up in its channel's column.

    A look-up gives the same bits on every processor; a multiplication and an addition may be fused
    on some."""
    # OpenCV looks up any 16 bits, but not as halves of floats.
    columns = table.view(np.int16) if table.dtype == np.float16 else table
    height, width, channels = pixels.shape
    if layout == "nchw":
        pixels = np.ascontiguousarray(pixels)
        out = np.empty((1, channels, height, width), columns.dtype)
        for c in range(channels):
            column = np.ascontiguousarray(columns[:, c])
            cv2.LUT(cv2.extractChannel(pixels, c), column, dst=out[0, c])
    elif table.dtype == np.uint8 and np.array_equal(table[:, 0], np.arange(256)):
        return np.ascontiguousarray(pixels)[None]
    else:
        same = (table == table[:, :1]).all()
        lookup = np.ascontiguousarray(columns[:, 0] if same else columns[None])
        out = np.asarray(cv2.LUT(pixels, lookup)).reshape(1, height, width, channels)
    return out.view(table.dtype)


def to_tensor(pixels: Pixels, recipe: Recipe, spec: TensorSpec) -> Tensor:
    """Turns RGB uint8 [h, w, 3] to the model's input [1, *recipe.shape].

    dtype and quantisation are `spec`'s; values follow `scaling_table`.
    """
    return apply_table(to_input_pixels(pixels, recipe), scaling_table(recipe, spec), recipe.layout)
