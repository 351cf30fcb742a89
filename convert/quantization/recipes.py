"""ai-edge-quantizer's recipes: one line an operator, and their application."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Mapping
from typing import Any

from ai_edge_quantizer import qtyping, quantizer

from convert.quantization.graph import Operator

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
    return bytes(result.quantized_model)
