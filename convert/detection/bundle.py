"""A detector's file in, a checked bundle out: decide, run on frames, write."""

import itertools
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from convert import bundle_writer
from convert.data.dataset import PICTURES, images
from convert.data.frames import decoded
from convert.detection import evaluation
from convert.detection.annotations import AnnotatedFrame, Annotations, count_shown, find_annotations
from convert.detection.decide import Answers, Decision, Reading, decide, decide_shapes
from convert.detection.model import Detector
from convert.errors import ConvertError
from convert.evaluation import metrics
from convert.evaluation.verdicts import answer_frames
from convert.golden import MAX_GOLDEN
from convert.recipe.choice import recipe_with
from convert.recipe.readings import READINGS, SIGNED, picture_of_all_levels
from server.recognition import frame
from server.recognition.admission import Admission
from server.recognition.answers import Answer
from server.recognition.detection.manifest import (
    DetectionBaseline,
    DetectionGolden,
    DetectionManifest,
    DetectionPolicy,
    GoldenObject,
)
from server.recognition.engines.litert import Interpreter
from server.recognition.images.views import views
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import GOLDEN, MODEL, Bundle, Recipe
from server.recognition.preprocessing import dequantize, to_tensor
from server.recognition.recognizer import Recognizer
from server.recognition.tasks.detect import COUNT_BINS, detections_of
from server.values.labels import Label
from server.values.wording import counted

# Frames whose outputs decide how they are read.
_DECIDING_FRAMES = 20
# A golden object is surer than the threshold by the tolerance of its probability.
_TOLERANCE = 0.05
_BY_CONVENTION: Mapping[str, Mapping[str, Any]] = {
    "yolov5": {"resize": "letterbox"},
    "yolov8": {"resize": "letterbox"},
    "nms": {"resize": "letterbox"},
    "blazeface": {"resize": "letterbox", "pad": 0},
}
# Their boxes are those of cells.
_OF_CELLS = frozenset({"fomo", "class_map"})
# These are trained on pixels of 0..1, whoever exports them.
_UNIT_CONVENTIONS = frozenset({"yolov5", "yolov8", "nms", "fomo"})


@dataclass(frozen=True, kw_only=True)
class DetectorOptions:
    """Everything that is asked of a detector's bundle.

    labels: of the classes, in order. given, recipe: fields of DetectionOutputs and of Recipe that
    the user named. frames: a folder of pictures as the camera sends them, with objects on them,
    or a COCO file.
    """

    labels: tuple[Label, ...]
    name: str
    out: Path
    version: int | None = None
    source: str = ""
    license: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    frames: Path | None = None
    verdict: DetectionPolicy | None = None


def build(
    detector: Detector, options: DetectorOptions, progress: Callable[[str], object] = print
) -> Path:
    """Make the bundle and return its folder; `progress` gets one line for each step.

    Raises ConvertError if the file can't be read as a detector, or can be read in two ways.
    """
    version = options.version or bundle_writer.next_version(options.out, options.name)
    bundle_writer.check_free(options.out, options.name, version)
    annotations = find_annotations(options.frames, options.labels) if options.frames else None
    if annotations is None:
        paths = _pictures(options.frames)
    else:
        paths = [each.path for each in annotations.frames]
    decision, recipe = _read(detector, options, paths)
    made = decision.outputs
    progress(
        f"outputs {', '.join(map(str, made.outputs))} read as {made.convention} {decision.why}"
        + ("" if made.convention in _OF_CELLS else f"; boxes {made.box_format} in {made.box_unit}")
    )
    progress(
        f"input {recipe.width} x {recipe.height} {recipe.color}, {recipe.resize}; pixels *"
        f" {_numbers(recipe.scale)} + {_numbers(recipe.offset)}"
        + (f"; {len(shown)} views of a frame" if len(shown := views(recipe)) > 1 else "")
    )
    manifest = DetectionManifest(
        name=options.name,
        version=version,
        task="detect",
        sha256={},
        recipe=recipe,
        quantization=detector.mode,
        source=options.source,
        license=options.license,
        detection=made,
        verdict=options.verdict,
    )
    if options.verdict is None:
        progress(
            "no --accept, --expect, --minimum, --maximum or --forbid: the verdict of every answer"
            " will be null"
        )
    files: dict[str, bytes | Path] = {}
    if paths:
        manifest, files = _prove(detector, manifest, options.labels, paths, annotations, progress)
    else:
        progress(
            "no --validate: how the outputs are read was seen on test pictures alone, and the"
            " bundle has no golden frames"
        )
    folder = bundle_writer.write_bundle(options.out, manifest, detector.data, options.labels, files)
    progress(f"wrote {folder}")
    progress(
        f"to serve it: LINESIDE_MODELS={options.out} LINESIDE_MODEL={options.name} scripts/serve"
    )
    return folder


def _pictures(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    paths = [path for path in images(folder) if path.suffix.lower() in PICTURES]
    if not paths:
        raise ConvertError(f"{folder} holds no images")
    return paths


def _read(
    detector: Detector, options: DetectorOptions, paths: Sequence[Path]
) -> tuple[Decision, Recipe]:
    """Return how outputs and pixels are read."""
    readings = decide_shapes(detector, options.labels, options.given)
    recipe = _recipe(detector, readings[0], options.recipe)
    answers = _run(detector, recipe, paths[:_DECIDING_FRAMES])
    decision = decide(readings, detector, options.labels, answers, options.given)
    made = decision.outputs
    chosen = next(each for each in readings if each.convention == made.convention)
    # Scores in percent are Seeed's, whose program stretches.
    stretched = {"resize": "stretch"} if made.score_scale != 1 else {}
    return decision, _recipe(detector, chosen, {**stretched, **options.recipe})


def _recipe(detector: Detector, reading: Reading, given: Mapping[str, Any]) -> Recipe:
    """Return how an image is fed to a model of the reading's convention."""
    width, height = detector.size
    base = Recipe(
        width=width,
        height=height,
        color="gray" if detector.channels == 1 else "rgb",
        layout=detector.layout,
        dtype=detector.dtype,
        zero_inputs=detector.zero_inputs,
    )
    values = {**_BY_CONVENTION.get(reading.convention, {}), **given}
    if "scale" not in given:
        values |= _scaling(detector, reading)
    return recipe_with(base, **values)


def _scaling(detector: Detector, reading: Reading) -> dict[str, Any]:
    """Return scale and offset: of a quantised input such that pixel 0 is its lowest number and 255
    its highest. Raises ConvertError if those of a float input are not known."""
    spec, data = detector.image, detector.metadata
    if detector.dtype != "float32":
        lowest, scale = -128 if detector.dtype == "int8" else 0, spec.scale or 1.0
        return {"scale": scale, "offset": (lowest - spec.zero_point) * scale}
    if data.mean and data.std and all(data.std):
        mean = data.mean if len(data.mean) == 3 else data.mean[:1]
        scales = tuple(1 / deviation for deviation in data.std[: len(mean)])
        offsets = tuple(-m / d for m, d in zip(mean, data.std, strict=False))
        return {
            "scale": scales if len(scales) == 3 else scales[0],
            "offset": offsets if len(offsets) == 3 else offsets[0],
        }
    names: Sequence[str] = detector.readings
    if len(names) != 1:
        if reading.convention in _UNIT_CONVENTIONS:
            names = ("0..1",)
        elif reading.convention == "blazeface":
            names = (SIGNED,)
        else:
            ways = "; ".join(
                f"{each.options} ({each.meaning})"
                for name, each in READINGS.items()
                if not names or name in names
            )
            raise ConvertError(
                "the model does not show how its pixels are scaled. Say how they were scaled when"
                f" it was trained: {ways}"
            )
    chosen = READINGS[names[0]]
    return {"scale": chosen.scale, "offset": chosen.offset}


def _run(detector: Detector, recipe: Recipe, paths: Sequence[Path]) -> list[Answers]:
    """Return the outputs for each view of the pictures, as real numbers; for test pictures if there
    are none."""
    width, height = detector.size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    tests = [noise, picture_of_all_levels((height, width, 3))[0].astype(np.uint8)]
    pixels = [decoded(path, recipe) for path in paths] or tests
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / MODEL
        file.write_bytes(detector.data)
        interpreter = Interpreter(file, 1)
    answers = []
    for picture, view in itertools.product(pixels, views(recipe)):
        tensors = [
            to_tensor(picture, view, spec)
            if spec == detector.image
            else np.full(spec.shape, spec.zero_point, spec.dtype)
            for spec in interpreter.inputs
        ]
        outputs = interpreter.run(tensors)
        real = tuple(
            dequantize(out, spec) for out, spec in zip(outputs, interpreter.outputs, strict=True)
        )
        if not all(np.isfinite(out).all() for out in real):
            raise ConvertError("the model's output for a picture is not finite")
        answers.append(real)
    return answers


def _prove(
    detector: Detector,
    manifest: DetectionManifest,
    labels: tuple[Label, ...],
    paths: Sequence[Path],
    annotations: Annotations | None,
    progress: Callable[[str], object],
) -> tuple[DetectionManifest, dict[str, bytes | Path]]:
    """Run the model on the frames as the server does; return the manifest with golden frames,
    baseline and figures, and the files of golden frames and report."""
    nothing = DetectionBaseline(classes={}, confidence=(), brightness=())
    watched = msgspec.structs.replace(manifest, baseline=nothing)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Bundle(Path(folder), watched, labels)
        bundle.model_path.write_bytes(detector.data)
        pool = InterpreterPool(bundle.model_path, 1)
        model = Recognizer(bundle, pool, Admission(1, 1), frame.Limits())
        answers = answer_frames(model, paths)
    objects = Counter(
        each.label for answer in answers for part in answer.parts() for each in detections_of(part)
    )
    listed = ", ".join(f"{label} {count}" for label, count in objects.most_common(20))
    progress(f"{counted(len(paths), 'frame')}: {listed or 'nothing found'}")
    if not objects:
        progress(
            "warning: nothing was found in any frame. If they show objects, the outputs or the"
            " pixels are read wrong"
        )
    golden, files = _golden(manifest, paths, answers)
    if not golden:
        progress("no frame shows an object that is sure enough to be golden")
    baseline = DetectionBaseline(
        classes={
            label: count / len(answers)
            for label, count in Counter(answer.label for answer in answers).items()
        },
        confidence=metrics.shares(np.array([answer.probability for answer in answers]), 10, 1.0),
        brightness=metrics.shares(
            np.array([answer.brightness or 0.0 for answer in answers]), 16, 256.0
        ),
        count=metrics.shares(
            np.array([float(len(detections_of(answer))) for answer in answers]),
            COUNT_BINS,
            float(COUNT_BINS),
        ),
    )
    if annotations is None:
        frames = tuple(AnnotatedFrame(path, ()) for path in paths)
    else:
        frames = count_shown(annotations.frames, model.recipe)
    judged = evaluation.DetectorEvaluation(
        manifest,
        tuple(label.name for label in labels),
        frames,
        answers,
        annotations,
        len(detector.data),
    )
    for line in judged.lines() if annotations else ():
        progress(line)
    files |= judged.files()
    proven = msgspec.structs.replace(
        manifest, golden=golden, baseline=baseline, validation=judged.validation()
    )
    return proven, files


def _golden(
    manifest: DetectionManifest, paths: Sequence[Path], answers: Sequence[Answer]
) -> tuple[tuple[DetectionGolden, ...], dict[str, bytes | Path]]:
    """Return at most MAX_GOLDEN frames, or regions of them: those that show most labels that no
    other shows, of equal ones the surest."""
    least = manifest.detection.score_threshold + _TOLERANCE
    assert manifest.recipe is not None
    names = [each.name for each in manifest.recipe.regions] or [""]
    parts = [
        (path, name, part)
        for path, answer in zip(paths, answers, strict=True)
        for name, part in zip(names, answer.parts(), strict=True)
    ]
    sure = [
        tuple(each for each in detections_of(part) if each.probability >= least)
        for _, _, part in parts
    ]
    left = [i for i, found in enumerate(sure) if found]
    shown: set[str] = set()
    golden: list[DetectionGolden] = []
    files: dict[str, bytes | Path] = {}
    while left and len(golden) < MAX_GOLDEN:
        best = max(
            left,
            key=lambda i: (
                len({each.label for each in sure[i]} - shown),
                min(each.probability for each in sure[i]),
            ),
        )
        left.remove(best)
        shown |= {each.label for each in sure[best]}
        path, region, _ = parts[best]
        file = f"{GOLDEN}/{len(golden) + 1}{path.suffix.lower()}"
        files[file] = path
        golden.append(
            DetectionGolden(
                file=file,
                label=sure[best][0].label,
                probability=sure[best][0].probability,
                tolerance=_TOLERANCE,
                region=region,
                detections=tuple(
                    GoldenObject(label=each.label, probability=each.probability, box=each.box)
                    for each in sure[best]
                ),
            )
        )
    return tuple(golden), files


def _numbers(value: float | tuple[float, ...]) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return ", ".join(f"{number:.6g}" for number in values)
