"""LiteRT, which runs `.tflite` files; nothing else of the server imports it.

An interpreter is not thread-safe: between its `set_tensor` and the copy of its output no other
thread may touch it. `invoke()` releases the GIL, so N interpreters of one thread each fill N cores.
"""

import threading
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter as LiteRTInterpreter

from server.errors import BundleError
from server.recognition.manifest import read_model
from server.recognition.preprocessing import Tensor, TensorSpec


def runtime() -> str:
    """Returns name and version of the runtime that executes the models."""
    return f"ai-edge-litert {version('ai-edge-litert')}"


def _spec(details: dict[str, Any], names: dict[int, str]) -> TensorSpec:
    scale, zero_point = details["quantization"]
    signature = details.get("shape_signature", details["shape"])
    shape = tuple(int(n) for n in (signature if len(signature) else details["shape"]))
    return TensorSpec(
        details["name"],
        shape,
        np.dtype(details["dtype"]).name,
        float(scale),
        int(zero_point),
        names.get(details["index"], ""),
    )


def _signature_names(litert: LiteRTInterpreter) -> tuple[dict[int, str], dict[int, str]]:
    """Returns the names that the model's only signature gives its inputs and outputs, by tensor
    index."""
    signatures = litert.get_signature_list()
    if len(signatures) != 1:
        return {}, {}
    runner = litert.get_signature_runner(next(iter(signatures)))
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    return (
        {details["index"]: name for name, details in inputs.items()},
        {details["index"]: name for name, details in outputs.items()},
    )


class Interpreter:
    """One LiteRT interpreter and the lock that guards it.

    `_lock` guards the interpreter's tensors from `set_tensor` to the copy of its outputs.
    Raises BundleError if the file is not a model that LiteRT can run.
    """

    def __init__(self, model: Path, threads: int, content: bytes | None = None) -> None:
        """content: the file's bytes, if they were read already; interpreters made with the same
        object share them."""
        self._lock = threading.Lock()
        try:
            self._content = read_model(model) if content is None else content
            self._litert = LiteRTInterpreter(model_content=self._content, num_threads=threads)
            self._litert.allocate_tensors()
        except (ValueError, RuntimeError, OSError) as error:
            raise BundleError(f"{model} can't be loaded by LiteRT: {error}") from None
        inputs, outputs = self._litert.get_input_details(), self._litert.get_output_details()
        input_names, output_names = _signature_names(self._litert)
        self.inputs = tuple(_spec(details, input_names) for details in inputs)
        self.outputs = tuple(_spec(details, output_names) for details in outputs)
        self._input_indices = [details["index"] for details in inputs]
        self._output_indices = [details["index"] for details in outputs]

    def run(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Sets the inputs, invokes, and returns copies of the outputs, in the model's order.

        Each tensor has its input's dtype and shape. Raises ValueError if one does not.
        """
        with self._lock:
            for index, tensor in zip(self._input_indices, tensors, strict=True):
                self._litert.set_tensor(index, tensor)
            self._litert.invoke()
            return tuple(self._litert.get_tensor(index) for index in self._output_indices)


class LiteRT:
    """The engine of `.tflite` files; the only one that is always installed."""

    platform = "tensorflow_lite"

    @property
    def runtime(self) -> str:
        """Name and version."""
        return runtime()

    def load(self, model: Path, content: bytes, threads: int, count: int) -> Sequence[Interpreter]:
        """Makes interpreters that share `content`. Raises BundleError as Interpreter does."""
        return [Interpreter(model, threads, content) for _ in range(count)]
