"""From a folder of good frames to a checked anomaly bundle."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convert import bundle_writer
from convert.anomaly import report
from convert.anomaly.evaluation import Alternative, contaminated, learning_curve
from convert.anomaly.frames import answers, painted_features, seen_by
from convert.anomaly.locator import calibrated, learn
from convert.anomaly.network import CHANNELS, DEPTH, SIZE, AnomalyNetwork, with_thresholds
from convert.anomaly.scoring import fit, held_out
from convert.anomaly.statistics import SIDE, Floats, folds, projection, threshold_of
from convert.data.dataset import Dataset
from convert.errors import ConvertError
from convert.evaluation import metrics
from convert.evaluation.verdicts import JudgedFrame, VerdictProof, prove
from convert.golden import SAMPLES
from convert.quantization.tune import Latency, measure
from convert.recipe.choice import recipe_with
from convert.sources import imagenet
from convert.terminal import Terminal
from convert.training.network import Weights
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import GOLDEN, Baseline, Bundle, Golden, Recipe, Region
from server.recognition.tasks.anomaly import (
    ANOMALY,
    GOOD,
    AnomalyManifest,
    AnomalyPolicy,
    AnomalyReader,
    AnomalySettings,
    AnomalyValues,
)
from server.values.labels import Label
from server.values.wording import counted

# Fewer say nothing of how good frames differ.
MIN_FRAMES = 10
# A golden frame near the threshold would fail on a processor whose kernels round otherwise.
GOLDEN_MARGIN, GOLDEN_EACH = 0.03, 3


@dataclass(frozen=True, kw_only=True)
class AnomalyOptions:
    """The options of an anomaly bundle.

    good: image files of good frames. validation: frames by class, of which `good_class` are good
    and all others are not; None without. masks: by class and file name, white on the defect.
    samples: validation frames of each class that are copied into samples/ for people to try.
    false_rejects: share of good frames, 0..1, that may be called anomalies. unsure: half the width
    of the band of scores about 0.5 whose verdict is unsure. painted: frames with painted defects,
    from which the map learns. out, name, version: as in Request.
    region: the part of each frame that is looked at, as in Recipe.
    """

    good: tuple[Path, ...]
    out: Path
    name: str
    version: int | None = None
    validation: Dataset | None = None
    good_class: str = GOOD
    masks: Path | None = None
    samples: int = 0
    false_rejects: float = 0.01
    unsure: float = 0.02
    painted: int = 1500
    weights: Weights = "imagenet"
    seed: int = 0
    source: str = ""
    license: str = ""
    seconds: float = 4.0
    region: Region | None = None

    @property
    def recipe(self) -> Recipe:
        """Return how an image is fed to the model. Raises ConvertError for an unusable region."""
        return recipe_with(imagenet.recipe(SIZE), region=self.region)

    def __post_init__(self) -> None:
        """Raises ConvertError for a value out of its range, and frames that won't do."""
        if not 0.0005 <= self.false_rejects <= 0.5:
            raise ConvertError(
                f"--false-rejects {self.false_rejects:g} should be from 0.0005 to 0.5"
            )
        if not 0 <= self.unsure <= 0.4:
            raise ConvertError(f"--unsure {self.unsure:g} should be from 0 to 0.4")
        if not 100 <= self.painted <= 20_000:
            raise ConvertError(f"--painted {self.painted} should be from 100 to 20000")
        if len(self.good) < MIN_FRAMES:
            raise ConvertError(
                f"{counted(len(self.good), 'good frame')}: at least {MIN_FRAMES} are needed, and"
                " 200 or more are better"
            )
        if self.validation and self.good_class not in self.validation.classes:
            raise ConvertError(
                f"--validate has the classes {', '.join(self.validation.classes)}, and none of"
                f" them is {self.good_class}: name the class of good frames with --good-class"
            )
        for name, wanted in (("masks", self.masks), ("samples", self.samples)):
            if wanted and not self.validation:
                raise ConvertError(f"--{name} does nothing without --validate FOLDER")


def build(options: AnomalyOptions, terminal: Terminal) -> Path:
    """Learns, judges and writes the bundle; returns its folder.

    Raises ConvertError for frames that can't be read or occur twice, and where the place is taken.
    """
    version = options.version or bundle_writer.next_version(options.out, options.name)
    bundle_writer.check_free(options.out, options.name, version)
    recipe = options.recipe
    judged = tuple(item.path for item in options.validation.frames) if options.validation else ()
    check_repeated(options.good, judged)
    network = AnomalyNetwork(options.weights)
    model = network.feature_model()
    learned = seen_by(model, options.good, recipe, terminal, "Looking at the good frames")
    deviation = learned.features.coarse.reshape(-1, CHANNELS).std(axis=0)
    turn = projection(CHANNELS, DEPTH, deviation, options.seed)
    features = learned.features.turned(turn)
    terminal.say(f"learning from {counted(len(features), 'good frame')}")
    fitted = fit(features, options.seed)
    judged_in_turns = held_out(features, options.seed)
    held, distances = judged_in_turns.scores, judged_in_turns.maps
    raw = threshold_of(held, options.false_rejects)
    # Places are judged by the coarse grid alone, whose distances have another scale.
    of_places = threshold_of(distances.max(axis=(1, 2)), options.false_rejects)
    terminal.say("learning how painted defects look")
    rest, fold = next(folds(len(features), options.seed))
    painted, shares = painted_features(
        model, [options.good[i] for i in rest], recipe, options.painted, options.seed, terminal
    )
    mean = fitted.coarse.mean
    locator = learn(np.asarray(painted @ turn - mean, np.float32), shares, options.seed)
    locator = calibrated(locator, features.coarse[fold] - mean, distances[fold])
    # The model's own arithmetic is rounded; its scores on the same frames say by how much.
    sample = options.good[:: max(1, len(options.good) // 50)]
    _, rough = network.anomaly_model(turn, fitted, locator, raw, of_places)
    scores, _ = answers(rough, sample, recipe)
    exact = fitted.scores(features[:: max(1, len(options.good) // 50)])
    ratio = scores / np.maximum(1 - scores, 1e-6) * raw / np.maximum(exact, 1e-9)
    rounding = float(np.median(ratio))
    old, (raw, of_places) = (raw, of_places), (raw * rounding, of_places * rounding)
    quantised = with_thresholds(rough, old, (raw, of_places))
    if quantised is None:
        _, quantised = network.anomaly_model(turn, fitted, locator, raw, of_places)
    terminal.say(
        f"threshold from frames held back in turns: {options.false_rejects:.2%} of good ones are"
        f" to score above 0.5; model of {len(quantised) / 1e6:.2f} MB"
    )
    held_scores = np.asarray(held / (held + raw), np.float32)
    outcome = _judge(options, quantised, held_scores, terminal)
    if options.validation:
        seen = seen_by(model, judged, recipe, terminal, "Looking at the validation frames")
        others = seen.features.turned(turn)
        truth = report.is_bad(options.validation, options.good_class)
        good, bad = others[~truth], others[truth]
    else:
        good = bad = features[:0]
    rate, seed = options.false_rejects, options.seed
    terminal.say("trying fewer good frames, and bad ones among them")
    curve = learning_curve(features, good, bad, rate, seed)
    mixed = contaminated(features, good, bad, rate, seed)
    return _write(options, version, quantised, outcome, learned.brightness, curve, mixed, terminal)


def check_repeated(good: Sequence[Path], judged: Sequence[Path]) -> None:
    """Raises ConvertError for a file that is twice among the good frames, or in both sets: held
    back it would have been learned after all."""
    seen: dict[str, Path] = {}
    for paths, where in ((good, "twice among the good frames"), (judged, "in both sets")):
        mine: dict[str, Path] = {}
        for path in paths:
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise ConvertError(f"{path} can't be read: {error.strerror}") from None
            if digest in (mine if paths is good else seen):
                first = (mine if paths is good else seen)[digest]
                raise ConvertError(f"the same picture is {where}: {first} = {path}")
            mine[digest] = path
        seen |= mine


def _judge(
    options: AnomalyOptions, model: bytes, held: Floats, terminal: Terminal
) -> report.AnomalyEvaluation:
    scores, maps = np.empty(0, np.float32), np.empty((0, SIDE, SIDE), np.float32)
    if options.validation:
        terminal.say(f"judging the model on {counted(len(options.validation.frames), 'frame')}")
        paths = [item.path for item in options.validation.frames]
        scores, maps = answers(model, paths, options.recipe)
    latency: Latency = measure({"model": model}, seconds=options.seconds)["model"]
    return report.AnomalyEvaluation(
        options.validation, options.good_class, options.masks, held, scores, maps, latency,
        len(model), options.false_rejects, options.unsure, options.recipe,
    )  # fmt: skip


def _write(
    options: AnomalyOptions,
    version: int,
    model: bytes,
    outcome: report.AnomalyEvaluation,
    brightness: Floats,
    curve: list[Alternative],
    mixed: Alternative | None,
    terminal: Terminal,
) -> Path:
    policy = AnomalyPolicy(min_probability=0.5 + options.unsure)
    verdicts = _verdicts(options, outcome, model, policy)
    title = f"{options.name} {version}"
    found = report.details(outcome, title, len(options.good), curve, mixed, verdicts)
    for line in report.lines(found):
        terminal.say(line)
    golden, files = _golden(options, outcome, model)
    certainty = np.maximum(outcome.held, 1 - outcome.held)
    above = float((outcome.held > 0.5).mean())
    manifest = AnomalyManifest(
        name=options.name,
        version=version,
        task="anomaly",
        sha256={},
        recipe=options.recipe,
        quantization="dynamic",
        source=options.source,
        license=options.license,
        verdict=policy,
        anomaly=AnomalySettings(
            false_rejects=options.false_rejects,
            learned_from=len(options.good),
            verdict=verdicts.summary() if verdicts else None,
            **report.summary(found),
        ),
        golden=golden,
        baseline=Baseline(
            classes={GOOD: 1 - above, ANOMALY: above},
            confidence=metrics.shares(certainty, 10, 1.0),
            brightness=metrics.shares(brightness, 16, 256.0),
        ),
    )
    files |= _samples(options, outcome, files.values()) | report.files(outcome, found)
    labels = (Label(GOOD), Label(ANOMALY))
    folder = bundle_writer.write_bundle(options.out, manifest, model, labels, files)
    terminal.say(f"wrote {folder}")
    terminal.say(
        f"to serve it: LINESIDE_MODELS={options.out} LINESIDE_MODEL={options.name} scripts/serve"
    )
    return folder


def _verdicts(
    options: AnomalyOptions,
    outcome: report.AnomalyEvaluation,
    model: bytes,
    policy: AnomalyPolicy,
) -> VerdictProof | None:
    """Judge the validation frames as a server with this model and policy would."""
    if options.validation is None:
        return None
    manifest = AnomalyManifest(
        name="x",
        version=1,
        task="anomaly",
        sha256={},
        recipe=options.recipe,
        quantization="dynamic",
        verdict=policy,
    )
    with tempfile.TemporaryDirectory() as folder:
        bundle = Bundle(Path(folder), manifest, (Label(GOOD), Label(ANOMALY)))
        bundle.model_path.write_bytes(model)
        reader = AnomalyReader(bundle, InterpreterPool(bundle.model_path, 1))
    classes = options.validation.classes
    frames = [
        JudgedFrame(item.path, classes[item.label], classes[item.label] == options.good_class)
        for item in options.validation.frames
    ]
    values = [
        AnomalyValues(float(score), places)
        for score, places in zip(outcome.scores, outcome.maps, strict=True)
    ]
    return prove(reader, frames, values)


def _samples(
    options: AnomalyOptions, outcome: report.AnomalyEvaluation, taken: Collection[bytes | Path]
) -> dict[str, bytes | Path]:
    """Frames of each class from the middle of its scores, none of those `taken`."""
    files: dict[str, bytes | Path] = {}
    if options.validation is None:
        return files
    frames = options.validation.frames
    for number, label in enumerate(options.validation.classes):
        places = [
            i for i, each in enumerate(frames) if each.label == number and each.path not in taken
        ]
        order = sorted(places, key=lambda i: float(outcome.scores[i]))
        start = max(0, (len(order) - options.samples) // 2)
        for count, i in enumerate(order[start : start + options.samples], 1):
            files[f"{SAMPLES}/{label}-{count}{frames[i].path.suffix.lower()}"] = frames[i].path
    return files


def _golden(
    options: AnomalyOptions, outcome: report.AnomalyEvaluation, model: bytes
) -> tuple[tuple[Golden, ...], dict[str, bytes | Path]]:
    """Typical good frames, and the worst bad ones of the validation; without one, good frames that
    were learned from."""
    if options.validation:
        paths = [item.path for item in options.validation.frames]
        scores, bad = outcome.scores, report.is_bad(options.validation, options.good_class)
    else:
        paths = list(options.good[:: max(1, len(options.good) // 20)])
        scores, _ = answers(model, paths, options.recipe)
        bad = np.zeros(len(paths), bool)
    sides = (
        (GOOD, np.flatnonzero(~bad & (scores < 0.5 - GOLDEN_MARGIN)), 1 - scores),
        (ANOMALY, np.flatnonzero(bad & (scores > 0.5 + GOLDEN_MARGIN)), scores),
    )
    golden: list[Golden] = []
    files: dict[str, bytes | Path] = {}
    for label, places, certainty in sides:
        # Good ones from the middle: the lowest scores are of the dullest frames.
        order = places[np.argsort(-certainty[places], kind="stable")]
        start = len(order) // 2 if label == GOOD else 0
        for number, i in enumerate(order[start : start + GOLDEN_EACH], 1):
            file = f"{GOLDEN}/{label}-{number}{paths[i].suffix.lower()}"
            files[file] = paths[i]
            golden.append(Golden(file=file, label=label, probability=float(certainty[i])))
    return tuple(golden), files
