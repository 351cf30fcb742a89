"""onnx_network.py TFLITE ONNX: a float32 .tflite as the same network in ONNX, channels first.

For `engines.py`, which compares engines by one network. Knows the operators of a MobileNetV2 with a
classifier behind it, and refuses all others. Needs the package onnx.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 9
INPUT, OUTPUT, ZERO, SIX = "image", "probabilities", "zero", "six"
OPERATORS = {
    number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)
}
DTYPES = {schema.TensorType.FLOAT32: np.float32, schema.TensorType.INT32: np.int32}


class Network:
    """The ONNX graph of the first graph of a .tflite."""

    def __init__(self, path: Path) -> None:
        self._model = flatbuffer_utils.read_model(str(path))
        self._graph = self._model.subgraphs[0]
        self._nodes: list[NodeProto] = []
        self._constants = [
            numpy_helper.from_array(np.array(0, np.float32), ZERO),
            numpy_helper.from_array(np.array(6, np.float32), SIX),
        ]
        # The name in ONNX of each tensor that was computed.
        self._names = {int(self._graph.inputs[0]): INPUT}
        for number, operator in enumerate(self._graph.operators):
            self._names[int(operator.outputs[0])] = self._add(f"t{number}", operator)

    def model(self) -> onnx.ModelProto:
        """Return the checked model: [1, 3, height, width] to [1, classes]."""
        height, width = self._shape(self._graph.inputs[0])[1:3]
        classes = self._shape(self._graph.outputs[0])[-1]
        graph = helper.make_graph(
            self._nodes,
            "network",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [1, 3, height, width])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [1, classes])],
            self._constants,
        )
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        return model

    def _shape(self, tensor: int) -> list[int]:
        return [int(size) for size in self._graph.tensors[tensor].shape]

    def _weights(self, tensor: int) -> NDArray[Any]:
        found = self._graph.tensors[tensor]
        data = bytes(self._model.buffers[found.buffer].data)
        return np.frombuffer(data, DTYPES[found.type]).reshape(found.shape)

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _add(self, name: str, operator: Any) -> str:
        """Add the nodes of one operator. Return the name of its output. Raises SystemExit for one
        that is not known here."""
        code = self._model.operatorCodes[operator.opcodeIndex]
        kind = OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]
        options = operator.builtinOptions
        inputs = [int(tensor) for tensor in operator.inputs]
        first = self._names[inputs[0]]
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            made = self._convolution(name, first, inputs, options, kind == "DEPTHWISE_CONV_2D")
            return self._activation(name, made, options.fusedActivationFunction)
        if kind == "ADD":
            made = self._node("Add", [first, self._names[inputs[1]]], f"{name}_sum")
            return self._activation(name, made, options.fusedActivationFunction)
        if kind == "MEAN":
            pooled = self._node("GlobalAveragePool", [first], f"{name}_pooled")
            return self._node("Flatten", [pooled], name)
        if kind == "FULLY_CONNECTED":
            weights = self._constant(f"{name}_weights", self._weights(inputs[1]))
            bias = self._constant(f"{name}_bias", self._weights(inputs[2]))
            return self._node("Gemm", [first, weights, bias], name, transB=1)
        if kind == "SOFTMAX":
            return self._node("Softmax", [first], OUTPUT, axis=-1)
        raise SystemExit(f"{kind} is not known here")

    def _convolution(
        self, name: str, first: str, inputs: list[int], options: Any, by_channel: bool
    ) -> str:
        # OHWI to OIHW; a depthwise kernel is 1HWO.
        order = (3, 0, 1, 2) if by_channel else (0, 3, 1, 2)
        kernel = self._weights(inputs[1]).transpose(order)
        weights = self._constant(f"{name}_weights", kernel)
        bias = self._constant(f"{name}_bias", self._weights(inputs[2]))
        return self._node(
            "Conv",
            [first, weights, bias],
            f"{name}_convolution",
            strides=[options.strideH, options.strideW],
            auto_pad="SAME_UPPER" if options.padding == schema.Padding.SAME else "VALID",
            group=kernel.shape[0] if by_channel else 1,
            kernel_shape=list(kernel.shape[2:]),
        )

    def _activation(self, name: str, made: str, kind: int) -> str:
        if kind == schema.ActivationFunctionType.NONE:
            return made
        if kind == schema.ActivationFunctionType.RELU6:
            return self._node("Clip", [made, ZERO, SIX], name)
        raise SystemExit(f"the activation {kind} is not known here")


def main() -> int:
    """Write the network. Returns the exit code."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    onnx.save(Network(Path(sys.argv[1])).model(), sys.argv[2])
    return 0


if __name__ == "__main__":
    sys.exit(main())
