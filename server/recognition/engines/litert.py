"""LiteRT, which runs `.tflite` files; nothing else of the server imports it.

An interpreter is not thread-safe: between its `set_tensor` and the copy of its output no other
thread may touch it. `invoke()` releases the GIL, so N interpreters of one thread each fill N cores.
"""

import ctypes
import logging
import subprocess
import sys
import threading
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter as LiteRTInterpreter
from ai_edge_litert.interpreter import load_delegate

from server.errors import BundleError
from server.recognition.manifest import read_model
from server.recognition.preprocessing import Tensor, TensorSpec

logger = logging.getLogger(__name__)

# The operator of a model that is compiled for an Edge TPU, by its name in the file.
EDGE_TPU_OPERATOR = b"edgetpu-custom-op"
_MAKE_DELEGATE = "tflite_plugin_create_delegate"
# Loads a library in a process of its own, which that may take along, such as one that is cut off.
_TRY_LIBRARY = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
TRY_TIMEOUT_S = 30.0


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

    def __init__(
        self,
        model: Path,
        threads: int,
        content: bytes | None = None,
        delegates: Sequence[Any] = (),
    ) -> None:
        """content: the file's bytes, if they were read already; interpreters made with the same
        object share them. delegates: of `load_delegate`, that may take operators."""
        self._lock = threading.Lock()
        try:
            self._content = read_model(model) if content is None else content
            self._litert = LiteRTInterpreter(
                model_content=self._content,
                num_threads=threads,
                experimental_delegates=list(delegates) or None,
            )
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


class DelegateUse:
    """The use of a delegate by one model, until it fails: then the CPU computes, for good.

    A delegate that hangs or ends the process later than when its library is loaded is not saved by
    this.
    """

    def __init__(self, path: str, options: Sequence[str] = ()) -> None:
        """path: of its library. options: NAME=VALUE each."""
        # As it is checked: dlopen(3) would look for a bare name elsewhere.
        self.path = str(Path(path).absolute())
        self.fault = ""
        self._was_tried = False
        self._options = dict(each.split("=", 1) for each in options)
        self._lock = threading.Lock()

    def load(self) -> Any:
        """Returns a new delegate. Raises ValueError or OSError if the library gives none."""
        with self._lock:
            if not self._was_tried:
                self._try_library()
                self._was_tried = True
        if not hasattr(ctypes.CDLL(self.path), _MAKE_DELEGATE):
            raise ValueError(f"{self.path} is no delegate: it lacks {_MAKE_DELEGATE}")
        return load_delegate(self.path, self._options)

    def _try_library(self) -> None:
        """Raises ValueError if the library ends a process that loads it, or never comes back."""
        command = [sys.executable, "-I", "-S", "-c", _TRY_LIBRARY, self.path]
        try:
            done = subprocess.run(command, capture_output=True, timeout=TRY_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise ValueError(f"{self.path} was not loaded within {TRY_TIMEOUT_S:g} s") from None
        if done.returncode < 0:
            raise ValueError(
                f"{self.path} ends a process that loads it (signal {-done.returncode})"
            )

    def fail(self, model: Path, reason: str, when: str) -> None:
        """Ends the use; logs the first failure. when: load or service."""
        with self._lock:
            is_first, self.fault = not self.fault, self.fault or reason
        if is_first:
            fields = {"model": str(model), "delegate": self.path, "reason": reason, "when": when}
            logger.error("delegate failed", extra={"fields": fields})


class DelegatedInterpreter:
    """An interpreter by a delegate, or by the CPU once that has failed in this or another
    interpreter of the model. Raises BundleError if neither can run the model."""

    def __init__(self, model: Path, threads: int, content: bytes, use: DelegateUse) -> None:
        self._model = model
        self._threads = threads
        self._content = content
        self._use = use
        self._on_cpu = False
        self._interpreter = self._delegated() or self._by_cpu()
        self.inputs = self._interpreter.inputs
        self.outputs = self._interpreter.outputs

    def _delegated(self) -> Interpreter | None:
        if self._use.fault:
            return None
        try:
            return Interpreter(self._model, self._threads, self._content, [self._use.load()])
        except (BundleError, ValueError, OSError) as error:
            reason = str(error).removeprefix(f"{self._model} can't be loaded by LiteRT: ")
            self._use.fail(self._model, " ".join(reason.split()), "load")
            return None

    def _by_cpu(self) -> Interpreter:
        if EDGE_TPU_OPERATOR in self._content:
            raise BundleError(
                f"{self._model} is compiled for an Edge TPU, and can't run without its delegate,"
                f" which failed: {self._use.fault}"
            )
        interpreter = Interpreter(self._model, self._threads, self._content)
        self._on_cpu = True
        return interpreter

    def run(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Runs the model; if the delegate fails, once more by the CPU. Raises as Session.run."""
        if not self._on_cpu and not self._use.fault:
            try:
                return self._interpreter.run(tensors)
            except RuntimeError as error:
                self._use.fail(self._model, " ".join(str(error).split()), "service")
        if not self._on_cpu:
            try:
                self._interpreter = self._by_cpu()
            except BundleError as error:
                raise RuntimeError(str(error)) from None
        return self._interpreter.run(tensors)


class LiteRT:
    """The engine of `.tflite` files; the only one that is always installed."""

    platform = "tensorflow_lite"

    def __init__(self, delegate: str = "", options: Sequence[str] = ()) -> None:
        """delegate, options: as in the settings."""
        self._use = DelegateUse(delegate, options) if delegate else None

    @property
    def runtime(self) -> str:
        """Name and version, and the delegate if there is one."""
        if self._use is None:
            return runtime()
        name = Path(self._use.path).name
        return f"{runtime()} ({f'CPU, {name} failed' if self._use.fault else name})"

    @property
    def fault(self) -> str:
        """Return why the delegate is not used any more; '' if nothing is wrong."""
        return self._use.fault if self._use else ""

    def load(
        self, model: Path, content: bytes, threads: int, count: int
    ) -> Sequence[Interpreter | DelegatedInterpreter]:
        """Makes interpreters that share `content`. Raises BundleError as Interpreter does, and for
        a model of an Edge TPU without a delegate."""
        if self._use is not None:
            use = self._use
            return [DelegatedInterpreter(model, threads, content, use) for _ in range(count)]
        if EDGE_TPU_OPERATOR in content:
            raise BundleError(
                f"{model} is compiled for an Edge TPU: set `delegate` to the path of"
                " libedgetpu.so.1, or serve the model that it was compiled from"
            )
        return [Interpreter(model, threads, content) for _ in range(count)]
