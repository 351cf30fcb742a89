"""Any trained model in, a float32 .tflite with one NHWC image input of batch 1 out."""

import re
import tempfile
import zipfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from convert import scaling
from convert.errors import ConvertError
from convert.quiet import quiet, tensorflow
from convert.shapes import Shape, describe
from convert.shapes import first_line as _first
from server import validation
from server.errors import BundleError
from server.recognition.labels import Label, parse_labels
from server.recognition.manifest import Recipe
from server.validation import InvalidValueError

# MobileNetV2's own scaling, 0..255 to -1..1 (keras.applications' mode "tf").
MOBILENET_SCALE, MOBILENET_OFFSET = 1 / 127.5, -1.0
SERVING = "serving_default"
# The lines of pages of messages that say what is wrong.
_UNKNOWN_CLASS = re.compile(r"Could not locate class '[^']*'")
_MISSING_OPERATORS = re.compile(r"^(?:Custom|Flex|TF Select) ops: (.+?)\s*$", re.MULTILINE)


def from_keras(model: Any, size: tuple[int, int] | None = None) -> bytes:
    """A `keras.Model` of one image input [batch, height, width, channels] as a float32 .tflite.

    size: height and width for a model that leaves them open. Batch normalisation is folded into
    the convolutions. Raises ConvertError for a model with
    several inputs or outputs, an input of open size, and layers that TFLite has no operator for.
    """
    if not getattr(model, "inputs", None):
        raise ConvertError(
            "the model has no inputs yet: give it an Input layer or call it once, then save it"
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ConvertError(
            f"the model has {len(model.inputs)} inputs and {len(model.outputs)} outputs;"
            " a classifier has one of each"
        )
    shape = fixed_shape(tuple(model.inputs[0].shape), size)
    tf = tensorflow()
    # A fixed batch lets the converter fold shapes; `from_keras_model` would keep it open.
    signature = [tf.TensorSpec(shape, model.inputs[0].dtype)]
    with tempfile.TemporaryDirectory() as folder, quiet():
        archive = tf.keras.export.ExportArchive()
        archive.track(model)
        # Keras's layers that vary images do so unless they are told that this is no training.
        archive.add_endpoint(
            "serve", lambda image: model(image, training=False), input_signature=signature
        )
        archive.write_out(folder, verbose=False)
        return _convert(tf, tf.lite.TFLiteConverter.from_saved_model(folder))


def fixed_shape(
    shape: tuple[int | None, ...], size: tuple[int, int] | None
) -> tuple[int, int, int, int]:
    """[1, height, width, channels] from a model's input shape, in which None is open.

    Raises ConvertError where that is not an image, or `size` is needed or contradicts it.
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


def keras_file(path: Path, size: tuple[int, int] | None = None) -> tuple[bytes, Shape]:
    """A .keras, a Keras .h5, or a SavedModel folder as a float32 .tflite, and its tensors.

    Raises ConvertError where it is none of them or does not load.
    """
    if path.is_dir():
        return saved_model(path, size=size)
    if not path.is_file():
        raise ConvertError(f"{path} does not exist")
    if path.suffix not in (".keras", ".h5", ".hdf5"):
        raise ConvertError(f"{path} is neither .keras, .h5 nor the folder of a SavedModel")
    # Keras says of a damaged one that there is no such file.
    if path.suffix == ".keras" and not zipfile.is_zipfile(path):
        raise ConvertError(f"{path} is not a Keras model that loads: it is damaged or incomplete")
    tf = tensorflow()
    with quiet():
        try:
            model = tf.keras.models.load_model(path, compile=False)
        except (
            *(ValueError, TypeError, KeyError, OSError, AttributeError),
            zipfile.BadZipFile,
        ) as error:
            why = _UNKNOWN_CLASS.search(str(error))
            raise ConvertError(
                f"{path} is not a Keras model that loads: {why[0] if why else _first(error)}"
            ) from None
    data = from_keras(model, size)
    shape = describe(data)
    inside = shape.scales_inside or scaling.layer_scales(model) or _keras_scales(tf, model, shape)
    return data, replace(shape, scales_inside=inside)


def _keras_scales(tf: Any, model: Any, shape: Shape) -> bool:
    image = tf.TensorSpec((1, shape.height, shape.width, shape.channels), model.inputs[0].dtype)
    with quiet():
        traced = tf.function(lambda value: model(value, training=False))
        return scaling.function_scales(traced.get_concrete_function(image))


def saved_model(
    path: Path, signature: str = SERVING, size: tuple[int, int] | None = None
) -> tuple[bytes, Shape]:
    """The signature of a SavedModel folder as a float32 .tflite, and its tensors.

    Raises ConvertError where the folder is no SavedModel, or has no such signature (the message
    lists those it has), or the signature is not one image in and one tensor out.
    """
    if not (path / "saved_model.pb").is_file():
        raise ConvertError(f"{path} is not a SavedModel: it holds no saved_model.pb")
    tf = tensorflow()
    with quiet():
        try:
            loaded = tf.saved_model.load(str(path))
        except (ValueError, OSError, RuntimeError, tf.errors.OpError) as error:
            raise ConvertError(f"{path} is not a SavedModel that loads: {_first(error)}") from None
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
    data = _one_image(tf, loaded, function, argument, image)
    shape = describe(data)
    inside = shape.scales_inside or scaling.function_scales(function)
    return data, replace(shape, scales_inside=inside)


def _one_image(tf: Any, loaded: Any, function: Any, argument: str, image: Any) -> bytes:
    """The signature, called with a batch of one, through a second SavedModel: the converter can't
    fix the batch of a signature that leaves it open."""

    class OneImage(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loaded = loaded

        @tf.function(input_signature=[image])
        def __call__(self, value: Any) -> Any:
            return next(iter(function(**{argument: value}).values()))

    with tempfile.TemporaryDirectory() as folder, quiet():
        module = OneImage()
        tf.saved_model.save(module, folder, signatures=module.__call__)
        return _convert(tf, tf.lite.TFLiteConverter.from_saved_model(folder))


def _convert(tf: Any, converter: Any) -> bytes:
    # Public only in tensorflow.lite's own tree.
    failed = import_module("tensorflow.lite.python.convert_phase").ConverterError
    try:
        model = bytes(converter.convert())
    except (tf.errors.OpError, ValueError, RuntimeError, failed) as error:
        missing = _MISSING_OPERATORS.search(str(error))
        why = f"TFLite has no operator for {missing[1]} of its types" if missing else _first(error)
        raise ConvertError(
            f"TensorFlow's converter can't make this model a .tflite: {why}"
        ) from None
    describe(model)
    return model


def tflite_file(path: Path) -> bytes:
    """An existing float32 .tflite. Raises ConvertError where it is missing or not one."""
    try:
        model = path.read_bytes()
    except OSError as error:
        raise ConvertError(f"{path} can't be read: {error.strerror}") from None
    try:
        describe(model)
    except ConvertError as error:
        raise ConvertError(f"{path}: {error}") from None
    return model


def default_recipe(shape: Shape) -> Recipe:
    """How images are fed to a model that says nothing about it but its tensors.

    Pixels stay 0..255 where its first operator scales them itself, and become -1..1, as
    MobileNetV2 takes them, where not.
    """
    return Recipe(
        width=shape.width,
        height=shape.height,
        color="gray" if shape.channels == 1 else "rgb",
        scale=1.0 if shape.scales_inside else MOBILENET_SCALE,
        offset=0.0 if shape.scales_inside else MOBILENET_OFFSET,
    )


def recipe_with(recipe: Recipe, **given: Any) -> Recipe:
    """`recipe` with the values that are not None. Raises ConvertError for one out of range."""
    values = {k: v for k, v in given.items() if v is not None}
    try:
        made = validation.convert(
            {**msgspec.structs.asdict(recipe), **values}, Recipe, lenient=False
        )
    except InvalidValueError as error:
        raise ConvertError(f"the recipe is not usable: {error}") from None
    numbers = np.array([*np.atleast_1d(made.scale), *np.atleast_1d(made.offset)])
    if not np.isfinite(numbers).all() or not np.all(made.scale):
        raise ConvertError("--scale and --offset take finite numbers, and a scale is not 0")
    if made.channels == 1 and (isinstance(made.scale, tuple) or isinstance(made.offset, tuple)):
        raise ConvertError("--scale and --offset take one number each for a grey image")
    return made


def read_labels(path: Path) -> tuple[Label, ...]:
    """Labels in output order, `LABEL` or `ID<TAB>LABEL` a line. Raises ConvertError."""
    try:
        return parse_labels(path.read_bytes(), str(path))
    except OSError as error:
        raise ConvertError(f"{path} can't be read: {error.strerror}") from None
    except BundleError as error:
        raise ConvertError(str(error)) from None
