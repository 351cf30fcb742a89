"""The protocol of engines, and which of them runs a model file.

The module of an engine is the only one that imports its runtime, and is imported itself only for a
model that needs it. This module imports nothing heavy.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from server.errors import BundleError, SettingsError
from server.recognition.manifest import EngineChoice, EngineName
from server.system.extras import install_command

if TYPE_CHECKING:
    from server.recognition.preprocessing import Tensor, TensorSpec

# The engines that can run a kind of model file, the usual one first.
_RUNNABLE: dict[str, tuple[EngineName, ...]] = {
    ".tflite": ("litert", "openvino"),
    ".onnx": ("onnxruntime", "openvino"),
    ".xml": ("openvino",),
}
# The name of an engine, and the extra that installs it; LiteRT is always there.
_EXTRAS: dict[EngineName, tuple[str, str]] = {
    "onnxruntime": ("ONNX Runtime", "onnx"),
    "openvino": ("OpenVINO", "openvino"),
}
OPENVINO_DEVICE = "CPU"


class EngineOptions(msgspec.Struct, frozen=True):
    """The engines' settings of a device; fields and values are those of the settings."""

    engine: EngineChoice = "auto"
    onnx_providers: tuple[str, ...] = ()
    openvino_device: str = OPENVINO_DEVICE
    delegate: str = ""
    delegate_options: tuple[str, ...] = ()


class Session(Protocol):
    """A model that is ready to run, for one thread at a time. Its memory is freed with the last
    reference to it."""

    @property
    def inputs(self) -> "tuple[TensorSpec, ...]":
        """The model's inputs in its order; an open dimension is -1."""

    @property
    def outputs(self) -> "tuple[TensorSpec, ...]":
        """The model's outputs, likewise."""

    def run(self, tensors: "Sequence[Tensor]") -> "tuple[Tensor, ...]":
        """Returns the outputs for the inputs `tensors`, both in the model's order; nobody else
        writes into them.

        Raises ValueError if a tensor has not its input's dtype and shape, and RuntimeError if the
        model can't be run on it.
        """


class Engine(Protocol):
    """Makes sessions."""

    @property
    def runtime(self) -> str:
        """Name and version of the runtime, and what it runs on if that is a choice."""

    @property
    def fault(self) -> str:
        """Return why it does not run its models as asked; '' if it does."""

    @property
    def platform(self) -> str:
        """The name of its models' platform in the Open Inference Protocol."""

    def load(self, model: Path, content: bytes, threads: int, count: int) -> Sequence[Session]:
        """Makes `count` sessions of `threads` threads each, which share what they can.

        content: the bytes of the file `model`, whose path is for messages. Raises BundleError if
        the engine can't run it.
        """


def _missing(engine: EngineName, needed_by: object) -> str:
    """Says with which command an engine is installed; '' if it is."""
    if engine not in _EXTRAS or find_spec(engine):
        return ""
    name, extra = _EXTRAS[engine]
    return f"{needed_by} needs {name}, which is not installed: {install_command(extra)}"


def runnable(model: Path) -> tuple[EngineName, ...]:
    """Returns the engines that can run a model file, by its ending, the usual one first; they may
    not be installed."""
    return _RUNNABLE.get(model.suffix, ("litert",))


def installed(model: Path) -> tuple[EngineName, ...]:
    """Returns those of `runnable` that are installed."""
    return tuple(name for name in runnable(model) if not _missing(name, model))


def pick_engine(model: Path, wanted: EngineChoice = "auto") -> EngineName:
    """Returns the engine of a model file: `wanted`, or the first that is installed.

    Raises BundleError if it can't run such a file, or, with the command that installs it, if it is
    not installed.
    """
    names = runnable(model)
    if wanted != "auto":
        if wanted not in names:
            raise BundleError(f"{model} can't be run by {wanted}: say {' or '.join(names)}")
        name = wanted
    else:
        name = next(iter(installed(model)), names[0])
    if missing := _missing(name, model):
        raise BundleError(missing)
    return name


def check_options(options: EngineOptions) -> None:
    """Raises SettingsError for an engine that is not installed, or lacks what is asked of it."""
    if options.engine != "auto" and (missing := _missing(options.engine, "engine")):
        raise SettingsError(missing)
    if options.onnx_providers:
        if missing := _missing("onnxruntime", "onnx_providers"):
            raise SettingsError(missing)
        from server.recognition.engines.onnx import check_providers

        check_providers(options.onnx_providers)
    if options.delegate and not Path(options.delegate).is_file():
        raise SettingsError(f"delegate can't be {options.delegate}: there is no such file")
    if options.delegate_options and not options.delegate:
        raise SettingsError("delegate_options needs delegate, the path of a library")
    for each in options.delegate_options:
        if each.find("=") < 1:
            raise SettingsError(f"delegate_options can't have {each}: say NAME=VALUE")
    if options.openvino_device != OPENVINO_DEVICE:
        if missing := _missing("openvino", "openvino_device"):
            raise SettingsError(missing)
        from server.recognition.engines.openvino import check_device

        check_device(options.openvino_device)


def find_engine(model: Path, options: EngineOptions | None = None) -> Engine:
    """Returns the engine of a model file as `pick_engine` does; its runtime is imported now."""
    options = options or EngineOptions()
    name = pick_engine(model, options.engine)
    if name == "onnxruntime":
        from server.recognition.engines.onnx import OnnxRuntime

        return OnnxRuntime(options.onnx_providers)
    if name == "openvino":
        from server.recognition.engines.openvino import OpenVino

        return OpenVino(options.openvino_device)
    from server.recognition.engines.litert import LiteRT

    return LiteRT(options.delegate, options.delegate_options)
