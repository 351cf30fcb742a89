"""ONNX Runtime, which runs `.onnx` files; nothing else imports it, and it may not be installed.

A session's `Run` may be called by several threads at once, and the call releases the GIL. With one
thread a session computes in its caller's, so all that a pool lends of that kind share one, and the
model's weights are in memory once.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as native

from server.errors import BundleError, SettingsError
from server.recognition.preprocessing import Tensor, TensorSpec

# Of a provider's name, which the setting leaves out.
_SUFFIX = "ExecutionProvider"
CPU = "CPU"
# It sends tensors to Microsoft's cloud.
_REMOTE = "Azure"
# Element types of ONNX that have a dtype of NumPy.
_DTYPES = {
    "float": "float32",
    "double": "float64",
    **{name: name for name in ("bool", "float16", "int8", "int16", "int32", "int64")},
    **{name: name for name in ("uint8", "uint16", "uint32", "uint64")},
}
# The folder of weights that are not in the model's file; there is none.
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
# Severities of the runtime's own log, on stderr.
_ERRORS_ONLY = 3
# Characters of the runtime's reason that a message repeats.
_REASON_MAX = 300
_REASON_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
# What it raises; its own errors have no base in common.
_ERRORS: tuple[type[Exception], ...] = (
    ValueError,
    RuntimeError,
    *(e for e in vars(native).values() if isinstance(e, type) and issubclass(e, Exception)),
)


def available_providers() -> tuple[str, ...]:
    """Returns the execution providers that the installed runtime has and that compute here."""
    names = [name.removesuffix(_SUFFIX) for name in onnxruntime.get_available_providers()]
    return tuple(name for name in names if name != _REMOTE)


def check_providers(wanted: Sequence[str]) -> None:
    """Raises SettingsError for a provider that the installed runtime does not have."""
    available = available_providers()
    for name in wanted:
        if name not in available:
            raise SettingsError(
                f"onnx_providers can't have {name}: the installed onnxruntime has"
                f" {', '.join(available)}"
            )


def _reason(error: Exception) -> str:
    """Returns the first line of the runtime's reason, without what only its developers read."""
    line = next(iter(str(error).splitlines()), "")
    return _REASON_PREFIX.sub("", line)[:_REASON_MAX]


def _spec(model: Path, tensor: Any) -> TensorSpec:
    kind = tensor.type.removeprefix("tensor(").removesuffix(")")
    if kind not in _DTYPES:
        raise BundleError(f"{model}: {tensor.name} is {tensor.type}, and no tensor of numbers")
    shape = tuple(size if isinstance(size, int) else -1 for size in tensor.shape)
    return TensorSpec(tensor.name, shape, _DTYPES[kind])


class OnnxSession:
    """A session of ONNX Runtime, which others may use at the same time."""

    def __init__(self, model: Path, session: onnxruntime.InferenceSession) -> None:
        """Raises BundleError for a model whose tensors are not of numbers."""
        self._session = session
        self.inputs = tuple(_spec(model, each) for each in session.get_inputs())
        self.outputs = tuple(_spec(model, each) for each in session.get_outputs())
        self._input_names = [spec.name for spec in self.inputs]
        self._output_names = [spec.name for spec in self.outputs]

    def run(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Runs the model; its outputs are new arrays. Raises as Session.run does."""
        try:
            feed = dict(zip(self._input_names, tensors, strict=True))
            return tuple(self._session.run(self._output_names, feed))
        except (native.InvalidArgument, ValueError) as error:
            raise ValueError(f"ONNX Runtime refuses a tensor: {_reason(error)}") from None
        except _ERRORS as error:
            raise RuntimeError(f"ONNX Runtime can't run the model: {_reason(error)}") from None


class OnnxRuntime:
    """The engine of `.onnx` files, float32 or quantised in the file."""

    platform = "onnx_onnxruntime"
    fault = ""

    def __init__(self, providers: Sequence[str] = ()) -> None:
        """providers: execution providers by `available_providers`, the first choice first; what
        none of them can compute runs on the CPU."""
        self._providers = tuple(dict.fromkeys((*providers, CPU)))

    @property
    def runtime(self) -> str:
        """Name, version and execution providers."""
        return f"onnxruntime {onnxruntime.__version__} ({', '.join(self._providers)})"

    def load(self, model: Path, content: bytes, threads: int, count: int) -> Sequence[OnnxSession]:
        """Makes sessions that share the model if each has one thread.

        Raises BundleError for a file that ONNX Runtime can't run, with an input or output that is
        not of numbers, with weights in other files, or if it can't use an execution provider.
        """
        if threads == 1:
            session = self._open(model, content, threads)
            return [OnnxSession(model, session) for _ in range(count)]
        return [OnnxSession(model, self._open(model, content, threads)) for _ in range(count)]

    def _open(self, model: Path, content: bytes, threads: int) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        # Threads that wait for work would take the cores from frames that are being decoded.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Else a model's weights could be any file that the service may read.
        options.add_session_config_entry(_WEIGHTS_FOLDER, "/dev/null")
        names = [name + _SUFFIX for name in self._providers]
        try:
            session = onnxruntime.InferenceSession(content, options, names, enable_fallback=0)
        except _ERRORS as error:
            raise BundleError(
                f"{model} can't be loaded by ONNX Runtime: {_reason(error)}"
            ) from None
        if unused := [name for name in names if name not in session.get_providers()]:
            raise BundleError(
                f"{model}: ONNX Runtime can't use {unused[0].removesuffix(_SUFFIX)} on this"
                " device; its reason is in the log of the service"
            )
        return session
