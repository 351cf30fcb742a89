"""Extracts a model's operators before its first operator with weights, as a function."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray

from convert.quantization.graph import kind_of, parse

_WEIGHTED = frozenset(
    {
        "BatchMatMul",
        "BatchMatMulV2",
        "BatchMatMulV3",
        "Conv2D",
        "Conv2DBackpropInput",
        "Conv3D",
        "DepthwiseConv2dNative",
        "Einsum",
        "MatMul",
    }
)
_WEIGHTED_LITE = frozenset(
    {"BATCH_MATMUL", "CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"}
)
# A product with so few constants turns colours to grey or another order, and learns nothing.
_MAX_COLOUR_WEIGHTS, _MAX_COLOURS = 16, 3
# First and second layers of Keras's MobileNetV2 and MobileNet, as far as their names go.
_MOBILENET_LAYERS = (("Conv1", "bn_Conv1"), ("conv1", "conv_dw_1"))


class TensorFlowOpening:
    """The opening of a concrete TensorFlow function of one image.

    Raises ValueError if the image reaches no operator with weights.
    """

    def __init__(self, tf: Any, function: Any) -> None:
        frozen = import_module("tensorflow.python.framework.convert_to_constants")
        frozen = frozen.convert_variables_to_constants_v2(function, lower_control_flow=False)
        self._tf, self._graph = tf, frozen.graph.as_graph_def()
        self._nodes = {node.name: node for node in self._graph.node}
        [source] = [t for t in frozen.inputs if t.dtype != tf.resource]
        self._source, self._shapes = source, frozen.graph
        found = list(self._entries(source.op.name))
        if not found:
            raise ValueError("no operator with weights")
        self._first = found[0][0]
        entries = list(dict.fromkeys(name for _, name in found))
        self._run = tf.compat.v1.wrap_function(
            lambda image: tf.graph_util.import_graph_def(
                self._graph, input_map={source.name: image}, return_elements=entries
            ),
            [tf.TensorSpec(source.shape, source.dtype)],
        )

    def __call__(self, image: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """float32 [1, height, width, channels] -> the tensors that reach weights."""
        out = self._run(self._tf.constant(image))
        return [np.asarray(value, np.float32) for value in out]

    @property
    def is_mobilenet(self) -> bool:
        """True if the layers are named as those of Keras's MobileNet and MobileNetV2, which are
        trained on pixels of -1..1."""
        return _is_mobilenet(self._first, self._nodes)

    def _entries(self, source: str) -> Iterator[tuple[str, str]]:
        """Operators with weights and the tensors of the image that reach them, by name."""
        readers = defaultdict(list)
        for node in self._graph.node:
            for place, name in enumerate(node.input):
                if not name.startswith("^"):
                    readers[name.partition(":")[0]].append((node, place, name))
        waiting, seen = [source], {source}
        while waiting:
            for node, place, name in readers[waiting.pop()]:
                if node.op in _WEIGHTED and not self._is_colour(node, place, name):
                    yield node.name, name if ":" in name else f"{name}:0"
                elif node.name not in seen:
                    seen.add(node.name)
                    waiting.append(node.name)

    def _is_colour(self, node: Any, place: int, name: str) -> bool:
        """True for a product that maps the colours of each pixel to at most three others."""
        weights = self._constant(node.input[1]) if place == 0 and node.op != "Einsum" else None
        if weights is None or weights.size > _MAX_COLOUR_WEIGHTS:
            return False
        shape = self._shapes.get_tensor_by_name(name if ":" in name else f"{name}:0").shape
        pixels = shape[:-1].num_elements() if shape.rank is not None else None
        outer = weights.size if node.op == "DepthwiseConv2dNative" else weights.shape[-1]
        return outer <= _MAX_COLOURS and (pixels is None or pixels > 1)

    def _constant(self, name: str) -> NDArray[Any] | None:
        node = self._nodes[name.partition(":")[0]]
        while node.op in ("Identity", "Cast", "Reshape", "ReadVariableOp"):
            node = self._nodes[node.input[0].partition(":")[0]]
        if node.op != "Const":
            return None
        return np.asarray(self._tf.make_ndarray(node.attr["value"].tensor))


class LiteOpening:
    """The opening of a .tflite of one float32 image, whose channels may come first.

    Raises ValueError if the image reaches no operator with weights.
    """

    def __init__(self, model: bytes) -> None:
        parsed = parse(model)
        graph = parsed.subgraphs[0]
        self._names = [tensor.name.decode(errors="replace") for tensor in graph.tensors]
        reached, entries, self._first = {int(graph.inputs[0])}, [], ""
        self._responses: list[int] = []
        for op in graph.operators:
            taken = [int(i) for i in op.inputs if int(i) in reached]
            if taken and kind_of(parsed, op) in _WEIGHTED_LITE:
                entries += taken
                self._responses.append(int(op.outputs[0]))
                self._first = self._first or self._names[int(op.outputs[0])]
            elif taken:
                reached |= {int(i) for i in op.outputs}
        if not entries:
            raise ValueError("no operator with weights")
        self._entries = list(dict.fromkeys(entries))
        self._interpreter = Interpreter(
            model_content=model,
            num_threads=1,
            # XNNPACK does not keep the tensors between its operators.
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            experimental_preserve_all_tensors=True,
        )
        self._interpreter.allocate_tensors()

    def __call__(self, image: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """float32 [1, height, width, channels] -> the tensors that reach weights."""
        self._invoke(image)
        return [self._tensor(i) for i in self._entries]

    def responses(self, image: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """float32 [1, height, width, channels] -> what the first operators with weights answer,
        [..., channels] each, in the units of their tensors."""
        self._invoke(image)
        return [self._tensor(i) for i in self._responses]

    def _invoke(self, image: NDArray[np.float32]) -> None:
        [taken] = self._interpreter.get_input_details()
        if tuple(taken["shape"]) != image.shape:
            image = np.ascontiguousarray(image.transpose(0, 3, 1, 2))
        self._interpreter.set_tensor(taken["index"], image)
        self._interpreter.invoke()

    def _tensor(self, index: int) -> NDArray[np.float32]:
        return np.asarray(self._interpreter.get_tensor(index), np.float32)

    @property
    def is_mobilenet(self) -> bool:
        """As TensorFlowOpening's."""
        return _is_mobilenet(self._first, self._names)


def _is_mobilenet(first: str, names: Iterable[str]) -> bool:
    parts = {part for name in names for part in re.split("[/;]", name)}
    return any(
        any(part.startswith(layer) for part in re.split("[/;]", first))
        and any(part.startswith(second) for part in parts)
        for layer, second in _MOBILENET_LAYERS
    )
