"""Even light: pictures whose light and contrast no longer differ from place to place or from frame
to frame, made inside the network."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from convert.terminal import tensorflow

Light = Literal["as-is", "even"]
LIGHTS: tuple[Light, ...] = ("as-is", "even")
# Light is what is left of an image at about so many places a side, blurred by so much.
LIGHT_SIDE = 28
LIGHT_BLUR = np.exp(-0.5 * (np.arange(-6, 7) / 2) ** 2).astype(np.float32)
LIGHT_BLUR /= LIGHT_BLUR.sum()
# In grey levels; and relative to the light: noise alone should not become a texture.
LEAST_LIGHT, LEAST_CONTRAST = 4.0, 0.02
# In grey levels, of the picture that is made.
MEAN, CONTRAST = 110, 30


def evenly_lit(image: Any) -> Any:
    """Return the same images, float32 [n, side, side, 3] in -1..1, in even light and with a usual
    contrast. side: at least 32.

    Light that differs over a frame, or from frame to frame, would take more frames to learn than a
    user has. Each pixel is divided by the light about it, so colours stay.
    """
    tf = tensorflow()
    side = image.shape[1]
    levels = (image + 1) * 127.5 + 1
    cell = max(1, side // LIGHT_SIDE)
    light = tf.nn.avg_pool2d(tf.reduce_mean(levels, 3, keepdims=True), cell, cell, "VALID")
    light = blurred(light, LIGHT_BLUR) + LEAST_LIGHT
    light = tf.image.resize(light, (side, side), "bilinear")
    relief = levels / light - 1
    contrast = tf.maximum(tf.math.reduce_std(relief, [1, 2, 3], keepdims=True), LEAST_CONTRAST)
    usual = MEAN + CONTRAST * relief / contrast
    return tf.clip_by_value(usual, 0, 255) / 127.5 - 1


def blurred(grid: Any, weights: NDArray[Any]) -> Any:
    """Return `weights`, an odd number of them, along both sides of [n, side, side, 1]."""
    tf = tensorflow()
    kernel = np.outer(weights, weights)[..., None, None]
    around = [len(weights) // 2] * 2
    padded = tf.pad(grid, [[0, 0], around, around, [0, 0]], "REFLECT")
    return tf.nn.conv2d(padded, tf.constant(kernel), 1, "VALID")


def even_light_layer(keras: Any) -> Any:
    """Return a Keras layer of `evenly_lit`."""

    class EvenLight(keras.layers.Layer):
        def call(self, image: Any) -> Any:
            return evenly_lit(image)

    return EvenLight(name="even_light")
