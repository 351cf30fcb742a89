"""OpenVINO, which runs `.xml`, `.onnx` and `.tflite` files on Intel's processors, GPUs and NPUs;
nothing else imports it, and it may not be installed.

On a CPU each session has a compiled model of its own, with one stream: with more, 2026.4.1 packs
the weights of a quantised model wrongly every other time, and its answers are another model's. A
model that was proved in float32 is computed in float32 there: by itself OpenVINO takes bfloat16
where the processor has it, which moves probabilities by 0.25.
"""

import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from server.errors import BundleError, SettingsError
from server.recognition.preprocessing import Tensor, TensorSpec

CPU = "CPU"
AUTO = "AUTO"
WEIGHTS_SUFFIX = ".bin"
# Characters of the runtime's reason that a message repeats.
_REASON_MAX = 300
# Lines of its reason that only its developers read begin so.
_PLACES = ("Exception from ", "Check '", "FrontEnd API failed")


def check_device(wanted: str) -> None:
    """Raises SettingsError for a device that OpenVINO does not find on this machine."""
    found = openvino.Core().available_devices
    # Of several GPUs each has a number: GPU.0, GPU.1.
    if wanted != AUTO and not any(name.split(".")[0] == wanted for name in found):
        raise SettingsError(
            f"openvino_device can't be {wanted}: OpenVINO finds {', '.join(found)} here"
        )


def _reason(error: Exception) -> str:
    """Returns the runtime's reason in one line, without what only its developers read."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(_PLACES)]
    return " ".join(told or lines)[:_REASON_MAX]


def _spec(model: Path, port: Any) -> TensorSpec:
    name = min(port.get_names(), default="")
    try:
        dtype = np.dtype(port.get_element_type().to_dtype()).name
    except RuntimeError:
        kind = port.get_element_type().get_type_name()
        raise BundleError(f"{model}: {name} is {kind}, which is no number of NumPy") from None
    sides = port.get_partial_shape()
    if sides.rank.is_dynamic:
        raise BundleError(f"{model}: the number of dimensions of {name} is open")
    return TensorSpec(
        name, tuple(-1 if side.is_dynamic else side.get_length() for side in sides), dtype
    )


def _specs_by_litert(model: Path, content: bytes) -> tuple[tuple[TensorSpec, ...], ...]:
    """Returns the inputs and the outputs of a .tflite with their quantisation and the names of its
    signature, which OpenVINO does not tell."""
    from server.recognition.engines.litert import Interpreter

    interpreter = Interpreter(model, 1, content)
    return interpreter.inputs, interpreter.outputs


@cache
def _run_once() -> None:
    """Runs a model of one number. The first inferences of a process deadlock in OpenVINO's binding
    for Python if several threads begin at the same time."""
    number = openvino.opset15.parameter([1], np.float32)
    compiled = openvino.compile_model(openvino.Model([number], [number]), CPU)
    compiled.create_infer_request().infer([np.zeros(1, np.float32)]).to_tuple()


def _fits(tensor: Tensor, spec: TensorSpec) -> bool:
    return (
        tensor.dtype == spec.dtype
        and len(tensor.shape) == len(spec.shape)
        and all(wanted in (-1, size) for size, wanted in zip(tensor.shape, spec.shape, strict=True))
    )


class OpenVinoSession:
    """A request of a compiled model."""

    def __init__(
        self,
        compiled: openvino.CompiledModel,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        self._request = compiled.create_infer_request()
        self.inputs = inputs
        self.outputs = outputs

    def run(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Runs the model; its outputs are new arrays. Raises as Session.run does."""
        for tensor, spec in zip(tensors, self.inputs, strict=True):
            # OpenVINO would convert another dtype.
            if not _fits(tensor, spec):
                raise ValueError(
                    f"OpenVINO refuses a tensor: {spec.name} is {spec.dtype} {list(spec.shape)},"
                    f" and not {tensor.dtype} {list(tensor.shape)}"
                )
        try:
            answer = self._request.infer(list(tensors), share_inputs=True)
        except RuntimeError as error:
            raise RuntimeError(f"OpenVINO can't run the model: {_reason(error)}") from None
        return tuple(answer.to_tuple())


class OpenVino:
    """The engine of `.xml` files; runs `.onnx` and `.tflite` files too."""

    platform = "openvino"
    fault = ""

    def __init__(self, device: str = CPU) -> None:
        """device: CPU, GPU, NPU, or AUTO for the best that there is."""
        self._device = device

    @property
    def runtime(self) -> str:
        """Name, version and device."""
        return f"openvino {openvino.__version__.partition('-')[0]} ({self._device})"

    def load(
        self, model: Path, content: bytes, threads: int, count: int
    ) -> Sequence[OpenVinoSession]:
        """Makes sessions that share the model.

        The weights of a `.xml` are in the `.bin` of the same name beside it. Raises BundleError
        for a file that OpenVINO can't run, with an input or output that is not of numbers, or for
        an `.onnx` with weights in other files.
        """
        _run_once()
        compiled = self._compile(model, content, threads, count)
        inputs = tuple(_spec(model, port) for port in compiled[0].inputs)
        outputs = tuple(_spec(model, port) for port in compiled[0].outputs)
        if model.suffix == ".tflite":
            shown = _specs_by_litert(model, content)
            if [len(each) for each in shown] != [len(inputs), len(outputs)]:
                raise BundleError(f"{model}: OpenVINO sees other inputs or outputs than LiteRT")
            inputs, outputs = shown
        return [OpenVinoSession(compiled[n % len(compiled)], inputs, outputs) for n in range(count)]

    def _compile(
        self, model: Path, content: bytes, threads: int, count: int
    ) -> list[openvino.CompiledModel]:
        """Returns a compiled model for each of `count` sessions, or one for all on other devices
        than the CPU."""
        properties: dict[str, Any] = {"EXECUTION_MODE_HINT": "ACCURACY"}
        if self._device == CPU:
            properties |= {
                "INFERENCE_PRECISION_HINT": "f32",
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": threads,
                # Threads that decode frames want the same cores.
                "ENABLE_CPU_PINNING": False,
            }
        try:
            # In a folder of its own, since an .onnx may name any file beside it as its weights,
            # and OpenVINO takes a .tflite only from a file.
            with tempfile.TemporaryDirectory(prefix="lineside-openvino-") as folder:
                copy = Path(folder) / model.name
                copy.write_bytes(content)
                if model.suffix == ".xml":
                    shutil.copyfile(
                        model.with_suffix(WEIGHTS_SUFFIX), copy.with_suffix(WEIGHTS_SUFFIX)
                    )
                core = openvino.Core()
                read = core.read_model(copy)
                models = count if self._device == CPU else 1
                return [core.compile_model(read, self._device, properties) for _ in range(models)]
        except OSError as error:
            raise BundleError(f"{model} can't be copied for OpenVINO: {error.strerror}") from None
        except (RuntimeError, ValueError, TypeError) as error:
            raise BundleError(f"{model} can't be loaded by OpenVINO: {_reason(error)}") from None
