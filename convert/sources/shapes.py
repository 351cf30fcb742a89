"""A float32 classifier's tensors, read from its .tflite."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from convert.errors import ConvertError
from convert.quantization.graph import kind_of, operators, parse
from convert.terminal import suppress_native_output
from server.recognition.manifest import Layout

Output = Literal["probabilities", "logits", "sigmoid"]

# How far the sum of probabilities may be off 1 by their rounding.
ROUNDED = 1e-3
_SCALING_KINDS = frozenset({"MUL", "DIV", "ADD", "SUB"})


@dataclass(frozen=True, slots=True)
class Shape:
    """A classifier's tensors: input [1, height, width, channels] or, if `layout` is nchw, [1,
    channels, height, width]; output [1, classes].

    scales_inside: it scales or shifts the pixels before all else, as far as is known. output: how
    its last operator leaves the values. readings: names in `input_readings.READINGS` of the ways
    that it could be fed by, if that was tried. mobilenet: it is Keras's MobileNet or MobileNetV2
    from its first layer on.
    """

    height: int
    width: int
    channels: int
    classes: int
    scales_inside: bool
    output: Output
    readings: tuple[str, ...] | None = None
    mobilenet: bool = False
    layout: Layout = "nhwc"


def layout_of(shape: Sequence[int]) -> Layout | None:
    """Return the order of dimensions of an input tensor's `shape`; None if it is no image of 1 or 3
    channels."""
    if len(shape) != 4:
        return None
    if shape[3] in (1, 3):
        return "nhwc"
    return "nchw" if shape[1] in (1, 3) else None


def describe(model: bytes) -> Shape:
    """Return the tensors of a float32 classifier. Raises ConvertError for bytes that are none."""
    with suppress_native_output():
        operators(model)
        parsed = parse(model)
    return describe_parsed(model, parsed)


def describe_parsed(model: bytes, parsed: Any) -> Shape:
    """Return the tensors of a classifier, quantised or not. parsed: `model` as `schema.ModelT`.

    Raises ConvertError if it does not run, or is no classifier of one image.
    """
    with suppress_native_output():
        try:
            interpreter = Interpreter(model_content=model, num_threads=1)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ConvertError(f"LiteRT can't run this model: {first_line(error)}") from None
    taken, answers = interpreter.get_input_details(), interpreter.get_output_details()
    image = [int(n) for n in taken[0]["shape"]]
    if any(size < 0 for size in taken[0]["shape_signature"][1:]):
        raise ConvertError("the model takes images of any size: convert it for one size first")
    layout = layout_of(image)
    if layout is None:
        raise ConvertError(
            f"the model takes {image}; it must take [1, height, width, channels] or [1, channels,"
            " height, width] with 1 or 3 channels"
        )
    first_side = 1 if layout == "nhwc" else 2
    if len(taken) != 1 or len(answers) != 1:
        raise ConvertError(
            f"the model has {len(taken)} inputs and {len(answers)} outputs; a classifier has one of"
            " each"
        )
    if answers[0]["dtype"] not in (np.float32, np.uint8, np.int8):
        raise ConvertError(
            f"the model answers {np.dtype(answers[0]['dtype'])}; a classifier answers float32, or"
            " uint8 or int8 if it is quantised"
        )
    answer = [int(n) for n in answers[0]["shape"]]
    if math.prod(answer) != answer[-1]:
        raise ConvertError(
            f"the model answers {answer}; a classifier answers [1, classes], one value a class"
        )
    graph = parsed.subgraphs[0]
    first = next((op for op in graph.operators if graph.inputs[0] in op.inputs), None)
    return Shape(
        height=image[first_side],
        width=image[first_side + 1],
        channels=image[3 if layout == "nhwc" else 1],
        classes=answer[-1],
        scales_inside=first is not None and kind_of(parsed, first) in _SCALING_KINDS,
        # LOGISTIC values are probabilities already, each label's own.
        output="probabilities"
        if _ends_in_probabilities(parsed) or (answer[-1] > 1 and _adds_up(interpreter))
        else "logits",
        layout=layout,
    )


def _ends_in_probabilities(parsed: Any) -> bool:
    """True if the last operator that computes, before a change of dtype or shape, makes them."""
    graph = parsed.subgraphs[0]
    makers = {int(i): op for op in graph.operators for i in op.outputs}
    last = makers.get(int(graph.outputs[0]))
    while last is not None and kind_of(parsed, last) in ("DEQUANTIZE", "QUANTIZE", "RESHAPE"):
        last = makers.get(int(last.inputs[0]))
    return last is not None and kind_of(parsed, last) in ("SOFTMAX", "LOGISTIC")


def _adds_up(interpreter: Interpreter) -> bool:
    """Return True if the answers to noise are probabilities that add up to 1.

    The softmax may come before a reshape, or before a mean of several outputs."""
    [taken], [answers] = interpreter.get_input_details(), interpreter.get_output_details()
    if taken["dtype"] != np.float32:
        return False
    noise = np.random.default_rng(0)
    for brightest in (1.0, 255.0):
        image = noise.uniform(0, brightest, taken["shape"]).astype(np.float32)
        interpreter.set_tensor(taken["index"], image)
        interpreter.invoke()
        values = interpreter.get_tensor(answers["index"])
        if not (values.min() >= 0 and abs(values.sum() - 1) < ROUNDED):
            return False
    return True


def first_line(error: BaseException) -> str:
    """Return the first line of a message; TensorFlow's run to pages."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
