"""LiteRT interpreters behind locks, and the pool that lends them; nothing else imports LiteRT.

An interpreter is not thread-safe: between its `set_tensor` and the copy of its output no other
thread may touch it. `invoke()` releases the GIL, so N interpreters of one thread each fill N cores.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter as LiteRT

from server.errors import BundleError
from server.recognition.preprocessing import Tensor, TensorSpec
from server.system.files import MODEL_MAX, read_plain_file


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


def _signature_names(litert: LiteRT) -> tuple[dict[int, str], dict[int, str]]:
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


def _read(model: Path) -> bytes:
    try:
        return read_plain_file(model, MODEL_MAX)
    except OSError as error:
        raise BundleError(f"{model} can't be read: {error.strerror}") from None


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
            self._content = _read(model) if content is None else content
            self._litert = LiteRT(model_content=self._content, num_threads=threads)
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


class InterpreterPool:
    """Lends interpreters of one model, each to one borrower at a time.

    `_free` guards `_idle` and `_wide`; the interpreter that came back last is lent first, while
    its tensors are still in the cache.
    """

    def __init__(self, model: Path, size: int, threads: int = 1, wide: int = 0) -> None:
        """Makes `size` interpreters of `threads` threads each and, if `wide` is not 0, one more of
        `wide` threads for a frame that has the machine to itself.

        Raises BundleError as Interpreter does.
        """
        self.size = size
        self.wide = wide
        self._free = threading.Condition()
        content = _read(model)
        self._idle = [Interpreter(model, threads, content) for _ in range(size)]
        self._wide = [Interpreter(model, wide, content)] if wide else []
        self.inputs = self._idle[0].inputs
        self.outputs = self._idle[0].outputs

    @property
    def busy(self) -> int:
        """Interpreters lent out at this moment."""
        return self.size + bool(self.wide) - len(self._idle) - len(self._wide)

    @contextmanager
    def lease(self, *, alone: bool = False) -> Iterator[Interpreter]:
        """Lends an interpreter for the `with` block; waits for it as long as it takes.

        alone: no other frame is being worked on, so the wide interpreter is lent if there is one.
        """
        with self._free:
            interpreters = self._wide if alone and self._wide else self._idle
            while not interpreters:
                self._free.wait()
            interpreter = interpreters.pop()
        try:
            yield interpreter
        finally:
            with self._free:
                interpreters.append(interpreter)
                self._free.notify_all()  # threads that wait may want the other list

    def each(self, use: Callable[[Interpreter], object]) -> None:
        """Lends every interpreter once, all of them at the same time, to `use`."""
        with ExitStack() as leases:
            lent = [leases.enter_context(self.lease()) for _ in range(self.size)]
            if self.wide:
                lent.append(leases.enter_context(self.lease(alone=True)))
            for interpreter in lent:
                use(interpreter)

    def close(self) -> None:
        """Frees the interpreters. Only for a pool that no one will borrow from again."""
        with self._free:
            self._idle.clear()
            self._wide.clear()
