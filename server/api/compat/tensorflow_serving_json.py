"""TensorFlow Serving's JSON: rows, columns, examples and {"b64": ...} to and from tensors.

Source: tensorflow/serving, g3doc/api_rest.md.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from flask import Response

from server.errors import InvalidFieldError
from server.http.body.json_body import decode_base64, decode_json, read_body
from server.recognition import tensor_model as tensors
from server.recognition import tensor_values as values
from server.recognition.preprocessing import Tensor
from server.recognition.recognizer import Recognizer
from server.recognition.tensor_model import Model, ModelOutputs
from server.recognition.tensor_values import model_inputs, names_of
from server.values.wording import shown

# Names under which a model that takes images takes them, beside its input's own.
IMAGE_NAMES = ("image", "image_bytes")
DEFAULT_SIGNATURE = "serving_default"
CLASSIFY_SIGNATURES = ("", DEFAULT_SIGNATURE, "tensorflow/serving/classify")

Inputs = list[bytes] | list[Tensor]
T = TypeVar("T")


class PredictRequest(msgspec.Struct, frozen=True):
    """Either `instances`, a row each, or `inputs`, a column each."""

    signature_name: str = ""
    instances: list[Any] | None = None
    inputs: Any = None


class ClassifyRequest(msgspec.Struct, frozen=True):
    """Examples as features by name; `context` holds those that all share."""

    examples: list[dict[str, Any]]
    signature_name: str = ""
    context: dict[str, Any] = {}


def read_serving(kind: type[T]) -> T:
    """Return this request's body as `kind`. The protocol allows NaN and Infinity in it, which JSON
    does not. Raises InvalidFieldError."""
    return decode_json(kind, read_body(), not_finite=True)


def check_signature(name: str, known: Sequence[str] = ("", DEFAULT_SIGNATURE)) -> None:
    """Raise InvalidFieldError for a signature other than the `known` ones."""
    if name not in known:
        raise InvalidFieldError(
            f"Serving signature name: {shown(name)} not found in signature def; there is"
            f" {DEFAULT_SIGNATURE}"
        )


def is_b64(value: object) -> bool:
    """Return whether `value` is bytes as the protocol writes them."""
    return isinstance(value, Mapping) and set(value) == {"b64"}


def _image(value: object) -> bytes:
    if isinstance(value, Mapping) and isinstance(text := value.get("b64"), str):
        return decode_base64(text, "b64")
    raise InvalidFieldError('an image should be {"b64": "..."}')


def _image_names(model: Recognizer) -> tuple[str, ...]:
    spec = model.pool.inputs[0]
    return (*IMAGE_NAMES, spec.name, spec.signature)


def _only(model: Recognizer, value: Mapping[str, Any]) -> Any:
    """Return the value of the one input that an image model has."""
    names = _image_names(model)
    if len(value) != 1 or next(iter(value)) not in names:
        raise InvalidFieldError(f"the model takes one input, {names[0]}, not {', '.join(value)}")
    return next(iter(value.values()))


def rows_to_inputs(model: Model, rows: Sequence[Any]) -> Inputs:
    """Return image files, or the model's inputs, of instances. Raises InvalidFieldError."""
    if not rows:
        raise InvalidFieldError("instances is empty: send at least one")
    if isinstance(model, Recognizer):
        named = [
            _only(model, row) if isinstance(row, Mapping) and not is_b64(row) else row
            for row in rows
        ]
        if any(is_b64(row) for row in named):
            return [_image(row) for row in named]
        rows = named
    if not any(isinstance(row, Mapping) for row in rows):
        return _column(model, rows)
    names = {name for row in rows if isinstance(row, Mapping) for name in row}
    if not all(isinstance(row, Mapping) and set(row) == names for row in rows):
        raise InvalidFieldError("all instances should be objects with the same names")
    return _arrays(model, {name: [row[name] for row in rows] for name in names})


def columns_to_inputs(model: Model, columns: object) -> Inputs:
    """Return image files, or the model's inputs, of columns. Raises InvalidFieldError."""
    if isinstance(model, Recognizer):
        if isinstance(columns, Mapping) and not is_b64(columns):
            columns = _only(model, columns)
        files = columns if isinstance(columns, list) else [columns]
        if any(is_b64(file) for file in files):
            return [_image(file) for file in files]
    if isinstance(columns, Mapping):
        return _arrays(model, columns)
    return _column(model, columns)


def _column(model: Model, column: object) -> list[Tensor]:
    specs = model.pool.inputs
    if len(specs) != 1:
        raise InvalidFieldError(f"the model takes {names_of(specs)}: name each of them")
    return _arrays(model, {specs[0].signature or specs[0].name: column})


def _arrays(model: Model, columns: Mapping[str, object]) -> list[Tensor]:
    for name in columns:
        if tensors.find_tensor(model.pool.inputs, name) is None:
            raise InvalidFieldError(
                f"there is no input {name}: the model takes {names_of(model.pool.inputs)}"
            )
    arrays = {name: values.to_array(column, name) for name, column in columns.items()}
    return model_inputs(model, arrays)


def _outputs(model: Model, outcome: ModelOutputs) -> dict[str, Any]:
    return {
        spec.signature or spec.name: values.to_real_values(tensor, spec).tolist()
        for spec, tensor in zip(model.pool.outputs, outcome.outputs, strict=True)
    }


def predictions(model: Model, outcome: ModelOutputs) -> list[Any]:
    """Return the outputs by row: values for a model of one output, else objects by output name."""
    columns = _outputs(model, outcome)
    if len(columns) == 1:
        return list(next(iter(columns.values())))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def columns_of(model: Model, outcome: ModelOutputs) -> Any:
    """Return the outputs by column: values of a single output, else an object by output name."""
    columns = _outputs(model, outcome)
    return next(iter(columns.values())) if len(columns) == 1 else columns


def serving_json(value: object) -> Response:
    """Return `value` as JSON with NaN and Infinity as the protocol writes them."""
    return Response(json.dumps(value), content_type="application/json")
