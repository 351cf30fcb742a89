"""Plain numbers, as JSON has them: to a model's inputs, and its outputs back."""

from collections.abc import Mapping
from typing import Any

from server.errors import InvalidFieldError
from server.recognition.preprocessing import Tensor, TensorSpec
from server.recognition.tensors import model as tensors
from server.recognition.tensors import values
from server.recognition.tensors.model import Model, ModelOutputs


def names_of(specs: tuple[TensorSpec, ...]) -> str:
    """The tensors' names for people."""
    return ", ".join(spec.signature or spec.name for spec in specs)


def named_arrays(value: object, specs: tuple[TensorSpec, ...]) -> dict[str, Tensor]:
    """Nested lists, or such by input name -> real arrays by name. Raises InvalidFieldError."""
    if isinstance(value, Mapping):
        return {name: values.to_array(item, name) for name, item in value.items()}
    if len(specs) != 1:
        raise InvalidFieldError(
            f"the model takes {names_of(specs)}: send an object of tensors by name"
        )
    return {specs[0].name: values.to_array(value, "input")}


def model_inputs(model: Model, arrays: Mapping[str, Tensor]) -> list[Tensor]:
    """Real arrays by name -> the model's inputs, quantised where it is. Raises InvalidFieldError
    for a name, a shape or a value that the model does not take."""
    return [
        values.quantize(array, spec, spec.signature or spec.name)
        for array, spec in zip(tensors.match_inputs(model, arrays), model.pool.inputs, strict=True)
    ]


def real_outputs(model: Model, outcome: ModelOutputs) -> dict[str, Any]:
    """The outputs by name as nested lists of real numbers."""
    return {
        spec.name: values.to_real_values(tensor, spec).tolist()
        for spec, tensor in zip(model.pool.outputs, outcome.outputs, strict=True)
    }
