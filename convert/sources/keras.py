"""Any trained model in, a float32 .tflite with one NHWC image input of batch 1 out."""

import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from convert.errors import ConvertError
from convert.recipe.first_layers import LiteOpening, TensorFlowOpening
from convert.recipe.readings import ALL, plausible_readings, readings_heard
from convert.sources.keras_files import load_keras
from convert.sources.model_files import HDF5, SAVED_MODEL, TFLITE, unpacked
from convert.sources.quantized import Tflite, read_tflite
from convert.sources.shapes import Shape, describe, first_line
from convert.sources.tf_functions import (
    as_constants,
    check_same_answers,
    in_float32,
    needs_float32,
    with_float_input,
)
from convert.terminal import suppress_native_output, tensorflow

SERVING = "serving_default"
# The line of pages of messages that says what is wrong.
_MISSING_OPERATORS = re.compile(r"^(?:Custom|Flex|TF Select) ops: (.+?)\s*$", re.MULTILINE)


def from_keras(model: Any, size: tuple[int, int] | None = None) -> bytes:
    """Convert a `keras.Model` of one image input [batch, height, width, channels] to a float32
    .tflite.

    size: height and width for a model that leaves them open. Batch normalisation is folded into
    the convolutions. Raises ConvertError for a model with
    several inputs or outputs, an input of open size, and layers that TFLite has no operator for.
    """
    tf = tensorflow()
    return _from_keras(tf, model, _image_of(model, size))[0]


def _image_of(model: Any, size: tuple[int, int] | None) -> Any:
    """Return the TensorSpec of a Keras model's image. Raises ConvertError as `from_keras` does."""
    if not getattr(model, "inputs", None):
        raise ConvertError(
            "the model has no inputs yet: give it an Input layer or call it once, then save it"
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ConvertError(
            f"the model has {len(model.inputs)} inputs and {len(model.outputs)} outputs;"
            " a classifier has one of each"
        )
    tf = tensorflow()
    # A fixed batch lets the converter fold shapes; `from_keras_model` would keep it open.
    shape = fixed_shape(tuple(model.inputs[0].shape), size)
    return tf.TensorSpec(shape, tf.as_dtype(model.inputs[0].dtype))


def _from_keras(tf: Any, model: Any, image: Any) -> tuple[bytes, Any]:
    """Return the .tflite, and the concrete function that it was made of."""
    # Keras's layers that vary images do so unless they are told that this is no training.
    call, image = with_float_input(tf, lambda value: model(value, training=False), image)
    with suppress_native_output():
        function = tf.function(call).get_concrete_function(image)
    if needs_float32(function):
        return _convert(tf, in_float32(tf, function)), function
    with suppress_native_output():
        return _convert(tf, as_constants(tf, function)), function


def fixed_shape(
    shape: tuple[int | None, ...], size: tuple[int, int] | None
) -> tuple[int, int, int, int]:
    """[1, height, width, channels] from a model's input shape, in which None is open.

    Raises ConvertError if that is not an image, or `size` is needed or contradicts it.
    """
    if len(shape) != 4 or shape[3] is None:
        raise ConvertError(
            f"the model takes {list(shape)}; it must take [batch, height, width, channels] with"
            " the channels fixed"
        )
    height, width = size or shape[1:3]
    if height is None or width is None:
        raise ConvertError(
            f"the model takes images of any size, {list(shape)}: fix it with --size HEIGHT WIDTH"
        )
    if shape[1] not in (None, height) or shape[2] not in (None, width):
        raise ConvertError(f"the model takes {list(shape)}, so --size can't be {height} {width}")
    return 1, height, width, shape[3]


def model_file(
    path: Path,
    size: tuple[int, int] | None = None,
    signature: str = SERVING,
    *,
    run_lambdas: bool = False,
) -> Tflite:
    """Read a Keras model, a SavedModel or a .tflite by its content, or an archive of one.

    size: height and width if the model leaves them open. signature: of a SavedModel. run_lambdas:
    run the Python code that a Keras file brings for its Lambda layers.

    Raises ConvertError that says what the file is if it is none of them, or why it does not load.
    """
    with unpacked(path) as (file, kind):
        if kind == TFLITE:
            return _read_tflite(file, path)
        if kind == SAVED_MODEL:
            data, shape = _saved_model(file, path, signature, size)
        else:
            data, shape = _keras(file, path, kind, size, run_lambdas)
        return Tflite(data, shape, "float32", "float32")


def keras_file(path: Path, size: tuple[int, int] | None = None) -> tuple[bytes, Shape]:
    """Convert a .keras, .h5 or SavedModel folder to a float32 .tflite, and read its tensors.

    Raises ConvertError as `model_file` does, and for a .tflite that is quantised.
    """
    found = model_file(path, size)
    if found.mode != "float32" or found.dtype != "float32":
        raise ConvertError(f"{path} is a .tflite that is quantised already: use `convert tflite`")
    return found.data, found.shape


def _keras(
    file: Path, path: Path, kind: str, size: tuple[int, int] | None, run_lambdas: bool
) -> tuple[bytes, Shape]:
    tf = tensorflow()
    model = load_keras(tf, file, path, hdf5=kind == HDF5, run_lambdas=run_lambdas)
    image = _image_of(model, size)
    data, function = _from_keras(tf, model, image)
    return data, _judged(tf, function, data, image)


def keras_readings(model: Any) -> tuple[str, ...]:
    """Return the names in READINGS of the ways that a `keras.Model` of one image of fixed size
    could be fed by; none if that is not understood. Raises ConvertError as `from_keras` does."""
    tf = tensorflow()
    image = _image_of(model, None)
    call, taken = with_float_input(tf, lambda value: model(value, training=False), image)
    with suppress_native_output():
        function = tf.function(call).get_concrete_function(taken)
    return _readings(tf, function, image)[0]


def _readings(tf: Any, function: Any, image: Any) -> tuple[tuple[str, ...], bool]:
    """Return the plausible readings of a concrete function of one image, and whether it is a
    MobileNet. image: the TensorSpec of the model's own input."""
    readings, mobilenet = tuple[str, ...](), False
    with suppress_native_output(), suppress(ValueError):
        opening = TensorFlowOpening(tf, function)
        readings = plausible_readings(opening, tuple(image.shape[1:]))
        mobilenet = opening.is_mobilenet
    # Whole numbers can't be anything else.
    return ("0..255",) if image.dtype.is_integer else readings, mobilenet


def _judged(tf: Any, function: Any, data: bytes, image: Any) -> Shape:
    """Return the tensors of the .tflite `data`, and the readings of the function that it was made
    of."""
    readings, mobilenet = _readings(tf, function, image)
    if readings == ALL:
        with suppress_native_output():
            readings = readings_heard(LiteOpening(data).responses, tuple(image.shape[1:]))
    shape = replace(
        describe(data),
        readings=readings,
        scales_inside=readings == ("0..255",),
        mobilenet=mobilenet,
    )
    check_same_answers(tf, function, data, readings)
    return shape


def saved_model(
    path: Path, signature: str = SERVING, size: tuple[int, int] | None = None
) -> tuple[bytes, Shape]:
    """Return the signature of a SavedModel folder as a float32 .tflite, and its tensors.

    Raises ConvertError if the folder is no SavedModel, or has no such signature (the message
    lists those it has), or the signature is not one image in and one tensor out.
    """
    return _saved_model(path, path, signature, size)


def _saved_model(
    folder: Path, path: Path, signature: str, size: tuple[int, int] | None
) -> tuple[bytes, Shape]:
    if not (folder / "saved_model.pb").is_file():
        raise ConvertError(f"{path} is not a SavedModel: it holds no saved_model.pb")
    tf = tensorflow()
    with suppress_native_output():
        try:
            loaded = tf.saved_model.load(str(folder))
        except (ValueError, OSError, RuntimeError, tf.errors.OpError) as error:
            raise ConvertError(
                f"{path} is not a SavedModel that loads: {first_line(error)}"
            ) from None
    names = sorted(loaded.signatures)
    if signature not in names:
        have = f"its signatures are {', '.join(names)}" if names else "it has no signatures at all"
        hint = "; choose one with --signature" if names else "; export it with one"
        raise ConvertError(f"{path} has no signature {signature}: {have}{hint}")
    function = loaded.signatures[signature]
    inputs = function.structured_input_signature[1]
    if len(inputs) != 1 or len(function.structured_outputs) != 1:
        raise ConvertError(
            f"{path}: signature {signature} takes {', '.join(inputs)} and returns"
            f" {', '.join(function.structured_outputs)}; a classifier has one of each"
        )
    [(argument, spec)] = inputs.items()
    image = tf.TensorSpec(fixed_shape(tuple(spec.shape.as_list()), size), spec.dtype)
    call, taken = with_float_input(
        tf, lambda value: next(iter(function(**{argument: value}).values())), image
    )
    data, concrete = _one_image(tf, loaded, call, taken)
    return data, _judged(tf, concrete, data, image)


def _one_image(tf: Any, loaded: Any, call: Callable[[Any], Any], image: Any) -> tuple[bytes, Any]:
    """Return the signature, called with a batch of one, through a second SavedModel: the converter
    can't fix the batch of a signature that leaves it open."""

    class OneImage(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loaded = loaded

        @tf.function(input_signature=[image])
        def __call__(self, value: Any) -> Any:
            return call(value)

    module = OneImage()
    with tempfile.TemporaryDirectory() as folder, suppress_native_output():
        function = module.__call__.get_concrete_function()
        if needs_float32(function):
            return _convert(tf, in_float32(tf, function)), function
        tf.saved_model.save(module, folder, signatures=module.__call__)
        return _convert(tf, tf.lite.TFLiteConverter.from_saved_model(folder)), function


def _convert(tf: Any, converter: Any) -> bytes:
    # Public only in tensorflow.lite's own tree.
    failed = import_module("tensorflow.lite.python.convert_phase").ConverterError
    try:
        model = bytes(converter.convert())
    except (tf.errors.OpError, ValueError, RuntimeError, failed) as error:
        missing = _MISSING_OPERATORS.search(str(error))
        why = (
            f"TFLite has no operator for {missing[1]} of its types"
            if missing
            else first_line(error)
        )
        raise ConvertError(
            f"TensorFlow's converter can't make this model a .tflite: {why}"
        ) from None
    describe(model)
    return model


def tflite_file(path: Path) -> bytes:
    """Read a float32 .tflite. Raises ConvertError if it is missing or not one."""
    try:
        model = path.read_bytes()
    except OSError as error:
        raise ConvertError(f"{path} can't be read: {error.strerror}") from None
    try:
        describe(model)
    except ConvertError as error:
        raise ConvertError(f"{path}: {error}") from None
    return model


def _read_tflite(file: Path, path: Path) -> Tflite:
    try:
        return read_tflite(file.read_bytes())
    except OSError as error:
        raise ConvertError(f"{path} can't be read: {error.strerror}") from None
    except ConvertError as error:
        raise ConvertError(f"{path}: {error}") from None
