"""The network of an anomaly model: MobileNetV2's features, and the statistics of good frames after
them, in one .tflite that answers `score` and `map`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from convert.anomaly.locator import LEAST_DISTANCE, Locator, logits
from convert.anomaly.statistics import BLUR, CODE_SIDE, SIDE, Floats, Statistics
from convert.errors import ConvertError, QuantizeError
from convert.quantization.quantize import Plan, default_plan, quantize
from convert.sources.shapes import first_line
from convert.terminal import suppress_native_output, tensorflow
from convert.training.network import Weights, backbone

SIZE = 224
# Ends of residual blocks at two resolutions, 28 x 28 and 14 x 14. Deeper ones see kinds of objects
# more than surfaces, and cost as much again.
FINE, COARSE = ("block_4_add", "block_5_add"), ("block_7_add", "block_9_add")
CHANNELS, DEPTH = 192, 64
# In float: its inputs differ in range by channel, which one scale for all would round away.
_PROJECTION = f"CONV_2D 1x1 {CHANNELS}>{DEPTH} @{SIDE}x{SIDE}"
SCORE, MAP, FEATURES = "score", "map", "features"


class AnomalyNetwork:
    """MobileNetV2 up to block 9, from which the .tflite files are made.

    weights: `imagenet` or `none`, as in `backbone`. Raises ConvertError if they can't be had.
    """

    def __init__(self, weights: Weights = "imagenet") -> None:
        keras = tensorflow().keras
        whole = backbone(keras, 1.0, SIZE, "imagenet" if weights == "imagenet" else "none")
        ends = [whole.get_layer(name).output for name in (*FINE, *COARSE)]
        self._model = keras.Model(whole.input, ends)

    def feature_model(self) -> bytes:
        """A dynamic-range .tflite [1, SIZE, SIZE, 3] -> features [1, SIDE, SIDE, CHANNELS]."""
        return _quantized(self._convert(lambda image: {FEATURES: self._features(image)}))

    def anomaly_model(
        self, projection: Floats, statistics: Statistics, locator: Locator, threshold: float
    ) -> tuple[bytes, bytes]:
        """The float32 .tflite and the dynamic-range one, [1, SIZE, SIZE, 3] -> `score` [1] and
        `map` [1, SIDE, SIDE, 1].

        projection: [CHANNELS, DEPTH] of the features that `statistics` is of. threshold: the raw
        score that becomes 0.5; a raw score s becomes s / (s + threshold). The map is that of
        `locator`, on the same scale.
        """
        tf = tensorflow()
        depth = projection.shape[1]
        places = SIDE * SIDE
        whitening = statistics.whitening.transpose(1, 0, 2).reshape(1, 1, depth, places * depth)

        def call(image: Any) -> dict[str, Any]:
            features = tf.nn.conv2d(
                self._features(image), tf.constant(projection[None, None]), 1, "VALID"
            )
            # Before the code, whose inputs are rounded: what all frames share would take the bits.
            centred = features - tf.constant(statistics.mean.reshape(1, SIDE, SIDE, depth))
            ratio = SIDE // CODE_SIDE
            pooled = tf.nn.avg_pool2d(centred, ratio, ratio, "VALID")
            code = tf.matmul(tf.reshape(pooled, [1, -1]), tf.constant(statistics.encoder))
            usual = tf.matmul(code, tf.constant(statistics.decoder))
            residual = tf.reshape(centred, [1, -1]) - usual
            # One group a place: a convolution that is a matrix of its own at each.
            white = tf.nn.conv2d(
                tf.reshape(residual, [1, 1, 1, -1]), tf.constant(whitening), 1, "VALID"
            )
            squares = tf.square(tf.reshape(white, [1, SIDE, SIDE, depth]))
            raw = tf.sqrt(tf.reduce_mean(squares, axis=3, keepdims=True))
            smooth = _blurred(raw)
            highest = tf.reduce_max(smooth, axis=[1, 2, 3])
            evidence = logits(centred, locator.weights)
            places = _blurred(tf.math.log(tf.maximum(smooth, LEAST_DISTANCE)) + evidence)
            share = tf.sigmoid(places - float(np.log(threshold)))
            return {SCORE: highest / (highest + threshold), MAP: share}

        float_model = self._convert(call)
        return float_model, _quantized(float_model)

    def _features(self, image: Any) -> Any:
        """[1, SIDE, SIDE, CHANNELS]: each a mean over 3 x 3 places, so that a place knows its
        neighbours and small shifts of a part count less."""
        tf = tensorflow()
        ends = self._model(image, training=False)
        fine, coarse = tf.concat(ends[: len(FINE)], 3), tf.concat(ends[len(FINE) :], 3)
        fine = tf.nn.avg_pool2d(tf.nn.avg_pool2d(fine, 3, 1, "SAME"), 2, 2, "VALID")
        return tf.concat([fine, tf.nn.avg_pool2d(coarse, 3, 1, "SAME")], 3)

    def _convert(self, call: Callable[[Any], dict[str, Any]]) -> bytes:
        tf = tensorflow()
        failed = import_module("tensorflow.lite.python.convert_phase").ConverterError
        image = tf.TensorSpec([1, SIZE, SIZE, 3], tf.float32)
        with tempfile.TemporaryDirectory() as folder, suppress_native_output():
            archive = tf.keras.export.ExportArchive()
            archive.track(self._model)
            archive.add_endpoint("serve", call, input_signature=[image])
            archive.write_out(folder, verbose=False)
            try:
                return bytes(tf.lite.TFLiteConverter.from_saved_model(folder).convert())
            except (tf.errors.OpError, ValueError, RuntimeError, failed) as error:
                raise ConvertError(
                    f"TensorFlow's converter can't make this model a .tflite: {first_line(error)}"
                ) from None


def _blurred(grid: Any) -> Any:
    """BLUR along both sides of [1, SIDE, SIDE, 1]."""
    tf = tensorflow()
    kernel = np.outer(BLUR, BLUR)[..., None, None]
    padded = tf.pad(grid, [[0, 0], [2, 2], [2, 2], [0, 0]], "REFLECT")
    return tf.nn.conv2d(padded, tf.constant(kernel), 1, "VALID")


def _quantized(float_model: bytes) -> bytes:
    try:
        with suppress_native_output():
            plan = default_plan(float_model)
            integer = tuple(shape for shape in plan.integer if shape != _PROJECTION)
            return quantize(float_model, "dynamic", plan=Plan(integer, plan.min_weights))
    except QuantizeError as error:
        raise ConvertError(str(error)) from None
