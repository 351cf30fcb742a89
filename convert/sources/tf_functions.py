"""TensorFlow functions of one image: in float32 arithmetic, and compared with their .tflite."""

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from convert.errors import ConvertError
from convert.recipe.readings import READINGS, picture_of_all_levels
from convert.terminal import suppress_native_output

# Of the range of the answers: half-precision arithmetic is off by less.
_TOLERANCE = 0.05
Call = Callable[[Any], Any]


def with_float_input(tf: Any, call: Call, image: Any) -> tuple[Call, Any]:
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


def as_constants(tf: Any, function: Any) -> Any:
    """Return a TFLite converter of the concrete function, its variables as constants, with its
    signature. A SavedModel of the variables would take five times as long."""
    frozen = _frozen(function)
    [source] = frozen.inputs

    def call(value: Any) -> Any:
        answers = tf.nest.flatten(frozen(value))
        return tf.nest.pack_sequence_as(function.structured_outputs, answers)

    image = tf.TensorSpec(source.shape, source.dtype, source.op.name)
    named = tf.function(call, autograph=False).get_concrete_function(image)
    return tf.lite.TFLiteConverter.from_concrete_functions([named], tf.Module())


def _frozen(function: Any) -> Any:
    tools = import_module("tensorflow.python.framework.convert_to_constants")
    return tools.convert_variables_to_constants_v2(function, lower_control_flow=False)


def in_float32(tf: Any, function: Any) -> Any:
    """Return a TFLite converter of the concrete function, with all its floats as float32."""
    frozen = _frozen(function)
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


def check_same_answers(tf: Any, function: Any, data: bytes, readings: Sequence[str]) -> None:
    """Raise ConvertError if the float32 .tflite `data` answers otherwise than `function`.

    function: concrete, of one float32 image. readings: the ways to feed it that are tried, at most
    two of them; pixels of -1..1 if there is none.
    """
    with suppress_native_output():
        interpreter = Interpreter(model_content=data, num_threads=1)
        interpreter.allocate_tensors()
        [taken], [given] = interpreter.get_input_details(), interpreter.get_output_details()
        height, width, channels = (int(side) for side in taken["shape"][1:])
        picture = picture_of_all_levels((height, width, channels))
        colours = [n for n in readings if channels == 3 or isinstance(READINGS[n].offset, float)]
        for name in colours[:2] or ["-1..1"]:
            image = READINGS[name].feed(picture)
            interpreter.set_tensor(taken["index"], image)
            interpreter.invoke()
            ours = interpreter.get_tensor(given["index"]).astype(np.float64).ravel()
            answer = next(iter(tf.nest.flatten(function(tf.constant(image)))))
            theirs = np.asarray(answer, np.float64).ravel()
            if not np.isfinite(theirs).all():
                continue
            off = np.abs(ours - theirs).max()
            if not off <= _TOLERANCE * max(1.0, np.abs(theirs).max()):
                raise ConvertError(
                    "the .tflite that TensorFlow's converter made answers otherwise than the model,"
                    f" by {off:.2g} on the same picture: does the model draw random numbers?"
                )
