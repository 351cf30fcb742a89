"""Full integer models: calibrated ranges, then one recipe for all operators."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from ai_edge_litert.tools import flatbuffer_utils
from ai_edge_quantizer import qtyping, quantizer
from numpy.typing import NDArray

from convert.errors import CalibrationError, QuantizeError, TooFewFramesError
from convert.quantization.graph import Operator, constant, kind_of, parse, portable

Step = dict[str, Any]
INT8_WEIGHTS = qtyping.TensorQuantizationConfig(
    num_bits=8, symmetric=True, granularity=qtyping.QuantGranularity.CHANNELWISE
)


def step(
    op: Operator, config: Any, algorithm: str = quantizer.AlgorithmName.MIN_MAX_UNIFORM_QUANT
) -> Step:
    # The quantiser matches against the output's name and a semicolon.
    return {
        "regex": f"^{re.escape(op.name)};$",
        "operation_name": qtyping.TFLOperationName(op.kind),
        "op_config": config,
        "algorithm_key": algorithm,
    }


def apply(model: bytes, steps: list[Step], ranges: Mapping[str, Any] | None = None) -> bytes:
    work = quantizer.Quantizer(model)
    for line in steps:
        work.update_quantization_recipe(**line)
    # Progress bars, and a warning about an interpreter that the quantiser makes for itself.
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = work.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return portable(bytes(result.quantized_model))


IO_DTYPES = ("uint8", "int8", "float32")
MIN_CALIBRATION_FRAMES = 8
# Neighbouring pixels of white noise correlate by 0.0, also after a resize by area (below 0.1);
# of 623 grainy photographs of magnetic tiles the lowest was 0.41 at 32x32 and 0.69 at 224x224.
MIN_AUTOCORRELATION = 0.3


def usable_frames(
    calibration: Iterable[NDArray[np.float32]] | None, shape: tuple[int, ...]
) -> list[NDArray[np.float32]]:
    """Return the calibration frames that show something: not constant, not noise, none twice.

    `shape` is the model's input, [1, H, W, C]. Constant is a standard deviation within 0.005 of
    the range of all frames, noise a correlation of neighbouring pixels below
    MIN_AUTOCORRELATION. Raises CalibrationError for a wrong shape, dtype or value, and its
    TooFewFramesError for fewer than MIN_CALIBRATION_FRAMES frames left over.
    """
    frames = [np.asarray(frame) for frame in calibration or ()]
    for frame in frames:
        if frame.shape != shape or frame.dtype != np.float32 or not np.isfinite(frame).all():
            raise CalibrationError(
                f"A calibration frame is {frame.dtype} {list(frame.shape)}, "
                f"and the model needs finite float32 {list(shape)}."
            )
    distinct = list({frame.tobytes(): frame for frame in frames}.values())
    span = max((float(f.max()) for f in frames), default=0.0) - min(
        (float(f.min()) for f in frames), default=0.0
    )
    varied = [frame for frame in distinct if frame.std() > 0.005 * span]
    usable = [frame for frame in varied if _autocorrelation(frame) >= MIN_AUTOCORRELATION]
    if len(usable) < MIN_CALIBRATION_FRAMES:
        raise TooFewFramesError(
            f"calibration needs at least {MIN_CALIBRATION_FRAMES} different real frames; of"
            f" {len(frames)} given, {len(usable)} will do ({len(frames) - len(distinct)} "
            f"repeated, {len(distinct) - len(varied)} constant, {len(varied) - len(usable)} noise)."
        )
    return usable


def _autocorrelation(frame: NDArray[np.float32]) -> float:
    centred = frame[0].astype(np.float64)
    centred -= centred.mean(axis=(0, 1))
    across = (centred[:, 1:] * centred[:, :-1]).mean()
    down = (centred[1:] * centred[:-1]).mean()
    return float(min(across, down) / (centred * centred).mean())


def integer(
    model: bytes,
    found: Sequence[Operator],
    frames: Sequence[NDArray[np.float32]],
    io_dtype: str,
    taken: tuple[float, float] | None,
) -> bytes:
    """`model` in integers. taken: the lowest and highest value that it may be given; without, those
    of `frames`."""
    ranges = _ranges(model, frames, taken)
    result = apply(_representable(model, found, ranges), _static_steps(io_dtype), ranges)
    parsed = flatbuffer_utils.read_model_from_bytearray(bytearray(result))
    changed = _measure_shapes_of_integers(parsed)
    left = sorted(_float_kinds(parsed))
    if left:
        raise QuantizeError(
            f"int8 has no integer form for the operator {left[0]} of this model; use dynamic."
        )
    return bytes(flatbuffer_utils.convert_object_to_bytearray(parsed)) if changed else result


def _static_steps(io_dtype: str) -> list[Step]:
    name = qtyping.TFLOperationName
    steps: list[Step] = []
    for operation, dtype in (
        (name.ALL_SUPPORTED, "int8"),
        (name.INPUT, io_dtype),
        (name.OUTPUT, io_dtype),
    ):
        step: Step = {"regex": ".*", "operation_name": operation}
        if dtype == "float32":
            step["algorithm_key"] = quantizer.AlgorithmName.NO_QUANTIZE
        else:
            kind = qtyping.TensorDataType.UINT if dtype == "uint8" else qtyping.TensorDataType.INT
            step["op_config"] = qtyping.OpQuantizationConfig(
                activation_tensor_config=qtyping.TensorQuantizationConfig(
                    num_bits=8, symmetric=False, dtype=kind
                ),
                weight_tensor_config=INT8_WEIGHTS,
                compute_precision=qtyping.ComputePrecision.INTEGER,
            )
        steps.append(step)
    return steps


def _ranges(
    model: bytes, frames: Sequence[NDArray[np.float32]], taken: tuple[float, float] | None
) -> dict[str, dict[str, NDArray[np.float32]]]:
    # Not the quantiser's own calibration: that takes moving averages, which clip what only a few
    # frames show. On MobileNetV2 they moved a probability by 0.24, the true extremes by 0.05.
    interpreter = Interpreter(
        model_content=model,
        num_threads=1,
        # XNNPACK does not keep the tensors between its operators.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    [source] = interpreter.get_input_details()
    # Ranges of constants would be taken for the weights', and those are one for each channel.
    computed = _computed(model)
    tensors = [
        d
        for d in interpreter.get_tensor_details()
        if d["dtype"] == np.float32 and d["name"] in computed
    ]
    seen: dict[str, tuple[float, float]] = {}
    for frame in frames:
        interpreter.set_tensor(source["index"], frame)
        interpreter.invoke()
        for tensor in tensors:
            value = interpreter.get_tensor(tensor["index"])
            low, high = seen.get(tensor["name"], (np.inf, -np.inf))
            seen[tensor["name"]] = (min(low, float(value.min())), max(high, float(value.max())))
    # Frames that come may be brighter or darker than all that were at hand.
    seen[source["name"]] = _input_range(*(taken or seen[source["name"]]))
    rank = {tensor["name"]: (1,) * len(tensor["shape"]) for tensor in tensors}
    return {
        name: {
            "min": np.full(rank[name], low, np.float32),
            "max": np.full(rank[name], high, np.float32),
        }
        for name, (low, high) in seen.items()
    }


def _computed(model: bytes) -> set[str]:
    parsed = parse(model)
    return {t.name.decode() for t in parsed.subgraphs[0].tensors if not constant(parsed, t)}


def _input_range(low: float, high: float) -> tuple[float, float]:
    # Pixels scaled to -1..1 would fall exactly between two of 256 levels, and rounding would send
    # pairs of them to one level. 255 levels with zero in the middle keep them apart.
    if abs(low + high) > 0.05 * (high - low):
        return low, high
    bound = max(-low, high)
    return -bound * 128 / 127, bound


def _representable(model: bytes, found: Sequence[Operator], ranges: Mapping[str, Any]) -> bytes:
    # A bias is stored in units of input scale times weight scale. In a channel that training has
    # all but switched off the weights are so small that the int32 overflows and the bias turns
    # up with the wrong sign. One weight raised to where it fits moves the output by less than
    # 2**-22 of the bias for each step of the input.
    parsed = parse(model)
    graph, changed = parsed.subgraphs[0], False
    for op in found:
        inputs = graph.operators[op.index].inputs
        if len(inputs) < 3 or inputs[2] < 0:
            continue
        source, weights, bias = (graph.tensors[i] for i in inputs[:3])
        low, high = (float(ranges[source.name.decode()][end].item()) for end in ("min", "max"))
        scale = (max(high, 0.0) - min(low, 0.0)) / 255
        values = np.frombuffer(parsed.buffers[weights.buffer].data, np.float32).copy()
        biases = np.frombuffer(parsed.buffers[bias.buffer].data, np.float32)
        floor = np.abs(biases) * 127 / (max(scale, 1e-12) * 2**30)
        by_channel = (
            values.reshape(-1, op.channels).T
            if op.kind == "DEPTHWISE_CONV_2D"
            else values.reshape(op.channels, -1)
        )
        peak = np.abs(by_channel).argmax(axis=1)
        for channel in np.flatnonzero(np.abs(by_channel).max(axis=1) < floor):
            by_channel[channel, peak[channel]] = floor[channel]
            changed = True
        parsed.buffers[weights.buffer].data = values.view(np.uint8)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(parsed)) if changed else model


def _measure_shapes_of_integers(parsed: Any) -> bool:
    # A model with a free batch size reads it off a tensor before it reshapes, and the quantiser
    # dequantises that whole tensor for it. The integer tensor has the same shape.
    graph = parsed.subgraphs[0]
    makers = {o.outputs[0]: o for o in graph.operators if kind_of(parsed, o) == "DEQUANTIZE"}
    readers = [o for o in graph.operators if kind_of(parsed, o) == "SHAPE"]
    for reader in readers:
        if reader.inputs[0] in makers:
            reader.inputs = [makers[reader.inputs[0]].inputs[0]]
    used = {i for o in graph.operators for i in o.inputs} | set(graph.outputs)
    kept = [o for o in graph.operators if used & set(o.outputs)]
    changed = len(kept) < len(graph.operators)
    graph.operators = kept
    return changed


def _float_kinds(parsed: Any) -> set[str]:
    graph = parsed.subgraphs[0]
    floats = {i for i, t in enumerate(graph.tensors) if t.type == schema.TensorType.FLOAT32}
    touching = (o for o in graph.operators if floats & {*o.inputs, *o.outputs})
    return {kind_of(parsed, o) for o in touching} - {"QUANTIZE", "DEQUANTIZE"}
