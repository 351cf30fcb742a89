"""A bundle on disk: bundle.json as types: how a model is fed, read and judged.

`convert` writes it, `server` verifies it, both through this module. The recipe in it is the one
source of truth for preprocessing: training, evaluation and serving pass the same `Recipe` to
`frame.decode` and `preprocessing.to_tensor`.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec

from server.errors import BundleError
from server.recognition.tasks import TASK_NAMES, TaskName, load_task
from server.system.files import MODEL_MAX, open_plain_file, read_plain_file
from server.values import json_values
from server.values.labels import Label, parse_labels
from server.values.validation import InvalidValueError

# Name of the output of a classifier that says how familiar a frame is.
FAMILIARITY = "familiarity"
MANIFEST, MODEL, LABELS, GOLDEN = "bundle.json", "model.tflite", "labels.txt", "golden"
# The model is the first of these that a bundle has; its ending says which engine runs it.
MODEL_FILES = (MODEL, "model.onnx", "model.xml")
# The weights of a model.xml.
WEIGHTS = "model.bin"
EngineName: TypeAlias = Literal["litert", "onnxruntime", "openvino"]
EngineChoice: TypeAlias = Literal["auto", "litert", "onnxruntime", "openvino"]
# The signature of bundle.json, if the version is signed.
SIGNATURE = f"{MANIFEST}.sig"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

Positive = Annotated[int, msgspec.Meta(ge=1, le=8192)]
Layout = Literal["nhwc", "nchw"]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Side = Annotated[float, msgspec.Meta(gt=0, le=1)]
# Left, top, width and height in shares of a frame as sent, upright.
Region: TypeAlias = tuple[Share, Share, Side, Side]
# Views of one frame that a model is shown at most.
VIEWS_MAX = 64
# Shares such as 0.7 and 0.3 may add up to a little more than 1.
ROUNDING = 1e-9


class NamedRegion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of several regions of a frame, each of which gets an answer of its own."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    box: Region


class Tiles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parts of a region that a model is shown one by one, so that small things keep their pixels.

    columns, rows: how many there are. overlap: share of a tile's side that it shows together with
    the next one; what is smaller than that is whole in one of them.
    """

    columns: Annotated[int, msgspec.Meta(ge=1, le=VIEWS_MAX)]
    rows: Annotated[int, msgspec.Meta(ge=1, le=VIEWS_MAX)]
    overlap: Annotated[float, msgspec.Meta(ge=0, le=0.75)] = 0.2


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The steps that make the model's input of an image.

    width, height: the model's input in pixels.
    color: channel order; `gray` feeds one channel.
    resize: `stretch` ignores the aspect ratio, `crop` keeps it and cuts the centre, `letterbox`
        keeps it and pads with `pad`.
    interpolation: `area`, `linear`, `cubic` and `nearest` are OpenCV's; `fast_area` goes linearly
        to the input's size times a power of two and halves from there: as free of aliasing as
        `area`, at a quarter of its time.
    scale, offset: tensor = pixel * scale + offset, pixel in 0..255; one number or one a channel.
    decode: `scaled` lets a JPEG be decoded at 1/2, 1/4 or 1/8, never below what the resize needs;
        `exact` decodes every pixel.
    pad: grey level 0..255 of letterbox bars.
    layout: order of the input tensor's dimensions: `nhwc` is height, width, channels, as TensorFlow
        has them; `nchw` is channels, height, width, as PyTorch has them.
    dtype: of the model's input tensor; `uint8` and `int8` are quantised by the tensor's own scale
        and zero point after the scaling above.
    zero_inputs: names of further inputs of the model, which get zeros for each frame, such as the
        state of an LSTM.
    region: the part of the frame that the model is shown, and nothing else; None for all of it.
    tiles: the parts of the region that the model is shown one by one, of which the results are
        merged; None for the region as a whole.
    regions: several parts of the frame in place of `region`, each answered on its own.
    """

    width: Positive
    height: Positive
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    resize: Literal["stretch", "crop", "letterbox"] = "stretch"
    interpolation: Literal["fast_area", "area", "linear", "cubic", "nearest"] = "fast_area"
    scale: float | tuple[float, float, float] = 1.0
    offset: float | tuple[float, float, float] = 0.0
    decode: Literal["scaled", "exact"] = "scaled"
    pad: Annotated[int, msgspec.Meta(ge=0, le=255)] = 114
    layout: Layout = "nhwc"
    dtype: Literal["float32", "float16", "uint8", "int8"] = "float32"
    zero_inputs: tuple[str, ...] = ()
    region: Region | None = None
    tiles: Tiles | None = None
    regions: tuple[NamedRegion, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError for a region that is not in the frame, for regions that contradict each
        other, for tiles that can't be merged, or too many of them, and for numbers of channels that
        a gray image does not have."""
        for name in ("scale", "offset"):
            if self.color == "gray" and isinstance(getattr(self, name), tuple):
                raise ValueError(f"recipe.{name} should be one number, since the color is gray")
        if self.region is not None and beyond_frame(self.region):
            raise ValueError("recipe.region reaches beyond the frame, where a share is more than 1")
        for number, each in enumerate(self.regions):
            if beyond_frame(each.box):
                raise ValueError(
                    f"recipe.regions[{number}].box reaches beyond the frame, where a share is more"
                    " than 1"
                )
        if self.regions and self.region is not None:
            raise ValueError("recipe.region and recipe.regions exclude each other")
        if len({each.name for each in self.regions}) < len(self.regions):
            raise ValueError("recipe.regions has two regions of one name")
        tiles = self.tiles.columns * self.tiles.rows if self.tiles else 1
        if (count := max(1, len(self.regions)) * tiles) > VIEWS_MAX:
            raise ValueError(
                f"the recipe's regions and tiles make {count} views of a frame; at most"
                f" {VIEWS_MAX} are taken"
            )
        if self.tiles and self.resize == "crop":
            raise ValueError("recipe.tiles needs the resize stretch or letterbox: crop leaves gaps")

    @property
    def channels(self) -> int:
        """Channels of the tensor: 1 for gray, else 3."""
        return 1 if self.color == "gray" else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """The tensor's dimensions after the first, in the order of `layout`."""
        if self.layout == "nchw":
            return self.channels, self.height, self.width
        return self.height, self.width, self.channels


def beyond_frame(region: Region) -> bool:
    """Returns whether a region reaches beyond the right or lower edge of the frame."""
    left, top, width, height = region
    return max(left + width, top + height) > 1 + ROUNDING


class VerdictPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The policy that turns a label into a verdict about the part in front of the camera.

    accept: labels that pass; any other label fails.
    min_probability: below it the verdict is `unsure`, whatever the label.
    min_familiarity: below it a frame is unfamiliar, and its verdict is `unsure`; only for a model
        with FAMILIARITY. Absent: 0.5, where `convert` puts the threshold. It can't be switched off:
        0.4 lets a frame be 1.5 times as far from the learned ones as 0.5 does.
    """

    accept: tuple[str, ...]
    min_probability: Share = 0.5
    min_familiarity: Annotated[float, msgspec.Meta(ge=0.4, le=0.95)] | msgspec.UnsetType = (
        msgspec.UNSET
    )


# Who set the verdict policy that judged a frame.
PolicySource = Literal["bundle", "device", "product"]


class DevicePolicy(msgspec.Struct, frozen=True):
    """A verdict policy that was set on this device in place of the bundle's. at: when, RFC 3339.
    caller: the name of the key or token that set it, empty without. source: who judges by it."""

    policy: VerdictPolicy
    at: str = ""
    caller: str = ""
    source: PolicySource = "device"


class ClassReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One class in a validation: its frames, precision and recall in 0..1."""

    images: int
    precision: float
    recall: float


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The calibration of a classifier's probabilities.

    temperature: that its logits are divided by, in the model. frames: held back, that it was
    fitted on. error_before, error_after: expected calibration error 0..1 on these frames, of the
    logits as they were, and with each frame's temperature fitted on others.
    """

    temperature: Annotated[float, msgspec.Meta(gt=0)]
    frames: int
    error_before: Share
    error_after: Share


class VerdictReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Verdicts on labelled frames by the bundle's policy.

    good, bad: frames of good and of bad parts. escapes: bad ones that passed. refused: good ones
    that failed. good_unsure, bad_unsure: those that are neither. The intervals are 95% Wilson
    intervals of the shares of `bad` and of `good`.
    """

    good: int
    bad: int
    escapes: int
    escapes_interval: tuple[float, float]
    refused: int
    refused_interval: tuple[float, float]
    good_unsure: int
    bad_unsure: int


class Report(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Validation of this model and of the float model it came from, on the same frames.

    Accuracies are shares in 0..1. `interval` is the 95% Wilson interval of `top1`. `confusion` has
    a row a true class and a column a predicted one, in the order of labels.txt; it is empty for
    more than 100 labels. `classes` has those that frames were of. `verdict` is None without a
    policy, `calibration` if the probabilities are the model's own. `details` names a file of the
    bundle that holds everything else.
    """

    images: int
    top1: float
    top1_float: float
    interval: tuple[float, float]
    classes: dict[str, ClassReport]
    confusion: tuple[tuple[int, ...], ...]
    size_ratio: float | None = None
    latency_ratio: float | None = None
    agreement: float | None = None
    verdict: VerdictReport | None = None
    calibration: Calibration | None = None
    details: str | None = None


class Baseline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Statistics of the validation frames, for measuring drift.

    classes: share of each predicted label. confidence: shares of top-1 probability in ten bins of
    0.1 from 0 to 1. brightness: shares of mean grey level in sixteen bins of 16 from 0 to 255.
    """

    classes: dict[str, float]
    confidence: tuple[float, ...]
    brightness: tuple[float, ...]


class Golden(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frame in `golden/` that a version must get right before it may serve.

    The probability is compared with `tolerance`, since resize and kernels differ by processor.
    region: the name of the region that shows it, of a recipe with several.
    """

    file: str
    label: str
    probability: Share
    tolerance: Share = 0.1
    region: str = ""


class Familiarity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The making of the output FAMILIARITY.

    false_unfamiliar: share of frames like those learned from that the threshold was chosen to call
    unfamiliar. learned_from: frames. held_back, held_back_unfamiliar: frames that were not learned
    from, or by the others only, and the share of them below the threshold.
    """

    false_unfamiliar: Share
    learned_from: int
    held_back: int
    held_back_unfamiliar: Share


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """bundle.json.

    sha256: hex digest of every file of the bundle but bundle.json, by its path in the bundle.
    output: what the model's output is: `probabilities`, or `logits` that the server turns into
        probabilities by softmax (`sigmoid` for independent labels).
    engine: that runs the model, if the device's settings name no other; `auto` is the usual one of
        the model's file, or what `bench` found quicker on this device.
    familiarity: of a classifier whose last output says how like the frames that it learned from a
        frame is: 0.5 at the threshold, below it the frame is unfamiliar; None without that output.
    """

    format: Literal[1] = 1
    name: str
    version: Annotated[int, msgspec.Meta(ge=1)]
    task: TaskName = "classify"
    sha256: dict[str, str]
    recipe: Recipe | None = None
    output: Literal["probabilities", "logits", "sigmoid"] = "probabilities"
    quantization: Literal["float32", "float16", "dynamic", "int8"]
    engine: EngineChoice = "auto"
    source: str = ""
    license: str = ""
    report: Report | None = None
    familiarity: Familiarity | None = None
    verdict: VerdictPolicy | None = None
    baseline: Baseline | None = None
    golden: tuple[Golden, ...] = ()

    @property
    def model_file(self) -> str | None:
        """The name of the model's file; None if `sha256` has none."""
        return next((name for name in MODEL_FILES if name in self.sha256), None)

    @property
    def model_sha256(self) -> str:
        """The sha256 of the model's file, '' if it is not given."""
        return self.sha256.get(self.model_file or "", "")


class Bundle(msgspec.Struct, frozen=True):
    """A verified bundle on disk: its folder, bundle.json, labels, and the name of its model's
    file."""

    folder: Path
    manifest: Manifest
    labels: tuple[Label, ...]
    model_file: str = MODEL

    @property
    def model_path(self) -> Path:
        return self.folder / self.model_file

    def model_sha256(self) -> str:
        """Returns the sha256 of the model's file, which is read if no bundle.json gives it. Raises
        OSError."""
        return self.manifest.model_sha256 or digest(self.model_path)


def read_model(path: Path) -> bytes:
    """Reads a model's file. Raises BundleError."""
    try:
        return read_plain_file(path, MODEL_MAX)
    except OSError as error:
        raise BundleError(f"{path} can't be read: {error.strerror}") from None


def digest(path: Path) -> str:
    """Returns the sha256 of a plain file as 64 hex digits. Raises OSError."""
    with open_plain_file(path, MODEL_MAX) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_files(folder: Path, expected: Mapping[str, str]) -> None:
    """Raises BundleError naming the first file that is missing or differs from its digest."""
    for name, sha256 in expected.items():
        path = folder / name
        if "\0" in name:
            raise BundleError(f"{folder}: bundle.json names {name!r}, which no file can be called")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise BundleError(f"{folder}: bundle.json names {name}, which lies outside the bundle")
        try:
            actual = digest(path)
        except FileNotFoundError:
            raise BundleError(f"{path} is missing") from None
        except OSError as error:
            raise BundleError(f"{path} can't be read: {error.strerror}") from None
        if actual != sha256:
            raise BundleError(f"{path} is damaged: its sha256 differs from bundle.json's")


class _TaskOnly(msgspec.Struct):
    task: str = "classify"


def read_task(data: bytes) -> TaskName | None:
    """Returns the task that bundle.json names, however wrong the rest is; None if that is no task
    of this server's."""
    try:
        task = msgspec.json.decode(data, type=_TaskOnly).task
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return next((name for name in TASK_NAMES if name == task), None)


def _manifest_type(data: bytes) -> type[Manifest]:
    task = read_task(data)
    kind: type[Manifest] = load_task(task).manifest_type if task else Manifest
    return kind


def read_bundle(folder: Path) -> Bundle:
    """Reads the bundle in `folder` (models/NAME/VERSION), and checks every file by its sha256.

    Raises BundleError with one sentence that names the file and its fault.
    """
    path = folder / MANIFEST
    try:
        data = read_plain_file(path)
        manifest = json_values.decode(data, _manifest_type(data), name="it", lenient=False)
    except FileNotFoundError:
        raise BundleError(f"{path} is missing") from None
    except OSError as error:
        raise BundleError(f"{path} can't be read: {error.strerror}") from None
    except InvalidValueError as error:
        raise BundleError(f"{path} is not a valid bundle.json: {error}") from None
    if not NAME.fullmatch(manifest.name):
        raise BundleError(f"{path}: the name {manifest.name!r} is not usable in an address")
    task = load_task(manifest.task)
    if manifest.model_file is None:
        raise BundleError(f"{path} gives no sha256 for {' or '.join(MODEL_FILES)}")
    needed = (LABELS,) if task.needs_labels else ()
    weights = (WEIGHTS,) if manifest.model_file == MODEL_FILES[-1] else ()
    for name in (*needed, *weights, *(golden.file for golden in manifest.golden)):
        if name not in manifest.sha256:
            raise BundleError(f"{path} gives no sha256 for {name}")
    if task.takes_images and manifest.recipe is None and manifest.golden:
        raise BundleError(f"{path} has golden frames but no recipe to feed them by")
    verify_files(folder, manifest.sha256)
    labels = read_labels(folder / LABELS) if LABELS in manifest.sha256 else ()
    names = {label.name for label in labels}
    for accepted in manifest.verdict.accept if manifest.verdict else ():
        if accepted not in names:
            raise BundleError(f"{path}: the verdict accepts {accepted}, which labels.txt lacks")
    return Bundle(folder, manifest, labels, manifest.model_file)


def read_labels(path: Path) -> tuple[Label, ...]:
    """Reads labels in output order from the file `path`. Raises BundleError as `parse_labels` does,
    and if the file can't be read."""
    try:
        data = read_plain_file(path)
    except OSError as error:
        raise BundleError(f"{path} can't be read: {error.strerror}") from None
    return parse_labels(data, str(path))
