"""Bundles, outputs of models, and the metadata of a .tflite."""

import hashlib
import io
import json
import struct
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np

from convert.detection.model import read_metadata
from convert.errors import ConvertError
from convert.sources.model_files import kind_of_model
from fuzz.mutation import FLOATS, Draw
from fuzz.target import Target, promise
from server.errors import BundleError
from server.recognition.answers import Options
from server.recognition.detection.manifest import DetectionOutputs
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import LABELS, MANIFEST, MODEL, Bundle, Recipe, read_bundle
from server.recognition.preprocessing import Placement, TensorSpec
from server.recognition.tasks import load_task
from server.recognition.tasks.task import NotFiniteError
from server.values.labels import parse_labels

SIDE = 32
IMAGE = TensorSpec("image", (1, SIDE, SIDE, 3), "float32")
LABEL_LINES = b"bolt\nnut\nwasher\n"
SHIPPED = Path(__file__).resolve().parents[3] / "models"
CONVENTIONS: dict[str, tuple[dict[str, Any], tuple[tuple[int, ...], ...]]] = {
    "post_process": (
        {"outputs": (0, 1, 2, 3), "box_format": "yxyx"},
        ((1, 9, 4), (1, 9), (1, 9), (1,)),
    ),
    "yolov5": ({"iou_threshold": 0.3}, ((1, 84, 8),)),
    "yolov8": ({"box_unit": "share"}, ((1, 7, 84),)),
    "nms": ({"box_format": "xyxy", "class_offset": 1}, ((1, 20, 6),)),
    "fomo": ({"background": 0, "activation": "softmax"}, ((1, 4, 4, 3),)),
    "blazeface": ({"outputs": (0, 1), "anchors": ((8, 2), (16, 6))}, ((1, 56, 16), (1, 56, 1))),
    "class_map": ({"score_threshold": 0.01}, ((1, 8, 8),)),
}
# A dtype of outputs, its scale and zero point.
KINDS = (("float32", 0.0, 0), ("uint8", 0.02, 3), ("int8", 1e30, -128), ("float16", 0.0, 0))


class _Outputs:
    """Outputs of models of one task. An input says first which model, where the frame lies, and
    from which values the tensors are filled."""

    def __init__(self, readers: list[Any]) -> None:
        self._readers = readers

    def run(self, data: bytes) -> None:
        draw = Draw(data)
        reader = draw.pick(self._readers)
        width, height = draw.whole(1, 400), draw.whole(1, 400)
        nasty, filled = draw.whole(0, 3) == 0, draw.rest() or b"\0"
        tensors = [
            _filled(spec, filled[index:] or b"\0", nasty)
            for index, spec in enumerate(reader.pool.outputs)
        ]
        try:
            values = reader.decode(tensors)
        except NotFiniteError:
            return
        scale = SIDE / width, SIDE / height
        place = Placement((width, height), scale, (0.0, 0.0), (0.0, 0.0, SIDE, SIDE))
        result = reader.result(values, Options(), place)
        reader.verdict(result)
        for each in result.predictions:
            promise(0 <= each.probability <= 1, f"the probability {each.probability}")
        text = msgspec.json.encode((result.predictions, getattr(result, "shown", None)))
        promise(len(text) < 1 << 20, f"an answer of {len(text)} bytes")
        if not reader.tiles_fault():
            _merge(reader, values, place)


def _merge(reader: Any, values: Any, place: Placement) -> None:
    """Both halves of a frame that show the same."""
    width, height = place.size
    whole = (2 * width, height)
    left = msgspec.structs.replace(place, size=whole)
    right = msgspec.structs.replace(left, offset=(-width * place.scale[0], 0.0))
    merged, where = reader.merge([values, values], [left, right])
    reader.result(merged, Options(), where)


def _filled(spec: TensorSpec, data: bytes, nasty: bool) -> np.ndarray[Any, Any]:
    dtype, count = np.dtype(spec.dtype), int(np.prod(spec.shape))
    if nasty and dtype.kind == "f":
        numbers = np.array(FLOATS)[np.resize(np.frombuffer(data, np.uint8), count) % len(FLOATS)]
        return numbers.astype(dtype).reshape(spec.shape)
    whole = np.frombuffer(
        data.ljust(dtype.itemsize, b"\0")[
            : len(data) // dtype.itemsize * dtype.itemsize or dtype.itemsize
        ],
        dtype,
    )
    return np.resize(whole, count).reshape(spec.shape)


def _bundle(
    task: str, specs: tuple[TensorSpec, ...], labels: tuple[str, ...], **fields: Any
) -> Any:
    kind = load_task(cast(Any, task)).manifest_type
    given = {"name": "a", "version": 1, "task": task, "quantization": "float32", "sha256": {}}
    recipe = {"width": SIDE, "height": SIDE}
    manifest = msgspec.convert({**given, "recipe": recipe, **fields}, kind)
    bundle = Bundle(Path("a"), manifest, parse_labels("\n".join(labels).encode()))
    # Of the pool a reader asks for its tensors alone.
    pool = cast(InterpreterPool, SimpleNamespace(inputs=(IMAGE,), outputs=specs))
    return load_task(cast(Any, task)).make_reader(bundle, pool)


def _detectors() -> list[Any]:
    readers = []
    for convention, (fields, shapes) in CONVENTIONS.items():
        for dtype, scale, zero in KINDS:
            for activation in ("none", "sigmoid"):
                specs = tuple(TensorSpec("o", shape, dtype, scale, zero) for shape in shapes)
                recipe = {"convention": convention, "activation": activation, **fields}
                msgspec.convert(recipe, DetectionOutputs, strict=False)
                policy = {"expected": {"nut": 1}, "region": [0, 0, 0.5, 1]}
                names = ("face",) if convention == "blazeface" else ("bolt", "nut", "washer")
                rules = policy if len(names) > 1 else {"minimum": {"face": 1}}
                readers.append(_bundle("detect", specs, names, detection=recipe, verdict=rules))
    return readers


def _classifiers() -> list[Any]:
    return [
        _bundle(
            "classify",
            (TensorSpec("o", (1, 3), dtype, scale, zero),),
            ("bolt", "nut", "washer"),
            output=output,
            verdict={"accept": ["nut"]},
        )
        for dtype, scale, zero in KINDS
        for output in ("probabilities", "logits", "sigmoid")
    ]


def _anomalies() -> list[Any]:
    readers = []
    for dtype, scale, zero in KINDS:
        score = TensorSpec("score", (1, 1), dtype, scale, zero, "score")
        places = TensorSpec("map", (1, 4, 4, 1), dtype, scale, zero, "map")
        verdict = {"accept": ["good"], "threshold": 0.5}
        readers.append(_bundle("anomaly", (score, places), ("good", "anomaly"), verdict=verdict))
    return readers


def _output_seeds() -> tuple[bytes, ...]:
    rows = np.zeros((84, 8), np.float32)
    rows[3] = (16, 16, 8, 8, 0.9, 0.1, 0.8, 0.1)
    rows[4] = (17, 16, 8, 8, 0.8, 0.1, 0.7, 0.1)
    heads = (struct.pack("<BHHH", number, 31, 31, 1) for number in range(0, 56, 5))
    return (
        *(head + rows[3:6].tobytes() for head in heads),
        struct.pack("<BHHH", 1, 9, 9, 0) + bytes(60),
    )


class _Bundles:
    """bundle.json beside the files that the seeds name."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp())
        (self._folder / "golden").mkdir()
        for name, content in self.files().items():
            (self._folder / name).write_bytes(content)

    @staticmethod
    def files() -> dict[str, bytes]:
        return {MODEL: b"a model", LABELS: LABEL_LINES, "golden/nut.jpg": b"a picture"}

    def run(self, data: bytes) -> None:
        (self._folder / MANIFEST).write_bytes(data)
        bundle = read_bundle(self._folder)
        promise(bundle.model_path.parent == self._folder, "a model outside of its bundle")

    @classmethod
    def seeds(cls) -> tuple[bytes, ...]:
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in cls.files().items()}
        plain = {"name": "nuts", "version": 1, "sha256": digests, "quantization": "int8"}
        recipe = {"width": SIDE, "height": SIDE}
        golden = {"file": "golden/nut.jpg", "label": "nut", "probability": 0.9}
        box = {"label": "nut", "probability": 0.9, "box": [1, 2, 3, 4]}
        tasks: list[dict[str, Any]] = [
            {**plain, "recipe": recipe, "golden": [golden], "verdict": {"accept": ["nut"]}},
            {
                **plain,
                "task": "detect",
                "recipe": recipe,
                "detection": {"convention": "yolov8"},
                "golden": [{**golden, "detections": [box]}],
                "verdict": {"expected": {"nut": 2}},
            },
            {**plain, "task": "anomaly", "recipe": recipe},
            {**plain, "task": "tensor"},
        ]
        shipped = (SHIPPED / "parts" / "1" / MANIFEST).read_bytes()
        return (shipped, *(json.dumps(each).encode() for each in tasks))


def _labels(data: bytes) -> None:
    for label in parse_labels(data):
        promise(label.name == label.name.strip() != "", f"the label {label.name!r}")


def _metadata(data: bytes) -> None:
    """The TFLite metadata of 1 KiB at most, then the zip behind the model."""
    size = int.from_bytes(data[:2], "little") % 1024
    buffers = [SimpleNamespace(data=data[2 : 2 + size])]
    parsed = SimpleNamespace(
        metadata=[SimpleNamespace(name=b"TFLITE_METADATA", buffer=0)], buffers=buffers
    )
    metadata = read_metadata(data[2 + size :], parsed)
    for label in metadata.labels:
        promise(label.name == label.name.strip() != "", f"the label {label.name!r}")


def _zip(name: str, content: bytes, how: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as archive:
        archive.writestr(name, content)
    return b"\x1c\0\0\0TFL3 a model " + out.getvalue()


def _metadata_seeds() -> tuple[bytes, ...]:
    names = b'{"names": {"0": "bolt", "1": "nut"}, "task": "detect", "imgsz": [32, 32]}'
    printed = b"{'names': ['bolt', 'nut'], 'task': 'detect'}"
    zips = [
        _zip("labels.txt", LABEL_LINES + b"???\n???\n", zipfile.ZIP_STORED),
        _zip("labels.txt", LABEL_LINES, zipfile.ZIP_DEFLATED),
        _zip("temp/meta.txt", names, zipfile.ZIP_DEFLATED),
        _zip("metadata.json", printed, zipfile.ZIP_STORED),
        _zip("a.txt", LABEL_LINES, zipfile.ZIP_LZMA),
        _zip("a.txt", LABEL_LINES, zipfile.ZIP_BZIP2),
    ]
    table = struct.pack("<I", 12) + b"\x0c\0\x08\0" + bytes(60)
    return tuple(struct.pack("<H", len(table)) + table + each for each in zips)


class _ModelFiles:
    def __init__(self) -> None:
        self._file = Path(tempfile.mkdtemp()) / "model"

    def run(self, data: bytes) -> None:
        self._file.write_bytes(data)
        kind_of_model(self._file)


def targets() -> tuple[Target, ...]:
    fields = tuple(f'"{name}"'.encode() for name in (*Recipe.__struct_fields__, "sha256", "golden"))
    paths = (
        b'"../a"',
        b'"/etc/passwd"',
        b'"a\\u0000b"',
        b'"' + b"x" * 300 + b'"',
        b'"golden"',
        b'""',
    )
    zips = (
        b"PK\3\4",
        b"PK\1\2",
        b"PK\5\6",
        b"labels.txt",
        b"names",
        b"\x08\0",
        b"\x0e\0",
        b"\x0c\0",
    )
    heads = (
        b"\x08\x01\x12",
        b"\x89HDF\r\n\x1a\n",
        b"TFL3",
        b"\x1f\x8b",
        b"\x80\x04\x95",
        b"\x08\x07\x12",
    )
    files = (
        _zip("config.json", b"{}", zipfile.ZIP_STORED)[21:],
        b"    TFL3",
        b"\x80\x04\x95" + bytes(9),
    )
    return (
        Target("bundle", _Bundles().run, _Bundles.seeds(), (*fields, *paths), (BundleError,)),
        Target(
            "labels",
            _labels,
            (LABEL_LINES, b"n01\tbolt\r\nn02\tbolt\r\n", b"\xff\xfea\0\n\0b\0"),
            (),
            (BundleError,),
        ),
        Target("outputs-detect", _Outputs(_detectors()).run, _output_seeds()),
        Target("outputs-classify", _Outputs(_classifiers()).run, _output_seeds()),
        Target("outputs-anomaly", _Outputs(_anomalies()).run, _output_seeds()),
        Target("tflite-metadata", _metadata, _metadata_seeds(), zips, (ConvertError,)),
        Target("model-files", _ModelFiles().run, files, heads, (ConvertError,)),
    )
