"""The protocol of engines, and which of them runs a model file.

The module of an engine is the only one that imports its runtime, and is imported itself only for a
model that needs it. This module imports nothing heavy.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from server.errors import BundleError, SettingsError
from server.system.extras import install_command

if TYPE_CHECKING:
    from server.recognition.preprocessing import Tensor, TensorSpec

ONNX_SUFFIX = ".onnx"


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
    def platform(self) -> str:
        """The name of its models' platform in the Open Inference Protocol."""

    def load(self, model: Path, content: bytes, threads: int, count: int) -> Sequence[Session]:
        """Makes `count` sessions of `threads` threads each, which share what they can.

        content: the bytes of the file `model`, whose path is for messages. Raises BundleError if
        the engine can't run it.
        """


def _missing_onnx(needed_by: object) -> str:
    """Says with which command ONNX Runtime is installed; '' if it is."""
    if find_spec("onnxruntime"):
        return ""
    return f"{needed_by} needs ONNX Runtime, which is not installed: {install_command('onnx')}"


def check_engine(model: Path) -> None:
    """Raises BundleError, with the command that installs it, if the engine of a model file is not
    installed."""
    if model.suffix == ONNX_SUFFIX and (missing := _missing_onnx(model)):
        raise BundleError(missing)


def check_onnx_providers(providers: Sequence[str]) -> None:
    """Raises SettingsError if there are `providers`, and ONNX Runtime is not installed or lacks one
    of them."""
    if not providers:
        return
    if missing := _missing_onnx("onnx_providers"):
        raise SettingsError(missing)
    from server.recognition.engines.onnx import check_providers

    check_providers(providers)


def find_engine(model: Path, onnx_providers: Sequence[str] = ()) -> Engine:
    """Returns the engine of a model file, by its ending; its runtime is imported now. LiteRT has
    all that no other engine has.

    onnx_providers: as in the setting. Raises BundleError as `check_engine` does.
    """
    if model.suffix == ONNX_SUFFIX:
        check_engine(model)
        from server.recognition.engines.onnx import OnnxRuntime

        return OnnxRuntime(onnx_providers)
    from server.recognition.engines.litert import LiteRT

    return LiteRT()
