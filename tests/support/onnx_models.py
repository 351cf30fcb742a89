"""ONNX models of a few hundred bytes; needs the package onnx."""

from typing import Any

import msgspec
import pytest
from tiny_models import RECIPE, SIDE

onnx: Any = pytest.importorskip("onnx", reason="the package onnx makes the models")

NCHW = msgspec.structs.replace(RECIPE, layout="nchw")


def colors_model(**weights: Any) -> bytes:
    """`colors` of tiny_models with channels first and an open batch: softmax(20 * means).
    weights: fields of the tensor that holds the 20, if it is not in the file."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    factor = helper.make_tensor("factor", kind, [3], [20.0] * 3)
    if weights:
        factor = onnx.TensorProto(name="factor", data_type=kind, dims=[3], **weights)
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["means"]),
        helper.make_node("Mul", ["means", "factor"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    image = helper.make_tensor_value_info("image", kind, ["n", 3, SIDE, SIDE])
    answer = helper.make_tensor_value_info("probabilities", kind, ["n", 3])
    graph = helper.make_graph(nodes, "colors", [image], [answer], [factor])
    opset = [helper.make_opsetid("", 13)]
    model: bytes = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    return model
