"""A detector's .tflite as it is: its tensors, and what its exporter wrote into the file."""

import ast
import io
import json
import lzma
import struct
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flatbuffers.table
import numpy as np
from ai_edge_litert.tools import flatbuffer_utils

from convert.errors import ConvertError
from convert.recipe.first_layers import LiteOpening
from convert.recipe.readings import plausible_readings
from convert.sources.quantized import Dtype, Mode, mode_of
from convert.sources.shapes import layout_of
from convert.terminal import suppress_native_output
from server.errors import BundleError
from server.recognition.engines.litert import Interpreter
from server.recognition.manifest import Layout
from server.recognition.preprocessing import TensorSpec
from server.values.labels import Label, parse_labels

POST_PROCESS = "TFLite_Detection_PostProcess"
# Bytes of one file of the embedded metadata that are read.
_METADATA_MAX = 1_000_000
# What Python's reader of zips and its decompressors raise for damaged ones.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError),
    *(ValueError, NotImplementedError, RuntimeError),
)
# TensorFlow Lite's metadata_schema.fbs: places of the fields in their tables.
_SUBGRAPHS, _INPUTS, _PROCESS_UNITS, _OPTIONS_TYPE, _OPTIONS, _MEAN, _STD = 10, 8, 12, 4, 6, 4, 6
_NORMALIZATION = 1


@dataclass(frozen=True, slots=True)
class Metadata:
    """The metadata that an exporter wrote into the file, as far as it is there.

    labels: in the order of classes. task: `detect` or another, as Ultralytics names it. mean, std:
    of the input, tensor = (pixel - mean) / std, one number or one a channel. source: where labels
    and task were found, for people.
    """

    labels: tuple[Label, ...] = ()
    task: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class Detector:
    """A .tflite that may be a detector.

    image: the input that takes the image, [1, height, width, channels] or, as Ultralytics exports
    it since 8.4.83, [1, channels, height, width]. zero_inputs: names of the others. post_process:
    places among the outputs of boxes, classes, scores and count, if the operator
    TFLite_Detection_PostProcess makes them. readings: names of `recipe.readings.READINGS` that the
    first layers of a float model suit.
    """

    data: bytes
    image: TensorSpec
    zero_inputs: tuple[str, ...]
    outputs: tuple[TensorSpec, ...]
    mode: Mode
    dtype: Dtype
    post_process: tuple[int, ...]
    readings: tuple[str, ...]
    metadata: Metadata

    @property
    def layout(self) -> Layout:
        """The order of the image's dimensions."""
        return layout_of(self.image.shape) or "nhwc"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the image."""
        height, width, _ = image_sides(self.image)
        return width, height

    @property
    def channels(self) -> int:
        """1 or 3."""
        return image_sides(self.image)[2]


def image_sides(image: TensorSpec) -> tuple[int, int, int]:
    """Return height, width and channels of an input that takes an image."""
    _, a, b, c = image.shape
    return (a, b, c) if layout_of(image.shape) == "nhwc" else (b, c, a)


def read_detector(path: Path) -> Detector:
    """Read the .tflite `path`. Raises ConvertError if it is none, or takes no image."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConvertError(f"{path} can't be read: {error.strerror}") from None
    with tempfile.TemporaryDirectory() as folder, suppress_native_output():
        file = Path(folder) / "model.tflite"
        file.write_bytes(data)
        try:
            interpreter = Interpreter(file, 1)
            parsed = flatbuffer_utils.read_model_from_bytearray(bytearray(data))
        except BundleError as error:
            raise ConvertError(f"{path}: {str(error).partition(': ')[2]}") from None
        except (ValueError, RuntimeError, TypeError, IndexError):
            raise ConvertError(f"{path} is no TFLite model that LiteRT can read") from None
    image, zero_inputs = _image_input(interpreter.inputs)
    readings: tuple[str, ...] = ()
    if image.dtype == "float32" and not zero_inputs:
        with suppress(ValueError), suppress_native_output():
            readings = plausible_readings(LiteOpening(data), image_sides(image))
    return Detector(
        data,
        image,
        zero_inputs,
        interpreter.outputs,
        mode_of(parsed),
        image.dtype,  # type: ignore[arg-type]
        _post_process_places(parsed),
        readings,
        read_metadata(data, parsed),
    )


def _image_input(inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, tuple[str, ...]]:
    """Return the input that takes the image, and the names of the others."""
    images = [spec for spec in inputs if layout_of(spec.shape)]
    if len(images) != 1:
        shapes = ", ".join(str(list(spec.shape)) for spec in inputs)
        raise ConvertError(
            f"the model takes {shapes}; one input must be an image [1, height, width, channels] or"
            " [1, channels, height, width] with 1 or 3 channels"
        )
    [image] = images
    if any(size < 1 for spec in inputs for size in spec.shape[1:]):
        raise ConvertError("the model takes images of any size: export it for one size first")
    if image.dtype not in ("float32", "uint8", "int8"):
        raise ConvertError(f"the model takes {image.dtype}; it must take float32, uint8 or int8")
    return image, tuple(spec.name for spec in inputs if spec is not image)


def _post_process_places(parsed: Any) -> tuple[int, ...]:
    graph = parsed.subgraphs[0]
    outputs = [int(i) for i in graph.outputs]
    for op in graph.operators:
        code = parsed.operatorCodes[op.opcodeIndex].customCode
        if code and bytes(code).decode(errors="replace") == POST_PROCESS:
            made = [int(i) for i in op.outputs[:4]]
            if len(made) == 4 and set(made) <= set(outputs):
                return tuple(outputs.index(i) for i in made)
    return ()


def read_metadata(data: bytes, parsed: Any) -> Metadata:
    """Return what the zip behind the model and its TFLite metadata say."""
    mean, std = _normalization(parsed)
    labels: tuple[Label, ...] = ()
    task = source = ""
    for name, content in _embedded_files(data):
        values = _dictionary(content)
        if values is not None:
            if named := _class_names(values.get("names")):
                labels, source = named, name
            task = str(values.get("task", task))
        elif name.endswith(".txt") and not labels:
            with suppress(BundleError):
                labels, source = parse_labels(without_holes(content), name), name
    return Metadata(labels, task, mean, std, source)


def _class_names(names: object) -> tuple[Label, ...]:
    """Return the classes of Ultralytics' `names`, a list or a dictionary by number; () for what
    is neither, or has a name that no label can be."""
    if isinstance(names, Mapping):
        numbered = {str(key): name for key, name in names.items()}
        if not all(key.isascii() and key.isdigit() and len(key) < 10 for key in numbered):
            return ()
        names = [numbered[key] for key in sorted(numbered, key=int)]
    if not isinstance(names, list):
        return ()
    texts = [str(each).strip() for each in names]
    return tuple(map(Label, texts)) if all(map(_can_be_label, texts)) else ()


def _can_be_label(name: str) -> bool:
    return bool(name) and not any(unicodedata.category(c) in ("Cc", "Cs") for c in name)


def without_holes(content: bytes) -> bytes:
    """Number the lines `???` of a list of labels, which COCO's has for classes without a name."""
    lines = content.splitlines()
    if sum(line.strip() == b"???" for line in lines) < 2:
        return content
    return b"\n".join(
        b"??? %d" % number if line.strip() == b"???" and number else line
        for number, line in enumerate(lines)
    )


def _embedded_files(data: bytes) -> list[tuple[str, bytes]]:
    files = []
    # A model has no zip behind it, or one that some program cut off.
    with (
        suppress(*_DAMAGED),
        zipfile.ZipFile(io.BytesIO(data)) as archive,
    ):
        for entry in archive.infolist()[:16]:
            if entry.file_size <= _METADATA_MAX:
                files.append((entry.filename, archive.read(entry)))
    return files


def _dictionary(content: bytes) -> dict[str, Any] | None:
    """Return the dictionary that the text is, as JSON or as Python prints it; None for others."""
    text = content.decode(errors="replace").strip()
    if not text.startswith("{"):
        return None
    value: object = None
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
    if value is None:
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            value = ast.literal_eval(text)
    return value if isinstance(value, dict) else None


def _normalization(parsed: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of the first input by TFLite's metadata, or ()."""
    entries = [entry for entry in parsed.metadata or () if entry.name == b"TFLITE_METADATA"]
    if not entries:
        return (), ()
    try:
        buffer = bytes(parsed.buffers[entries[0].buffer].data)
        root = flatbuffers.table.Table(buffer, int(np.frombuffer(buffer[:4], "<u4")[0]))
        [graph, *_] = _tables(root, _SUBGRAPHS)
        [tensor, *_] = _tables(graph, _INPUTS)
        for unit in _tables(tensor, _PROCESS_UNITS):
            kind = unit.Offset(_OPTIONS_TYPE)
            if kind and buffer[unit.Pos + kind] == _NORMALIZATION:
                options = flatbuffers.table.Table(buffer, 0)
                unit.Union(options, unit.Offset(_OPTIONS))
                return _floats(options, _MEAN), _floats(options, _STD)
    # Damaged metadata says nothing.
    except (ValueError, IndexError, TypeError, OverflowError, struct.error):
        pass
    return (), ()


def _tables(table: Any, field: int) -> list[Any]:
    offset = table.Offset(field)
    if not offset:
        return []
    start = table.Vector(offset)
    return [
        flatbuffers.table.Table(table.Bytes, table.Indirect(start + 4 * i))
        for i in range(table.VectorLen(offset))
    ]


def _floats(table: Any, field: int) -> tuple[float, ...]:
    offset = table.Offset(field)
    if not offset:
        return ()
    start = table.Vector(offset)
    count = table.VectorLen(offset)
    return tuple(np.frombuffer(table.Bytes, "<f4", count, start).tolist())
