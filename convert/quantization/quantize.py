"""Float TFLite model in, quantised TFLite model out: dynamic range, float16 or full integer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ai_edge_quantizer import qtyping, quantizer
from numpy.typing import NDArray

from convert.errors import QuantizeError
from convert.quantization.correction import correct
from convert.quantization.graph import Operator, input_shape, operators
from convert.quantization.integer import (
    INT8_WEIGHTS,
    IO_DTYPES,
    Step,
    apply,
    integer,
    step,
    usable_frames,
)

MODES = ("dynamic", "float16", "int8", "float32")

# int8 arithmetic saves about depth * channels per pixel, and quantising the input and
# dequantising the output cost about depth + channels per pixel. So the shorter of the two decides,
# whatever the resolution: below this many, float is quicker (DESIGN.md, «Facts measured»).
MIN_INTEGER_SIDE = 32
# Below this many weights the scales and the extra operator outweigh the bytes saved. TensorFlow's
# own post-training quantiser draws the line at the same place.
MIN_WEIGHTS = 1024

_COMPUTED = qtyping.OpQuantizationConfig(
    weight_tensor_config=INT8_WEIGHTS, compute_precision=qtyping.ComputePrecision.INTEGER
)
_STORED = qtyping.OpQuantizationConfig(
    weight_tensor_config=INT8_WEIGHTS,
    compute_precision=qtyping.ComputePrecision.FLOAT,
    explicit_dequantize=True,
)
_FLOAT16 = qtyping.OpQuantizationConfig(
    weight_tensor_config=qtyping.TensorQuantizationConfig(
        num_bits=16, dtype=qtyping.TensorDataType.FLOAT
    ),
    compute_precision=qtyping.ComputePrecision.FLOAT,
    explicit_dequantize=True,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """The arithmetic of each operator with weights in `dynamic` mode.

    An operator whose `Operator.shape` is in `integer` has int8 weights and int8 arithmetic: its
    input is quantised at run time. Every other one with at least `min_weights` weights has int8
    weights that XNNPACK unpacks once, when the model is loaded, and float arithmetic: as small on
    disk and as quick as float32. Operators with fewer weights stay float32. Shapes rather than
    names, so that a plan found on one model serves the next one trained on the same architecture.
    """

    integer: tuple[str, ...]
    min_weights: int = MIN_WEIGHTS

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON types, for `from_dict`."""
        return {**asdict(self), "integer": list(self.integer)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Return the plan that `to_dict` wrote; QuantizeError if it is anything else."""
        integer, min_weights = data.get("integer"), data.get("min_weights", MIN_WEIGHTS)
        if (
            not isinstance(integer, list | tuple)
            or not all(isinstance(shape, str) for shape in integer)
            or not isinstance(min_weights, int)
            or not set(data) <= {"integer", "min_weights"}
        ):
            raise QuantizeError(
                "A plan has the keys integer (a list of strings) and min_weights (a whole number)."
            )
        return cls(tuple(integer), min_weights)


def quantize(
    float_model: bytes,
    mode: str,
    *,
    calibration: Iterable[NDArray[np.float32]] | None = None,
    plan: Plan | None = None,
    io_dtype: str = "uint8",
    taken: tuple[float, float] | None = None,
) -> bytes:
    """Convert a float32 .tflite to a .tflite of `mode`, one of MODES.

    `dynamic`: int8 weights per channel, float32 in and out, after `plan` (`default_plan` without
    one). `float16`: half-precision weights, float32 in, out and arithmetic. `int8`: integer
    throughout; int8 weights per channel, int8 activations per tensor (the scheme of Jacob et al.,
    2018, arXiv:1712.05877), input and output of `io_dtype`, one of IO_DTYPES. `float32`: checked
    and returned as it is.

    `calibration` is real frames as the model sees them in service: float32 [1, H, W, C],
    preprocessed. Constant, noisy and repeated ones are left out. `int8` can't do without: its
    ranges are the lowest and highest values over them, but for the input's where `taken` gives what
    the model may be given. In every mode they correct the biases
    (`convert.quantization.correction`).

    Raises TooFewFramesError for fewer than 8 usable frames, CalibrationError for a wrong shape or
    dtype, and QuantizeError for an unknown mode or io_dtype, bytes that are no float32 model, a
    plan that names none of its operators, and an operator that has no integer form.
    """
    if mode not in MODES:
        raise QuantizeError(f"The mode is {mode!r}, and can only be one of {', '.join(MODES)}.")
    if io_dtype not in IO_DTYPES:
        raise QuantizeError(
            f"The io_dtype is {io_dtype!r}, and can only be one of {', '.join(IO_DTYPES)}."
        )
    found = operators(float_model)
    if mode == "float32":
        return float_model
    frames: list[NDArray[np.float32]] = []
    if mode == "int8" or calibration is not None:
        frames = usable_frames(calibration, input_shape(float_model))
    if mode == "int8":
        result = integer(float_model, found, frames, io_dtype, taken)
        return correct(float_model, result, frames)
    if mode == "float16":
        steps = [step(op, _FLOAT16, quantizer.AlgorithmName.FLOAT_CASTING) for op in found]
    else:
        steps = _dynamic_steps(found, plan or default_plan(float_model))
    if not steps:
        return float_model
    result = apply(float_model, steps)
    return correct(float_model, result, frames) if frames else result


def default_plan(float_model: bytes) -> Plan:
    """Return the plan for any classifying CNN on any processor, from its graph alone.

    Integer: every fully connected layer, whose time is that of reading its weights, and every
    ungrouped convolution at least MIN_INTEGER_SIDE deep and wide. Float: depthwise ones, which
    leave XNNPACK when quantised dynamically, and the early layers with few channels.
    `convert.quantization.tune.tune` finds a better plan for one processor by measuring. Raises
    QuantizeError for bytes that are no float32 model.
    """
    integer = {
        op.shape
        for op in operators(float_model)
        if op.kind == "FULLY_CONNECTED"
        or (
            op.kind == "CONV_2D"
            and not op.grouped
            and min(op.depth, op.channels) >= MIN_INTEGER_SIDE
        )
    }
    return Plan(tuple(sorted(integer)))


def _dynamic_steps(found: Sequence[Operator], plan: Plan) -> list[Step]:
    if plan.integer and not {op.shape for op in found} & set(plan.integer):
        raise QuantizeError("The plan names no operator of this model.")
    return [
        step(op, _COMPUTED if op.shape in plan.integer else _STORED)
        for op in found
        if op.weights >= plan.min_weights
    ]
