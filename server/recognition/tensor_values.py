"""Plain numbers, nested in lists as JSON has them, to a model's inputs and back from its outputs.
Pure functions."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import InvalidFieldError
from server.recognition.preprocessing import Tensor, TensorSpec, dequantize
from server.recognition.tensor_model import Model, ModelOutputs, match_inputs

NUMBERS = frozenset({bool, int, float})


def to_array(value: object, name: str) -> Tensor:
    """Makes an array of a number, or of lists of numbers nested as deep as the tensor has
    dimensions.

    Raises InvalidFieldError, naming `name`, for lists of unequal lengths and anything that is not
    a number.
    """
    no_numbers = InvalidFieldError(f"{name} should be numbers, in lists as the tensor is shaped")
    # NumPy would give each number the room of the longest text beside it before it raises.
    if not _leaves(value) <= NUMBERS:
        raise no_numbers
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        raise InvalidFieldError(
            f"{name} can't be made a tensor: its lists differ in length"
        ) from None
    if array.dtype.kind not in "biuf" and array.size:
        raise no_numbers
    return array


def _leaves(value: object) -> set[type]:
    """Returns the types of what `value`, lists within lists, holds beside lists."""
    types, level = set[type](), [[value]]
    while level:
        kinds = set(map(type, chain.from_iterable(level)))
        types |= kinds - {list}
        if list not in kinds:
            break
        items = chain.from_iterable(level)
        level = [item for item in items if isinstance(item, list)]
    return types


def cast_exact(array: Tensor, dtype: str, name: str) -> Tensor:
    """Returns `array` as `dtype`, with exactly its values as far as `dtype` is that fine.

    Raises InvalidFieldError, naming `name`, for values that the dtype can't hold.
    """
    target = np.dtype(dtype)
    if array.dtype == target:
        return array
    if target.kind == "f":
        with np.errstate(over="ignore"):
            out = array.astype(target)
        fits = bool((np.isfinite(out) == np.isfinite(array)).all())
    else:
        low, high = (0, 1) if target.kind == "b" else (np.iinfo(target).min, np.iinfo(target).max)
        whole = array.dtype.kind != "f" or bool((np.trunc(array) == array).all())
        fits = whole and (not array.size or low <= array.min().item() <= array.max().item() <= high)
        out = array.astype(target) if fits else array
    if not fits:
        raise InvalidFieldError(f"{name} has values that {dtype} can't hold")
    return out


def quantize(array: Tensor, spec: TensorSpec, name: str) -> Tensor:
    """Turns real values to `spec`'s dtype; for a quantised tensor round(real / scale + zero_point),
    clipped to the dtype's range (TensorFlow Lite's 8-bit quantisation specification).

    Raises InvalidFieldError as `cast_exact` does.
    """
    if not spec.quantized:
        return cast_exact(array, spec.dtype, name)
    info = np.iinfo(spec.dtype)
    real = cast_exact(array, "float64", name) / spec.scale + spec.zero_point
    if np.isnan(real).any():
        raise InvalidFieldError(f"{name} has values that {spec.dtype} can't hold")
    return np.clip(np.rint(real), info.min, info.max).astype(spec.dtype)


def to_real_values(tensor: Tensor, spec: TensorSpec) -> Tensor:
    """Turns a model's tensor to real values; one that is not quantised stays as it is."""
    real: NDArray[np.float32] | Tensor = dequantize(tensor, spec) if spec.quantized else tensor
    return real


def names_of(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(spec.signature or spec.name for spec in specs)


def named_arrays(value: object, specs: tuple[TensorSpec, ...]) -> dict[str, Tensor]:
    """Turns nested lists, or an object of them by input name, to real arrays by name. Raises
    InvalidFieldError."""
    if isinstance(value, Mapping):
        return {name: to_array(item, name) for name, item in value.items()}
    if len(specs) != 1:
        raise InvalidFieldError(
            f"the model takes {names_of(specs)}: send an object of tensors by name"
        )
    return {specs[0].name: to_array(value, "input")}


def model_inputs(model: Model, arrays: Mapping[str, Tensor]) -> list[Tensor]:
    """Turns real arrays by name to the model's inputs, quantised if these are. Raises
    InvalidFieldError for a name, a shape or a value that the model does not take."""
    return [
        quantize(array, spec, spec.signature or spec.name)
        for array, spec in zip(match_inputs(model, arrays), model.pool.inputs, strict=True)
    ]


def real_outputs(model: Model, outcome: ModelOutputs) -> dict[str, Any]:
    """Returns the outputs by name as nested lists of real numbers."""
    return {
        spec.name: to_real_values(tensor, spec).tolist()
        for spec, tensor in zip(model.pool.outputs, outcome.outputs, strict=True)
    }
