"""preprocessing: resize modes, colours, scaling, quantised inputs."""

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import picture, plain

from server.recognition.manifest import Recipe
from server.recognition.preprocessing import (
    TensorSpec,
    mean_grey,
    scaling_table,
    to_input_pixels,
    to_tensor,
)
from server.values import json_values
from server.values.validation import InvalidValueError

FLOAT = TensorSpec("image", (1, 32, 32, 3), "float32")


def recipe(**fields: Any) -> Recipe:
    return Recipe(**{"width": 32, "height": 32, **fields})


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int8"])
@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
@pytest.mark.parametrize("resize", ["stretch", "crop", "letterbox"])
def test_shape_and_dtype_are_the_recipes(dtype: str, color: str, resize: str) -> None:
    made = recipe(width=40, height=24, color=color, resize=resize, dtype=dtype)
    tensor = to_tensor(picture(90, 70), made, TensorSpec("image", (), dtype))
    assert tensor.shape == (1, 24, 40, 1 if color == "gray" else 3)
    assert tensor.dtype == dtype


@given(
    width=st.integers(1, 200),
    height=st.integers(1, 200),
    resize=st.sampled_from(["stretch", "crop", "letterbox"]),
    interpolation=st.sampled_from(["fast_area", "area", "linear", "cubic", "nearest"]),
)
def test_any_size_becomes_the_inputs(
    width: int, height: int, resize: str, interpolation: str
) -> None:
    made = recipe(height=24, resize=resize, interpolation=interpolation)
    assert to_input_pixels(picture(width, height), made).shape == (24, 32, 3)


@pytest.mark.parametrize("resize", ["stretch", "crop", "letterbox"])
@pytest.mark.parametrize(("width", "height"), [(16_384, 1), (1, 16_384), (16_384, 3)])
def test_a_long_and_narrow_image_becomes_the_input_too(
    resize: str, width: int, height: int
) -> None:
    pixels = to_input_pixels(plain((9, 99, 199), width, height), recipe(resize=resize, pad=9))
    assert (pixels == (9, 99, 199)).all(-1).any()


def test_stretch_ignores_the_aspect_ratio() -> None:
    halves = np.concatenate([plain((255, 0, 0), 40, 100), plain((0, 0, 255), 40, 100)], axis=1)
    pixels = to_input_pixels(halves, recipe())
    assert (pixels[:, :15] == (255, 0, 0)).all()
    assert (pixels[:, 17:] == (0, 0, 255)).all()


def test_crop_cuts_the_centre() -> None:
    thirds = np.concatenate(
        [plain(c, 60, 60) for c in [(255, 0, 0), (0, 255, 0), (0, 0, 255)]], axis=1
    )
    assert (to_input_pixels(thirds, recipe(resize="crop")) == (0, 255, 0)).all()
    tall = thirds.transpose(1, 0, 2)
    assert (to_input_pixels(tall, recipe(resize="crop")) == (0, 255, 0)).all()


def test_letterbox_keeps_everything_and_pads() -> None:
    pixels = to_input_pixels(plain((255, 0, 0), 64, 32), recipe(resize="letterbox", pad=7))
    assert (pixels[:8] == 7).all()
    assert (pixels[8:24] == (255, 0, 0)).all()
    assert (pixels[24:] == 7).all()


def test_colour_order() -> None:
    pixels = plain((200, 100, 50))
    assert to_input_pixels(pixels, recipe(color="rgb"))[0, 0].tolist() == [200, 100, 50]
    assert to_input_pixels(pixels, recipe(color="bgr"))[0, 0].tolist() == [50, 100, 200]
    # ITU-R BT.601 luma, as OpenCV computes it
    luma = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert to_input_pixels(pixels, recipe(color="gray"))[0, 0].tolist() == [luma]


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_scale_and_offset_by_channel(color: str) -> None:
    scale, offset = (0.5, 0.25, 2.0), (-1.0, 3.0, 0.125)
    made = recipe(color=color, scale=scale, offset=offset)
    pixels = picture(32, 32)
    want = to_input_pixels(pixels, made).astype(np.float64) * scale + offset
    np.testing.assert_allclose(to_tensor(pixels, made, FLOAT)[0], want.astype(np.float32))


def test_one_scale_and_offset_for_all_channels() -> None:
    pixels = picture(32, 32)
    tensor = to_tensor(pixels, recipe(scale=1 / 127.5, offset=-1.0), FLOAT)
    np.testing.assert_allclose(tensor[0], pixels / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "scale", "zero_point"), [("uint8", 1 / 127.5, 128), ("int8", 0.003921569, -128)]
)
def test_a_quantised_input_follows_the_formula(dtype: str, scale: float, zero_point: int) -> None:
    made = recipe(scale=1 / 127.5, offset=-1.0, dtype=dtype)
    spec = TensorSpec("image", (1, 32, 32, 3), dtype, scale, zero_point)
    pixels = picture(32, 32)
    info = np.iinfo(dtype)
    real = pixels.astype(np.float64) / 127.5 - 1
    want = np.clip(np.rint(real / scale + zero_point), info.min, info.max)
    np.testing.assert_array_equal(to_tensor(pixels, made, spec)[0], want)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int8"])
@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
@pytest.mark.parametrize("by_channel", [False, True])
def test_layout_only_moves_the_channels(dtype: str, color: str, by_channel: bool) -> None:
    fields: dict[str, Any] = {"color": color, "dtype": dtype, "width": 24}
    if by_channel and color != "gray":
        fields |= {"scale": (0.5, 0.25, 0.125), "offset": (-1.0, 3.0, 0.125)}
    spec, pixels = TensorSpec("image", (), dtype), picture(90, 70)
    last = to_tensor(pixels, recipe(**fields), spec)
    first = to_tensor(pixels, recipe(**fields, layout="nchw"), spec)
    assert first.dtype == last.dtype
    np.testing.assert_array_equal(first, last.transpose(0, 3, 1, 2))
    assert first.flags.c_contiguous


def test_a_plain_uint8_input_takes_the_pixels_as_they_are() -> None:
    pixels = picture(32, 32)
    spec = TensorSpec("image", (1, 32, 32, 3), "uint8")
    np.testing.assert_array_equal(to_tensor(pixels, recipe(dtype="uint8"), spec)[0], pixels)


def test_whole_numbers_are_rounded_and_clipped() -> None:
    spec = TensorSpec("image", (1, 32, 32, 3), "uint8")
    table = scaling_table(recipe(dtype="uint8", scale=1.5, offset=-20.0), spec)
    assert table[[0, 13, 14, 255], 0].tolist() == [0, 0, 1, 255]


@given(width=st.integers(40, 400), height=st.integers(40, 400))
def test_fast_area_is_close_to_area(width: int, height: int) -> None:
    pixels = picture(width, height, seed=3)
    fast = to_input_pixels(pixels, recipe(interpolation="fast_area")).astype(int)
    area = to_input_pixels(pixels, recipe(interpolation="area")).astype(int)
    assert np.abs(fast - area).mean() < 2.5


def test_fast_area_does_not_alias() -> None:
    # One-pixel stripes vanish into grey; sampled without averaging they would stay stripes.
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = to_input_pixels(stripes, recipe(interpolation="fast_area"))
    assert np.abs(pixels.astype(int) - 128).max() <= 2
    sampled = cv2.resize(stripes, (32, 32), interpolation=cv2.INTER_NEAREST)
    assert np.abs(sampled.astype(int) - 128).max() > 100


@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
@pytest.mark.parametrize("resize", ["stretch", "crop", "letterbox"])
@pytest.mark.parametrize("size", [(90, 70), (40, 24), (40, 60), (7, 3)])
def test_brightness_is_the_exact_mean(color: str, resize: str, size: tuple[int, int]) -> None:
    pixels = to_input_pixels(
        picture(*size), recipe(width=40, height=24, color=color, resize=resize)
    )
    assert mean_grey(pixels) == float(pixels.mean())


@pytest.mark.parametrize("name", ["scale", "offset"])
def test_gray_recipe_with_a_number_a_channel_is_refused(name: str) -> None:
    text = f'{{"width": 8, "height": 8, "color": "gray", "{name}": [1, 2, 3]}}'.encode()
    with pytest.raises(InvalidValueError, match=rf"recipe\.{name} should be one number"):
        json_values.decode(text, Recipe)
