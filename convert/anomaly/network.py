"""The network of an anomaly model: MobileNetV2's features, and the statistics of good frames after
them, in one .tflite that answers `score` and `map`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from ai_edge_litert.tools import flatbuffer_utils

from convert.anomaly.locator import BLURS, LEAST_DISTANCE, Locator, logits
from convert.anomaly.scoring import FINE_CHANNELS, FINE_SIDE, Usual
from convert.anomaly.statistics import BLUR, CODE_SIDE, SIDE, Floats
from convert.errors import ConvertError, QuantizeError
from convert.quantization.quantize import Plan, default_plan, quantize
from convert.sources.shapes import first_line
from convert.sources.tf_functions import as_constants
from convert.terminal import suppress_native_output, tensorflow
from convert.training.light import blurred, evenly_lit
from convert.training.network import Weights, backbone

SIZE = 224
# Ends of residual blocks at two resolutions, 28 x 28 and 14 x 14. Deeper ones see kinds of objects
# more than surfaces, and cost as much again.
UPPER, LOWER = ("block_4_add", "block_5_add"), ("block_7_add", "block_9_add")
CHANNELS, DEPTH = 192, 64
# In float: its inputs differ in range by channel, which one scale for all would round away.
_PROJECTION = f"CONV_2D 1x1 {CHANNELS}>{DEPTH} @{SIDE}x{SIDE}"
SCORE, MAP, FEATURES, FINE = "score", "map", "features", "fine"


class AnomalyNetwork:
    """MobileNetV2 up to block 9, from which the .tflite files are made.

    weights: `imagenet` or `none`, as in `backbone`. Raises ConvertError if they can't be had.
    """

    def __init__(self, weights: Weights = "imagenet") -> None:
        keras = tensorflow().keras
        whole = backbone(keras, 1.0, SIZE, "imagenet" if weights == "imagenet" else "none")
        ends = [whole.get_layer(name).output for name in (*UPPER, *LOWER)]
        self._model = keras.Model(whole.input, ends)

    def feature_model(self) -> bytes:
        """A dynamic-range .tflite [1, SIZE, SIZE, 3] -> FEATURES [1, SIDE, SIDE, CHANNELS] and FINE
        [1, FINE_SIDE, FINE_SIDE, FINE_CHANNELS]."""

        def call(image: Any) -> dict[str, Any]:
            coarse, fine = self._features(image)
            return {FEATURES: coarse, FINE: fine}

        return _quantized(self._convert(call))

    def anomaly_model(
        self,
        projection: Floats,
        usual: Usual,
        locator: Locator,
        threshold: float,
        of_places: float,
    ) -> tuple[bytes, bytes]:
        """The float32 .tflite and the dynamic-range one, [1, SIZE, SIZE, 3] -> `score` [1] and
        `map` [1, SIDE, SIDE, 1].

        projection: [CHANNELS, DEPTH] of the features that `usual` is of. threshold: the raw score
        that becomes 0.5; a raw score s becomes s / (s + threshold). of_places: the same of the map,
        which is that of `locator`.
        """
        tf = tensorflow()
        statistics, texture = usual.coarse, usual.texture
        depth = projection.shape[1]
        places = SIDE * SIDE
        whitening = statistics.whitening.transpose(1, 0, 2).reshape(1, 1, depth, places * depth)

        def call(image: Any) -> dict[str, Any]:
            coarse, fine = self._features(image)
            features = tf.nn.conv2d(coarse, tf.constant(projection[None, None]), 1, "VALID")
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
            smooth = blurred(tf.sqrt(tf.reduce_mean(squares, axis=3, keepdims=True)), BLUR)
            fine -= tf.constant(texture.mean.reshape(1, FINE_SIDE, FINE_SIDE, FINE_CHANNELS))
            white = tf.nn.conv2d(fine, tf.constant(texture.whitening[None, None]), 1, "VALID")
            detail = blurred(tf.sqrt(tf.reduce_mean(tf.square(white), axis=3, keepdims=True)), BLUR)
            highest = [tf.reduce_max(each, axis=[1, 2, 3]) for each in (smooth, detail)]
            raw = tf.sqrt(highest[0] * highest[1])
            evidence = logits(centred, locator.weights)
            places = tf.math.log(tf.maximum(smooth, LEAST_DISTANCE)) + evidence
            for _ in range(BLURS):
                places = blurred(places, BLUR)
            share = tf.sigmoid(places - float(np.log(of_places)))
            return {SCORE: raw / (raw + threshold), MAP: share}

        float_model = self._convert(call)
        return float_model, _quantized(float_model)

    def _features(self, image: Any) -> tuple[Any, Any]:
        """[1, SIDE, SIDE, CHANNELS], each a mean over 3 x 3 places, so that a place knows its
        neighbours and small shifts of a part count less; and the last of the finer ends alone."""
        tf = tensorflow()
        ends = self._model(evenly_lit(image), training=False)
        first, second = tf.concat(ends[: len(UPPER)], 3), tf.concat(ends[len(UPPER) :], 3)
        first = tf.nn.avg_pool2d(tf.nn.avg_pool2d(first, 3, 1, "SAME"), 2, 2, "VALID")
        coarse = tf.concat([first, tf.nn.avg_pool2d(second, 3, 1, "SAME")], 3)
        return coarse, ends[len(UPPER) - 1]

    def _convert(self, call: Callable[[Any], dict[str, Any]]) -> bytes:
        tf = tensorflow()
        failed = import_module("tensorflow.lite.python.convert_phase").ConverterError
        image = tf.TensorSpec([1, SIZE, SIZE, 3], tf.float32)
        with suppress_native_output():
            # AutoGraph would rewrite these functions, which branch on no tensor.
            function = tf.function(call, autograph=False).get_concrete_function(image)
            try:
                return bytes(as_constants(tf, function).convert())
            except (tf.errors.OpError, ValueError, RuntimeError, failed) as error:
                raise ConvertError(
                    f"TensorFlow's converter can't make this model a .tflite: {first_line(error)}"
                ) from None


def with_thresholds(
    model: bytes, old: tuple[float, float], new: tuple[float, float]
) -> bytes | None:
    """Return a .tflite of `anomaly_model` with other thresholds, without another conversion.

    old, new: `threshold` and `of_places`. None if it does not show where the old ones are, of which
    each should be a constant that one operator takes: equal constants are stored once.
    """
    parsed = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    for before, after in zip(_constants(old), _constants(new), strict=True):
        held = [
            number
            for number, buffer in enumerate(parsed.buffers)
            if buffer.data is not None and bytes(buffer.data) == before.tobytes()
        ]
        taken = [
            number
            for graph in parsed.subgraphs
            for operator in graph.operators
            for number in operator.inputs
            if number >= 0 and graph.tensors[number].buffer in held
        ]
        if len(held) != 1 or len(taken) != 1:
            return None
        parsed.buffers[held[0]].data = np.frombuffer(after.tobytes(), np.uint8)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(parsed))


def _constants(thresholds: tuple[float, float]) -> tuple[np.float32, np.float32]:
    """Return what the model adds to the raw score and to the logarithm of the map."""
    score, places = thresholds
    return np.float32(score), np.float32(-np.log(places))


def _quantized(float_model: bytes) -> bytes:
    try:
        with suppress_native_output():
            plan = default_plan(float_model)
            integer = tuple(shape for shape in plan.integer if shape != _PROJECTION)
            return quantize(float_model, "dynamic", plan=Plan(integer, plan.min_weights))
    except QuantizeError as error:
        raise ConvertError(str(error)) from None
