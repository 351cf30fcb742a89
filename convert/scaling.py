"""Whether a TensorFlow model scales its pixels itself, read before the converter hides it.

The converter folds a multiplication into the weights of the convolution behind it, so that the
.tflite no longer shows what the model did to its pixels.
"""

from collections.abc import Iterable, Mapping
from typing import Any

# TensorFlow's operators that scale or shift, and those that leave values as they are.
_SCALING = frozenset({"Mul", "RealDiv", "Div", "DivNoNan", "Add", "AddV2", "Sub"})
_PASSING = frozenset(
    {
        "Cast",
        "ExpandDims",
        "GatherV2",
        "Identity",
        "MirrorPad",
        "Pad",
        "PadV2",
        "Reshape",
        "ResizeBilinear",
        "ResizeNearestNeighbor",
        "ReverseV2",
        "Squeeze",
        "StridedSlice",
        "Transpose",
    }
)
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})


def layer_scales(model: Any) -> bool:
    """Whether a `keras.Model` has a layer that scales its pixels."""
    return any(
        type(layer).__name__ in ("Rescaling", "Normalization") or layer_scales(layer)
        for layer in getattr(model, "layers", ())
    )


def function_scales(function: Any) -> bool:
    """Whether a concrete TensorFlow function multiplies, divides or shifts the values of its one
    argument before anything else is computed from them."""
    graph = function.graph.as_graph_def()
    bodies = {body.signature.name: body for body in graph.library.function}
    # The variables that the function captures come after its argument.
    return _scaled(graph.node, function.inputs[0].op.name, bodies)


def _scaled(nodes: Iterable[Any], source: str, bodies: Mapping[str, Any]) -> bool:
    """Whether a node scales what `source` gives; a name there is NODE, NODE:0 or NODE:OUTPUT:0."""
    for node in nodes:
        places = [i for i, name in enumerate(node.input) if name.partition(":")[0] == source]
        if not places:
            continue
        if node.op in _SCALING:
            return True
        if node.op in _PASSING and places[0] == 0 and _scaled(nodes, node.name, bodies):
            return True
        if node.op in _CALLS:
            body = bodies[node.attr["f"].func.name]
            inner = body.signature.input_arg[places[0]].name
            if _scaled(body.node_def, inner, bodies):
                return True
    return False
