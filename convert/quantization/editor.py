"""Adds tensors and operators to a .tflite, and reads what they answer."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from numpy.typing import NDArray

from convert.data.frames import tensors
from server.recognition.engines.litert import Interpreter
from server.recognition.manifest import Recipe
from server.system.resources import available_cores

Floats = NDArray[np.float32]

_FLOAT = schema.TensorType.FLOAT32
_QUANTISED = (schema.TensorType.INT8, schema.TensorType.UINT8)


class GraphEditor:
    """A .tflite being added to. model, graph: as the schema has them."""

    def __init__(self, model: bytes) -> None:
        self.model = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
        self.graph = self.model.subgraphs[0]

    @property
    def output(self) -> int:
        """The tensor that is the model's first output."""
        return int(self.graph.outputs[0])

    @output.setter
    def output(self, tensor: int) -> None:
        old = self.output
        self.graph.outputs = [tensor, *(int(i) for i in self.graph.outputs[1:])]
        for signature in self.model.signatureDefs or ():
            for entry in signature.outputs:
                if entry.tensorIndex == old:
                    entry.tensorIndex = tensor

    def shape(self, tensor: int) -> list[int]:
        """Return the sides of a tensor."""
        return [int(side) for side in self.graph.tensors[tensor].shape]

    def is_quantised(self, tensor: int) -> bool:
        """Return True for a tensor of whole numbers that stand for real ones."""
        return self.graph.tensors[tensor].type in _QUANTISED

    def real(self, tensor: int) -> int:
        """Return a tensor as float32; adds the operator for one that is quantised."""
        if not self.is_quantised(tensor):
            return tensor
        return self.add("DEQUANTIZE", [tensor], self.shape(tensor))

    def constant(self, values: NDArray[Any]) -> int:
        """Adds a constant tensor, float32 or int32, and returns its number."""
        buffer = schema.BufferT()
        kind = schema.TensorType.INT32 if values.dtype == np.int32 else _FLOAT
        content = values if values.dtype == np.int32 else values.astype(np.float32)
        buffer.data = np.frombuffer(content.tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        return self._tensor(list(values.shape), kind, len(self.model.buffers) - 1)

    def add(self, kind: str, inputs: list[int], shape: list[int], options: Any = None) -> int:
        """Adds an operator with one float32 output, and returns the output's number."""
        output = self._tensor(shape, _FLOAT, 0)
        op = schema.OperatorT()
        op.opcodeIndex, op.inputs, op.outputs = self._code(kind), inputs, [output]
        if options is not None:
            op.builtinOptions = options
            name = type(options).__name__.removesuffix("T")
            op.builtinOptionsType = getattr(schema.BuiltinOptions, name)
        self.graph.operators.append(op)
        return output

    def answer(self, tensor: int, name: str) -> None:
        """Makes a tensor the model's last output, called `name` in its signature too."""
        self.graph.tensors[tensor].name = name.encode()
        self.graph.outputs = [*(int(i) for i in self.graph.outputs), tensor]
        for signature in self.model.signatureDefs or ():
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name.encode(), tensor
            signature.outputs = [*signature.outputs, entry]

    def written(self) -> bytes:
        """The model with what was added."""
        return bytes(flatbuffer_utils.convert_object_to_bytearray(self.model))

    def _tensor(self, shape: list[int], kind: int, buffer: int) -> int:
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = shape, kind, buffer
        tensor.name = f"added/{len(self.graph.tensors)}".encode()
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def _code(self, kind: str) -> int:
        """The place of an operator's code, which is added if the model has no such operator."""
        number = getattr(schema.BuiltinOperator, kind)
        for place, code in enumerate(self.model.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == number:
                return place
        code = schema.OperatorCodeT()
        code.builtinCode = number
        code.deprecatedBuiltinCode = min(number, 127)
        code.version = 1
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1


def read_last(model: bytes, frames: Sequence[Path] | NDArray[np.uint8], recipe: Recipe) -> Floats:
    """The last output of a model for each frame: [frames, values]. frames: as in `tensors`.

    Raises ConvertError naming a file that is not a readable image.
    """
    threads = available_cores()
    interpreters = [Interpreter(Path("model.tflite"), 1, model) for _ in range(threads)]
    spec = interpreters[0].inputs[0]

    def one(number: int) -> Floats:
        [frame] = tensors(frames[number : number + 1], recipe, spec)
        return np.asarray(interpreters[number % threads].run([frame])[-1][0], np.float32)

    with ThreadPoolExecutor(threads) as workers, ExitStack() as stack:
        # Without it a damaged frame would be reported only after all the others had run.
        stack.callback(workers.shutdown, cancel_futures=True)
        return np.stack(list(workers.map(one, range(len(frames)))))
