"""ONNX models in 8-bit integers, by ONNX Runtime's static quantisation."""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.errors import ConvertError
from convert.quantization.integer import MIN_CALIBRATION_FRAMES

Frames = Iterable[NDArray[np.float32]]


def quantize_onnx(model: bytes, mode: str, frames: Frames | None) -> bytes:
    """Return an ONNX model in `mode`, float32 (as it is) or int8.

    int8: weights per channel and activations per tensor, in operators between QuantizeLinear and
    DequantizeLinear, so that every engine reads it; float32 in and out. Activations are signed:
    processors of x86 without VNNI add products of unsigned ones in 16 bits, which may overflow,
    and weights of 7 bits, which would not, gave half as many of a MobileNetV2's labels.
    frames: as the model sees them in service, which give the ranges. Raises ConvertError for too
    few of them, and for a model that can't be quantised.
    """
    if mode == "float32":
        return model
    every = list(frames or ())
    if len(every) < MIN_CALIBRATION_FRAMES:
        raise ConvertError(
            f"calibration needs at least {MIN_CALIBRATION_FRAMES} real frames, and there are"
            f" {len(every)}"
        )
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = _input_name(model)

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(every)

        def get_next(self) -> dict[str, Any] | None:
            return next(({name: frame} for frame in self._left), None)

    with _without_advice(), tempfile.TemporaryDirectory(prefix="lineside-onnx-") as folder:
        source, prepared, result = (Path(folder) / f"{n}.onnx" for n in ("0", "1", "2"))
        source.write_bytes(model)
        try:
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(result),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        except (ValueError, RuntimeError, TypeError, AssertionError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConvertError(f"int8: ONNX Runtime can't quantise this model: {reason}") from None
        return result.read_bytes()


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep back what ONNX Runtime's quantiser advises by the root logger: steps that are taken
    here."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(max(logging.ERROR, level))
    try:
        yield
    finally:
        root.setLevel(level)


def _input_name(model: bytes) -> str:
    from server.recognition.engines.onnx import OnnxRuntime

    [session] = OnnxRuntime().load(Path("model.onnx"), model, 1, 1)
    return session.inputs[0].name
