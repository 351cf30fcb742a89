"""TensorFlow functions of one image in float32 arithmetic: TFLite computes in no smaller floats."""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np

Call = Callable[[Any], Any]


def float_input(tf: Any, call: Call, image: Any) -> tuple[Call, Any]:
    """`call` and the TensorSpec `image` of its argument, for an argument of float32.

    An argument of whole numbers is rounded to them.
    """
    if image.dtype == tf.float32:
        return call, image
    whole = image.dtype.is_integer

    def from_float(value: Any) -> Any:
        return call(tf.cast(tf.round(value) if whole else value, image.dtype))

    return from_float, tf.TensorSpec(image.shape, tf.float32)


def needs_float32(function: Any) -> bool:
    """True if a concrete function computes in float16, bfloat16 or float64, as models of Keras's
    policy mixed_float16 do."""
    graph = function.graph.as_graph_def()
    return any(kind in _other_floats() for node in _nodes(graph) for kind in _types(node) if kind)


def in_float32(tf: Any, function: Any) -> Any:
    """A TFLite converter of the concrete function, with all its floats as float32."""
    tools = import_module("tensorflow.python.framework.convert_to_constants")
    frozen = tools.convert_variables_to_constants_v2(function, lower_control_flow=False)
    graph = frozen.graph.as_graph_def()
    others, single = _other_floats(), tf.float32.as_datatype_enum
    for node in _nodes(graph):
        for attribute in node.attr.values():
            if attribute.type in others:
                attribute.type = single
            for place, kind in enumerate(attribute.list.type):
                if kind in others:
                    attribute.list.type[place] = single
            if attribute.HasField("tensor") and attribute.tensor.dtype in others:
                values = np.asarray(tf.make_ndarray(attribute.tensor), np.float32)
                attribute.tensor.CopyFrom(tf.make_tensor_proto(values))
    for body in graph.library.function:
        for argument in (*body.signature.input_arg, *body.signature.output_arg):
            if argument.type in others:
                argument.type = single
    [source], [answer] = frozen.inputs, frozen.outputs
    plain = tf.compat.v1.wrap_function(
        lambda image: tf.graph_util.import_graph_def(
            graph, input_map={source.name: image}, return_elements=[answer.name]
        ),
        [tf.TensorSpec(source.shape, tf.float32)],
    )
    return tf.lite.TFLiteConverter.from_concrete_functions([plain], plain)


def _nodes(graph: Any) -> Iterator[Any]:
    yield from graph.node
    for body in graph.library.function:
        yield from body.node_def


def _types(node: Any) -> Iterator[int]:
    for attribute in node.attr.values():
        yield attribute.type
        yield from attribute.list.type


def _other_floats() -> frozenset[int]:
    kinds = import_module("tensorflow.core.framework.types_pb2")
    return frozenset({kinds.DT_HALF, kinds.DT_BFLOAT16, kinds.DT_DOUBLE})
