"""A float model in, a checked bundle out: quantise, prove, gate, write."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from convert import bundle_writer as bundle
from convert.data.dataset import Dataset
from convert.data.frames import input_range, tensors
from convert.errors import ConvertError, GateError, TooFewFramesError
from convert.evaluation import report
from convert.evaluation.evaluate import Model, evaluate
from convert.evaluation.results import Crossed, Evaluation, accuracy_drop, sentence, summary
from convert.evaluation.verdicts import lines
from convert.familiarity import MIN_FRAMES, FamiliarModel, add_familiarity
from convert.folder_check.result import FolderCheck
from convert.golden import baseline, golden_and_sample_frames
from convert.quantization.correction import MAX_FRAMES, correct_by
from convert.quantization.integer import IO_DTYPES
from convert.quantization.onnx_models import quantize_onnx
from convert.quantization.quantize import MODES, Plan, quantize
from convert.quantization.tune import tune
from convert.search.trail import Trail
from convert.sources.onnx_models import check_onnx
from convert.sources.quantized import read_tflite
from convert.sources.shapes import Output, describe
from convert.temperature import MIN_FRAMES as MIN_CALIBRATION_FRAMES
from convert.temperature import CalibratedModel, calibrate, divided
from server.recognition.manifest import (
    MODEL,
    Baseline,
    Calibration,
    Familiarity,
    Golden,
    Manifest,
    Recipe,
    Report,
    VerdictPolicy,
)
from server.values.labels import Label
from server.values.wording import counted

Progress = Callable[[str], None]
PLAN = "plan.json"
NO_VERDICT = (
    "no --accept: the verdict of every answer will be null; --accept LABEL ... names the labels of"
    " good parts"
)
# Of top-1: more than rounding the weights costs, less than a production line would notice.
ACCURACY_DROP_POINTS = 0.5


@dataclass(frozen=True, kw_only=True)
class BundleOptions:
    """Everything that is asked of a bundle before its model is known; checked when it is made.

    labels: of the model's outputs, in order.
    out: the folder of bundles. The bundle is out/name/VERSION, the next free version if None.
    mode: one of quantize.MODES. io_dtype: of int8's input and output, one of IO_DTYPES.
    validation: frames on which the result and the float model are compared. They make the report,
        the golden frames and the baseline for drift.
    chose_epoch, fair_top1, crossed, learned: as in Evaluation, of `validation`.
    folder: what the check of the frames found, for the report. search: what was tried before, for
        the report.
    calibration: frames as in `tensors`. int8 takes its ranges from them, and every mode but
        float32 corrects its biases with them.
    input_means: of `correction.input_means` on frames that are not here; without `calibration`
        they correct the biases.
    max_accuracy_drop: percentage points of top-1 that the result may lose against the float model
        on `validation`; None is ACCURACY_DROP_POINTS.
    max_size_ratio: of the result's file to the float model's; None allows any.
    tune: measure on this machine which operators of a dynamic model to quantise.
    samples: number of validation frames that are copied into samples/ for people to try.
    seconds: duration of the latency measurement.

    Raises ConvertError for a value out of its range, and for options that contradict each other.
    """

    labels: tuple[Label, ...]
    name: str
    out: Path
    version: int | None = None
    mode: str = "dynamic"
    io_dtype: str = "uint8"
    source: str = ""
    license: str = ""
    validation: Dataset | None = None
    chose_epoch: bool = False
    fair_top1: dict[str, Any] | None = None
    crossed: Crossed | None = None
    learned: bool = False
    folder: FolderCheck | None = None
    search: Trail | None = None
    calibration: Sequence[Path] | NDArray[np.uint8] | None = None
    input_means: Mapping[int, NDArray[np.float64]] | None = None
    verdict: VerdictPolicy | None = None
    max_accuracy_drop: float | None = None
    max_size_ratio: float | None = None
    tune: bool = False
    samples: int = 0
    seconds: float = 4.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConvertError(f"--mode {self.mode} should be one of {', '.join(MODES)}")
        if self.io_dtype not in IO_DTYPES:
            raise ConvertError(f"--io {self.io_dtype} should be one of {', '.join(IO_DTYPES)}")
        if self.tune and self.mode != "dynamic":
            raise ConvertError(f"--tune is for --mode dynamic; {self.mode} has nothing to tune")
        # No comparison with nan is true, so as a limit it would accept everything.
        if self.max_accuracy_drop is not None and math.isnan(self.max_accuracy_drop):
            raise ConvertError("--max-accuracy-drop nan should be a number of percentage points")
        if self.max_accuracy_drop is not None and self.validation is None:
            raise ConvertError("--max-accuracy-drop needs labelled frames: give --validate FOLDER")
        if self.max_size_ratio is not None and not self.max_size_ratio > 0:
            raise ConvertError(
                f"--max-size-ratio {self.max_size_ratio:g} should be a number above 0"
            )
        names = [label.name for label in self.labels]
        unknown = [name for name in self.accept if name not in names]
        if unknown:
            some = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise ConvertError(f"--accept {', '.join(unknown)} is not one of the labels {some}")

    @property
    def accept(self) -> tuple[str, ...]:
        """Return labels of good parts; empty if answers have no verdict."""
        return self.verdict.accept if self.verdict else ()

    def destination(self) -> tuple[int, Path]:
        """Return the version and the folder of the bundle. Raises ConvertError if it exists."""
        version = self.version or bundle.next_version(self.out, self.name)
        return version, bundle.check_free(self.out, self.name, version)

    def request(
        self,
        float_model: bytes,
        recipe: Recipe,
        output: Output,
        quantized: str | None = None,
        file: str = MODEL,
    ) -> "Request":
        """Return the request to convert a model with these options.

        quantized: the mode of a model that is quantised already; None for a float model. file: as
        in Request.
        """
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        options["mode"] = quantized or self.mode
        return Request(
            float_model=float_model,
            recipe=recipe,
            output=output,
            quantized=quantized is not None,
            file=file,
            **options,
        )


@dataclass(frozen=True, kw_only=True)
class Request(BundleOptions):
    """A model to convert, and how.

    float_model: a float32 .tflite, NHWC, one input, one output; or one that is `quantized` already
        in `mode`, which stays as it is.
    recipe: of the float model; int8 changes its dtype.
    output: how the model's output is read, as in bundle.json.
    file: the model's name in the bundle; for model.onnx, `float_model` is an ONNX model with the
        layout of the recipe, and the mode is float32 or int8.
    """

    float_model: bytes
    recipe: Recipe
    output: Output = "probabilities"
    quantized: bool = False
    file: str = MODEL

    @property
    def is_tflite(self) -> bool:
        """False for an ONNX model, to which nothing is added."""
        return self.file == MODEL


@dataclass(frozen=True, slots=True)
class Judgement:
    """The judgement of others about a model, on frames that are not here.

    report: for bundle.json; one of frames that are here replaces it. files: what else goes into the
    bundle, by its path there.
    """

    report: Report
    files: Mapping[str, bytes]


def build(
    request: Request,
    progress: Progress = print,
    judge: Callable[[bytes, Manifest], Judgement] | None = None,
) -> Path:
    """Make the bundle and returns its folder; `progress` gets one line for each step.

    judge: gets the model and the manifest before the bundle is written, and may refuse it by a
    GateError.

    Raises ConvertError if the request contradicts itself or the result would not be served,
    and GateError if the result is too inaccurate or too large. Then nothing is left behind.
    """
    version, target = request.destination()
    check_model(request)
    model, plan = make(request, progress)
    ratio = len(model) / len(request.float_model)
    compared = "as it is" if request.quantized else f"{ratio:.3f} of the float model"
    progress(f"{request.mode}: {len(model) / 1e6:.2f} MB, {compared}")
    if request.max_size_ratio is not None and ratio > request.max_size_ratio:
        raise GateError(
            f"{target} was not written: the model is {ratio:.3f} of the float model's size, more"
            f" than --max-size-ratio {request.max_size_ratio:g}"
        )
    manifest = Manifest(
        name=request.name,
        version=version,
        sha256={},
        recipe=result_recipe(request),
        output=request.output,
        quantization=request.mode,  # type: ignore[arg-type]
        source=request.source,
        license=request.license,
        verdict=request.verdict,
    )
    if request.verdict is None:
        progress(NO_VERDICT)
    files: dict[str, bytes | Path] = {}
    if plan is not None:
        files[PLAN] = msgspec.json.format(msgspec.json.encode(plan.to_dict()), indent=2) + b"\n"
    if request.validation is not None:
        calibrated = _calibrated(request, request.validation, model, progress)
        if calibrated is not None:
            model = calibrated.data
        familiar = _familiar(request, request.validation, model, progress)
        if familiar is not None:
            model = familiar.data
            manifest = msgspec.structs.replace(manifest, familiarity=familiar.settings)
        found = evaluate_pair(
            request,
            request.validation,
            model,
            f"{request.name} {version}",
            progress,
            manifest.familiarity,
            calibrated.settings if calibrated else None,
        )
        check_accuracy(found.proof, request, target)
        manifest = found.add_to(manifest)
        files |= found.files
    elif judge is None:
        progress(
            "no --validate: the bundle has no report, no golden frames, and nothing to drift from"
        )
    if judge is not None:
        judged = judge(model, manifest)
        manifest = msgspec.structs.replace(manifest, report=manifest.report or judged.report)
        files |= judged.files
    folder = bundle.write_bundle(request.out, manifest, model, request.labels, files, request.file)
    progress(f"wrote {folder}")
    progress(
        f"to serve it: LINESIDE_MODELS={request.out} LINESIDE_MODEL={request.name} scripts/serve"
    )
    return folder


@dataclass(frozen=True, slots=True)
class ValidationArtifacts:
    """The evaluation, the golden frames, the baseline and the files that a validation gives."""

    proof: Evaluation
    golden: tuple[Golden, ...]
    baseline: Baseline
    files: dict[str, bytes | Path]

    def add_to(self, manifest: Manifest) -> Manifest:
        """Return the manifest with report, golden frames and baseline."""
        return msgspec.structs.replace(
            manifest,
            report=summary(self.proof, report.JSON),
            golden=self.golden,
            baseline=self.baseline,
        )


def _calibrated(
    request: Request, validation: Dataset, model: bytes, progress: Progress
) -> CalibratedModel | None:
    """Return the model with calibrated probabilities, unless it stays as it is or can't have them;
    `progress` says which."""
    if request.quantized or not request.is_tflite:
        return None
    paths = [item.path for item in validation.frames]
    truth = np.array([item.label for item in validation.frames], np.intp)
    # Those of frames that were learned from would say too much.
    held = request.crossed.logits if request.crossed and request.learned else None
    calibrated = calibrate(model, request.output, result_recipe(request), paths, truth, held)
    if calibrated is None:
        progress(
            "probabilities: as the model gives them, because it does not end with a softmax or with"
            f" logits, or there are fewer than {MIN_CALIBRATION_FRAMES} frames"
        )
        return None
    settings = calibrated.settings
    progress(
        f"probabilities: logits divided by {settings.temperature:.3f}; expected calibration error"
        f" {settings.error_before:.2%} before, {settings.error_after:.2%} on frames left out"
    )
    return calibrated


def _familiar(
    request: Request, validation: Dataset, model: bytes, progress: Progress
) -> FamiliarModel | None:
    """Return the model with its output of familiarity, unless it stays as it is or can't have one;
    `progress` says which."""
    if request.quantized or not request.is_tflite:
        return None
    familiar = add_familiarity(
        model,
        result_recipe(request),
        None if request.learned else request.calibration,
        [item.path for item in validation.frames],
    )
    if familiar is None:
        progress(
            "familiarity: none, because the model has no convolution in its middle or there are"
            f" fewer than {MIN_FRAMES} frames; it will name a label for whatever it is shown"
        )
        return None
    settings = familiar.settings
    progress(
        f"familiarity: of {settings.held_back} frames, each held back in turn,"
        f" {settings.held_back_unfamiliar:.2%} are called unfamiliar"
        f" (stated: {settings.false_unfamiliar:.2%})"
    )
    return familiar


def evaluate_pair(
    request: Request,
    validation: Dataset,
    model: bytes,
    title: str,
    progress: Progress,
    familiarity: Familiarity | None = None,
    calibration: Calibration | None = None,
) -> ValidationArtifacts:
    """Evaluate both models on the validation frames, and choose golden and sample frames.

    familiarity: how the model's output of that name was made, if it has one. calibration: how its
    probabilities were calibrated; those of the float model are divided alike.
    """
    both = "the model" if request.quantized else "both models"
    progress(f"judging {both} on {counted(len(validation.frames), 'frame')}")
    recipe, labels, reference = request.recipe, request.labels, request.float_model
    if calibration is not None:
        reference = divided(reference, request.output, calibration)
    proof = evaluate(
        Model(
            title,
            model,
            result_recipe(request),
            request.output,
            labels,
            request.verdict,
            familiarity,
            request.file,
        ),
        None
        if request.quantized
        else Model("float32", reference, recipe, request.output, labels, file=request.file),
        validation.frames,
        mode=request.mode,
        seconds=request.seconds,
    )
    proof = replace(
        proof,
        chose_epoch=request.chose_epoch,
        fair_top1=request.fair_top1,
        crossed=request.crossed,
        learned=request.learned,
        calibration=calibration,
        folder=request.folder,
        search=request.search,
    )
    progress(sentence(proof))
    if proof.verdicts is not None:
        for line in lines(proof.verdicts.details())[:3]:
            progress(line)
    kept = golden_and_sample_frames(proof, request.samples)
    if not kept.golden:
        progress("no frame is right and sure enough (0.6) to be golden")
    return ValidationArtifacts(
        proof,
        kept.golden,
        baseline(proof),
        {**report.files(proof), **kept.files},
    )


def check_accuracy(proof: Evaluation, request: Request, target: Path) -> None:
    """Raise GateError if the result lost more top-1 than the request allows."""
    drop = accuracy_drop(proof)
    # One part in a million of a point: shares of frames don't add up exactly in binary.
    allowed = (
        ACCURACY_DROP_POINTS if request.max_accuracy_drop is None else request.max_accuracy_drop
    )
    if drop > allowed + 1e-6:
        raise GateError(
            f"{target} was not written: the {request.mode} model is right on {drop:.2f} points"
            f" fewer of {len(proof.frames)} frames than the float model, more than"
            f" --max-accuracy-drop {allowed:g}"
        )


def check_model(request: Request) -> None:
    """Raise ConvertError if the model does not fit the labels, the recipe or the mode."""
    recipe, data = request.recipe, request.float_model
    if not request.is_tflite:
        check_onnx(data, request.labels, recipe, request.mode, request.calibration is not None)
        return
    shape = read_tflite(data).shape if request.quantized else describe(data)
    if shape.classes == 1:
        raise ConvertError(
            "the model has one output value, but a classifier has one for each class: end it"
            " with Dense(2, softmax) instead of Dense(1, sigmoid), for example"
        )
    if len(request.labels) != shape.classes:
        raise ConvertError(
            f"there {'is' if len(request.labels) == 1 else 'are'}"
            f" {counted(len(request.labels), 'label')}, but the model answers {shape.classes}"
        )
    want = (recipe.height, recipe.width, recipe.channels)
    if want != (shape.height, shape.width, shape.channels):
        raise ConvertError(
            f"the recipe makes {list(want)} but the model takes"
            f" {[shape.height, shape.width, shape.channels]}"
        )
    if request.mode == "int8" and request.calibration is None and not request.quantized:
        raise ConvertError("int8 takes its ranges from real frames: give --calibrate FOLDER")


def make(request: Request, progress: Progress) -> tuple[bytes, Plan | None]:
    """Return the quantised model, and the plan if it was tuned. Raises ConvertError."""
    if request.quantized:
        return request.float_model, None
    if not request.is_tflite:
        return quantize_onnx(request.float_model, request.mode, _calibration(request)), None
    plan = None
    if request.tune:
        limit = request.max_size_ratio or 0.30
        plan, _ = tune(request.float_model, max_size_ratio=limit, progress=progress)
    return _quantized(request, plan, progress), plan


def _quantized(request: Request, plan: Plan | None, progress: Progress) -> bytes:
    frames, mode = _calibration(request), request.mode
    made = partial(
        quantize,
        request.float_model,
        mode,
        plan=plan,
        io_dtype=request.io_dtype,
        taken=input_range(request.recipe),
    )
    try:
        model = made(calibration=frames)
    except TooFewFramesError as error:
        # Only int8 can't do without: the others are as good as without --calibrate.
        if mode == "int8":
            raise
        progress(f"biases not corrected: {error}")
        return made()
    if frames is not None:
        progress("biases corrected on the calibration frames")
    elif request.input_means is not None and mode != "float32":
        model = correct_by(request.float_model, model, request.input_means)
        progress("biases corrected by means of frames elsewhere")
    return model


def _calibration(request: Request) -> Iterator[NDArray[np.float32]] | None:
    frames = request.calibration
    if frames is None or request.mode == "float32":
        return None
    # A range needs every frame; a mean is known from a part of them.
    step = 1 if request.mode == "int8" else max(1, math.ceil(len(frames) / MAX_FRAMES))
    return tensors(frames[::step], request.recipe)


def result_recipe(request: Request) -> Recipe:
    """Return the recipe of the model that `make` makes."""
    if request.quantized:
        return request.recipe
    dtype = request.io_dtype if request.mode == "int8" and request.is_tflite else "float32"
    return msgspec.structs.replace(request.recipe, dtype=dtype)
