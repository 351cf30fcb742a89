"""Rewrites the configuration of a Keras 2 model so that Keras 3 reads it, to the same effect."""

import inspect
from collections.abc import Mapping
from functools import reduce
from typing import Any

# Keys of Keras 2 that change nothing at these values; None, False and nothing never do.
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "groups": (1,),
    "implementation": (0, 1, 2),
    "data_format": ("channels_last",),
    "dilation_rate": (1, [1], [1, 1]),
    "depth_multiplier": (1,),
    "fused": (True,),
    "rng_type": ("stateful", "stateless", "legacy_stateful"),
    "virtual_batch_size": (0,),
}
# What every layer takes beside the parameters of its constructors.
_EVERY_LAYER = frozenset(
    {"activity_regularizer", "autocast", "batch_input_shape", "batch_shape", "dtype", "name"}
    | {"input_dim", "input_shape", "trainable"}
)
# TensorFlow's functions that compute from tensors alone, by the beginning of their names.
_FUNCTIONS = ("math.", "nn.", "image.", "__operators__.", "linalg.", "signal.")
_PLAIN_FUNCTIONS = frozenset(
    {"cast", "clip_by_value", "concat", "expand_dims", "identity", "maximum", "minimum", "pad"}
    | {"reshape", "reverse", "squeeze", "stack", "stop_gradient", "tile", "transpose", "where"}
)
_ELLIPSIS = "__ellipsis__"


def for_keras_3(tf: Any, node: Any) -> Any:
    """Return a model's configuration, as JSON types, without what Keras 3 refuses and nothing
    depends on: keys at values without effect, and places of classes in Keras 2's own tree."""
    if isinstance(node, list):
        return [for_keras_3(tf, item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("class_name") == _ELLIPSIS:
        return _ELLIPSIS
    node = {key: for_keras_3(tf, value) for key, value in node.items()}
    if isinstance(calls := node.get("inbound_nodes"), list):
        # A call of a function has one input where one of a layer has a list of them.
        node["inbound_nodes"] = [
            [call] if isinstance(call, list) and call and isinstance(call[0], str) else call
            for call in calls
        ]
    name, config = str(node.get("class_name")), node.get("config")
    if not isinstance(config, dict):
        return node
    if name == "Functional" or (name == "Model" and "output_layers" in config):
        node |= {"class_name": "Functional", "registered_name": "Functional"}
        node["module"] = "keras.src.models.functional"
        for ends in ("input_layers", "output_layers"):
            # Keras 3 makes a list of one of it, which a Sequential does not take.
            if isinstance(config.get(ends), list) and len(config[ends]) == 1:
                config[ends] = config[ends][0]
    layer = getattr(tf.keras.layers, name, None)
    if inspect.isclass(layer):
        taken = _EVERY_LAYER | _parameters(layer)
        config = {k: v for k, v in config.items() if k in taken or not _without_effect(k, v)}
        axis = config.get("axis")
        if name == "BatchNormalization" and isinstance(axis, list) and len(axis) == 1:
            config["axis"] = axis[0]
        node["config"] = config
    return node


def _parameters(layer: type) -> set[str]:
    return {
        name
        for kind in layer.__mro__
        if "__init__" in vars(kind)
        for name in inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    }


def _without_effect(key: str, value: Any) -> bool:
    if value is None or value is False or value == [] or value == {}:
        return True
    # True equals 1.
    return any(type(value) is type(none) and value == none for none in _WITHOUT_EFFECT.get(key, ()))


def function_layers(tf: Any) -> dict[str, Any]:
    """Keras 2's layers for functions of TensorFlow between layers, such as `pixels / 255`, by name.

    They call functions that compute from tensors alone; others raise ValueError.
    """

    class TFOpLambda(tf.keras.layers.Layer):
        def __init__(self, function: str, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.function = function
            if not (function.startswith(_FUNCTIONS) or function in _PLAIN_FUNCTIONS):
                raise ValueError(f"the function tf.{function} is not run from a file")
            self.run = reduce(getattr, function.split("."), tf)

        def call(self, *args: Any, **kwargs: Any) -> Any:
            kwargs.pop("name", None)
            return self.run(*args, **kwargs)

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "function": self.function}

    class SlicingOpLambda(TFOpLambda):
        def call(self, value: Any, slice_spec: Any = (), **_: Any) -> Any:
            parts = slice_spec if isinstance(slice_spec, list | tuple) else [slice_spec]
            return value[tuple(_slice(part) for part in parts)]

    return {"TFOpLambda": TFOpLambda, "SlicingOpLambda": SlicingOpLambda}


def _slice(part: Any) -> Any:
    if part == _ELLIPSIS:
        return Ellipsis
    if isinstance(part, Mapping):
        return slice(part.get("start"), part.get("stop"), part.get("step"))
    return part
