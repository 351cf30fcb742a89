"""An ONNX model that classifies images: its tensors, and what its metadata says of its pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from convert.errors import ConvertError
from convert.recipe.readings import READINGS
from convert.sources.shapes import Output
from server.recognition.manifest import Layout, Recipe
from server.values.labels import Label
from server.values.wording import counted

CHANNELS = (1, 3)
SIDE_MAX = 8192  # that a recipe takes
# What the last operator says of the output; any other gives logits.
_OUTPUTS: dict[str, Output] = {"Softmax": "probabilities", "Sigmoid": "sigmoid"}
# ONNX's own metadata of images, MetadataProps.md, and the readings that they mean.
PIXEL_RANGE, PIXEL_FORMAT = "Image.NominalPixelRange", "Image.BitmapPixelFormat"
_RANGES = {"NominalRange_0_255": "0..255", "Normalized_0_1": "0..1", "Normalized_1_1": "-1..1"}
_COLORS = {"Rgb8": "rgb", "Bgr8": "bgr", "Gray8": "gray"}


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """A model in one file. height, width: of its image in pixels. metadata: its properties."""

    data: bytes
    layout: Layout
    height: int
    width: int
    channels: int
    classes: int
    output: Output
    metadata: Mapping[str, str]

    def metadata_recipe(self) -> dict[str, Any]:
        """Return the recipe fields that the metadata gives. Raises ConvertError for a range of
        pixels that the server does not make."""
        values: dict[str, Any] = {}
        if (found := self.metadata.get(PIXEL_RANGE)) is not None:
            if found not in _RANGES:
                raise ConvertError(
                    f"the model's metadata asks for pixels of {found}, which is not made: say how"
                    " they were scaled in training with --scale and --offset"
                )
            reading = READINGS[_RANGES[found]]
            values |= {"scale": reading.scale, "offset": reading.offset}
        if (color := self.metadata.get(PIXEL_FORMAT)) in _COLORS:
            values["color"] = _COLORS[color]
        return values


def import_onnx() -> Any:
    """Return the package onnx. Raises ConvertError if it is not installed."""
    try:
        import onnx
        import onnxruntime  # noqa: F401 - runs what is read
    except ImportError as error:
        raise ConvertError(
            f"{error.name} is not installed: pip install -r convert/requirements-onnx.txt"
        ) from None
    return onnx


def load_onnx(path: Path) -> Any:
    """Return the model in a file, with its weights, also if they lie in files beside it. Raises
    ConvertError."""
    onnx = import_onnx()
    # The package of its error, protobuf, has no types.
    decode_error = import_module("google.protobuf.message").DecodeError
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except FileNotFoundError as error:
        raise ConvertError(f"{error.filename or path} does not exist") from None
    except (decode_error, ValueError, TypeError, onnx.checker.ValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConvertError(f"{path} is no ONNX model that can be read: {reason}") from None
    return model


def read_onnx(model: Any, size: Sequence[int] | None = None) -> OnnxModel:
    """Return what a model takes and gives.

    model: as `load_onnx` returns it. size: height and width of the image, if the model leaves them
    open. Raises ConvertError unless it has one image of float32 and one output of scores.
    """
    graph = model.graph
    constants = {each.name for each in graph.initializer}
    inputs = [each for each in graph.input if each.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise ConvertError(
            f"the model has {counted(len(inputs), 'input')} and"
            f" {counted(len(graph.output), 'output')}; a classifier of images has one each"
        )
    _check_float(inputs[0])
    _check_float(graph.output[0])
    dims = inputs[0].type.tensor_type.shape.dim
    shape = [dim.dim_value or -1 for dim in dims]
    if len(shape) != 4 or shape[0] not in (-1, 1):
        raise ConvertError(
            f"the model takes {shape}; an image is [1, channels, height, width], or with channels"
            " last"
        )
    layout = _layout(shape)
    place = 2 if layout == "nchw" else 1
    for number, side in enumerate(size or (), place):
        if shape[number] not in (-1, side):
            raise ConvertError(f"--size {side} does not fit: the model takes {shape}")
        shape[number] = dims[number].dim_value = side
    height, width = shape[place : place + 2]
    if min(height, width) < 1:
        raise ConvertError("the model takes images of any size: say which with --size HEIGHT WIDTH")
    if max(height, width) > SIDE_MAX:  # it is run below, on an image of this size
        raise ConvertError(f"the model takes {shape}; images have at most {SIDE_MAX} pixels a side")
    data = model.SerializeToString()
    return OnnxModel(
        data,
        layout,
        height,
        width,
        shape[1 if layout == "nchw" else 3],
        _classes(data, layout, (height, width), shape[1 if layout == "nchw" else 3]),
        _output(graph),
        {each.key: each.value for each in model.metadata_props},
    )


def _check_float(value: Any) -> None:
    kind = value.type.tensor_type.elem_type
    if kind != import_onnx().TensorProto.FLOAT:
        name = import_onnx().TensorProto.DataType.Name(kind)
        raise ConvertError(f"{value.name} of the model is {name}, and can only be FLOAT")


def _layout(shape: Sequence[int]) -> Layout:
    first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
    if first == last:
        raise ConvertError(f"the model takes {shape}: which side are its 1 or 3 channels?")
    return "nchw" if first else "nhwc"


def _output(graph: Any) -> Output:
    name = graph.output[0].name
    makers = {out: node for node in graph.node for out in node.output}
    while (node := makers.get(name)) and node.op_type in ("Identity", "Flatten", "Reshape"):
        name = node.input[0]
    return _OUTPUTS.get(node.op_type if node else "", "logits")


def _classes(data: bytes, layout: Layout, size: tuple[int, int], channels: int) -> int:
    """Return the scores that the model gives for an image, by running it."""
    import numpy as np

    from server.errors import BundleError
    from server.recognition.engines.onnx import OnnxRuntime

    image = (channels, *size) if layout == "nchw" else (*size, channels)
    try:
        [session] = OnnxRuntime().load(Path("model.onnx"), data, 1, 1)
        [scores] = session.run([np.zeros((1, *image), np.float32)])
    except (BundleError, RuntimeError, ValueError) as error:
        raise ConvertError(str(error)) from None
    if scores.ndim != 2 or len(scores) != 1:
        raise ConvertError(
            f"the model answers {list(scores.shape)} for one image; a classifier answers [1,"
            " classes]"
        )
    return int(scores.shape[1])


def check_onnx(
    data: bytes, labels: Sequence[Label], recipe: Recipe, mode: str, calibrated: bool
) -> None:
    """Raise ConvertError if an ONNX model does not fit labels, recipe and mode. calibrated: there
    are frames to calibrate on."""
    model = read_onnx(import_onnx().load_from_string(data))
    if mode not in ("float32", "int8"):
        raise ConvertError(f"--mode {mode} is not for ONNX models: say float32 or int8")
    if mode == "int8" and not calibrated:
        raise ConvertError("int8 takes its ranges from real frames: give --calibrate FOLDER")
    if len(labels) != model.classes or model.classes < 2:
        raise ConvertError(
            f"there {'is' if len(labels) == 1 else 'are'} {counted(len(labels), 'label')}, but the"
            f" model answers {model.classes}"
        )
    want = (model.layout, model.height, model.width, model.channels)
    if (recipe.layout, recipe.height, recipe.width, recipe.channels) != want:
        raise ConvertError(f"the recipe makes {list(recipe.shape)}, but the model takes {want}")
