"""`python -m convert train FOLDER`: photographs in, a checked bundle out."""

import argparse
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from convert.cli.arguments import (
    add_bundle_arguments,
    add_folder_arguments,
    add_labelled_arguments,
    add_view_arguments,
    bundle_options,
    view_values,
)
from convert.errors import ConvertError
from server.values.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from convert.data.dataset import Dataset
    from convert.evaluation.results import Crossed
    from convert.folder_check.near_duplicates import Fingerprint
    from convert.pipeline import BundleOptions
    from convert.terminal import Terminal
    from convert.training.learner import Learner
    from convert.training.light_choice import LightChoice
    from convert.training.network import Normalisation
    from convert.training.train import Options
    from server.recognition.manifest import Recipe

HELD_OUT_SHARE = 0.2
# The report shows more of them.
SUSPECTS_PRINTED = 5
LEARNING_RATE_MAX = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of what to train on, how, and where the bundle goes."""
    add_folder_arguments(parser)
    add_labelled_arguments(parser)
    how = parser.add_argument_group("training")
    how.add_argument("--alpha", type=float, default=1.0, help="width of MobileNetV2 (1.0)")
    how.add_argument("--size", type=int, default=224, help="sides of its input in pixels (224)")
    how.add_argument(
        "--weights",
        choices=("imagenet", "imagenet-224", "slice", "none"),
        default="imagenet",
        help="to start from: Keras's for this alpha and size, Keras's for this alpha at 224 pixels,"
        " the strongest channels of those of alpha 1.0 at 224, or random (imagenet)",
    )
    how.add_argument("--epochs", type=int, default=20, help="of fine-tuning, at most (20)")
    how.add_argument(
        "--patience",
        type=int,
        help="end after so many epochs without a better one (6; with --normalisation learn never)",
    )
    how.add_argument("--batch", type=int, default=16, help="frames a step (16)")
    how.add_argument(
        "--rate", type=float, help="highest learning rate (1e-3; with --normalisation keep 3e-5)"
    )
    how.add_argument(
        "--no-flips",
        action="store_true",
        help="for parts whose left and right or up and down differ",
    )
    how.add_argument(
        "--teacher", type=Path, metavar="BUNDLE_OR_KERAS", help="larger model to learn from"
    )
    how.add_argument(
        "--sparsity", type=float, default=0.0, metavar="SHARE", help="of weights made zero (0)"
    )
    how.add_argument(
        "--frozen",
        type=int,
        default=3,
        metavar="BLOCKS",
        help="of the 17 blocks of ImageNet's network, those that stay as they are (3)",
    )
    how.add_argument(
        "--normalisation",
        choices=("auto", "learn", "keep"),
        default="auto",
        help="of ImageNet's network: learn it with all else, in all of the epochs, or keep it,"
        " which suits few frames; auto learns it from 150 frames to train on, and 4 a step (auto)",
    )
    how.add_argument(
        "--smoothing", type=float, default=0.0, metavar="SHARE", help="of a label, for all (0)"
    )
    how.add_argument(
        "--mixup",
        type=float,
        default=0.0,
        metavar="SPREAD",
        help="mix each frame with another one; 0.2 mixes most of them little (0)",
    )
    how.add_argument(
        "--light",
        choices=("auto", "as-is", "even"),
        default="auto",
        help="of the pictures that the network is shown: as they are, or in even light, made inside"
        " the network; auto chooses by what ImageNet's features tell apart, as-is if they are not"
        " used or --mode is int8 (auto)",
    )
    how.add_argument("--seed", type=int, default=0)
    how.add_argument(
        "--work", type=Path, metavar="FOLDER", help="keeps what resuming needs (OUT/.training)"
    )
    how.add_argument(
        "--folds",
        type=int,
        metavar="K",
        help="judge the training by K-fold cross-validation, which trains K models, and then train"
        " on all of FOLDER; frames that are nearly the same stay in one fold",
    )
    how.add_argument(
        "--similar-apart",
        action="store_true",
        help="with --folds: frames that are nearly the same may be in different folds",
    )
    add_view_arguments(parser)
    add_bundle_arguments(parser, "that of FOLDER")
    parser.set_defaults(name=None)


def run(args: argparse.Namespace) -> int:
    """Train, write the bundle, and return the exit code.

    Raises ConvertError and GateError. After any of them, a kill or Ctrl-C the same command
    continues where it stopped.
    """
    import shutil

    import numpy as np

    from convert.folder_check.checking import check_folder, check_recipe, grouped
    from convert.folder_check.result import lines
    from convert.pipeline import build
    from convert.recipe.choice import recipe_with
    from convert.sources import imagenet
    from convert.sources.keras import from_keras
    from convert.terminal import Terminal
    from convert.training.checkpoint import exclusive_lock, fingerprint
    from convert.training.folds import assign_folds
    from convert.training.train import Training, prepare
    from server.system.resources import available_cores
    from server.values.labels import Label

    training_options, terminal = options_from(args), Terminal()
    recipe = recipe_with(imagenet.recipe(args.size), **view_values(args))
    name = args.name or default_name(args.folder)
    train, validation, prints = read_frames(args, name, terminal)
    training_options = dataclasses.replace(
        training_options, normalisation=normalisation_of(args, len(train.frames))
    )
    if training_options.pretrained:
        terminal.say(
            "--normalisation keep: ImageNet's stays as it is"
            if training_options.keeps
            else "--normalisation learn: it learns with all else, so that the first epochs are far"
            " below the head alone"
        )
    folders = f"{args.folder.name} and a server's samples" if args.labelled else args.folder.name
    options = bundle_options(
        args,
        tuple(Label(label) for label in train.classes),
        name=name,
        source=f"trained on {folders}, {counted(len(train.frames), 'frame')}",
        validation=validation,
    )
    options = dataclasses.replace(options, chose_epoch=not args.folds, learned=validation is train)
    # The checks of `build`, so that they do not fail only after the training.
    options.destination()
    check_calibration(options, recipe)
    how = (training_options, recipe, args.folds, args.similar_apart, args.light, args.mode)
    state = fingerprint(how, train, validation)
    work = (args.work or args.out / ".training") / f"{name}-{state}"
    with exclusive_lock(work):
        groups = grouped(train, prints)
        if args.folds:
            # Folds that can't be are told before weights are fetched.
            assign_folds(train, args.folds, args.seed, None if args.similar_apart else groups)
        # Before the frames, which take longer, so that missing weights are reported at once.
        learner = prepare(len(train.classes), training_options)
        plan = Plan(train, groups, recipe, training_options, work, terminal, learner)
        lights = light_choice(args, plan)
        crossed = judge_by_folds(args, plan, lights)
        if lights:
            training_options, learner = lights.training_on(np.full(len(train.frames), True))
            terminal.say(lights.told)
        training = Training(
            train,
            None if crossed else validation,
            recipe,
            training_options,
            work,
            terminal,
            available_cores(),
            stop_after=crossed.epoch if crossed else None,
            learner=learner,
        )
        if options.calibration is None:
            options = dataclasses.replace(options, calibration=training.train.pixels)
            check_calibration(options, recipe)
        # After the weights that it needs too were fetched.
        folder = check_folder(
            train,
            None if validation is train else validation,
            prints,
            check_recipe(**view_values(args)),
            terminal,
            download=False,
        )
        for line in lines(folder, SUSPECTS_PRINTED):
            terminal.say(line)
        options = dataclasses.replace(options, folder=folder)
        model = training.run()
        options = dataclasses.replace(options, fair_top1=training.fair_top1, crossed=crossed)
        build(options.request(from_keras(model), recipe, "probabilities"), terminal.say)
        shutil.rmtree(work)
    return 0


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """A training before it begins.

    groups: a number for each frame of `train`, the same for those that are nearly the same picture.
    work: the folder that keeps what resuming needs. learner: of `prepare` for these options.
    """

    train: "Dataset"
    groups: "Mapping[Path, int]"
    recipe: "Recipe"
    options: "Options"
    work: Path
    terminal: "Terminal"
    learner: "Learner"

    @property
    def decoded(self) -> Path:
        """Return the .npy of the frames as the network is shown them."""
        return self.work / "training.npy"


def light_choice(args: argparse.Namespace, plan: Plan) -> "LightChoice | None":
    """Return what chooses the light, or None if --light names it, if the features that it would
    choose by are not used, or for int8, whose whole numbers are too coarse for even light."""
    import numpy as np

    from convert.training.inputs import labels_of, load_pixels
    from convert.training.light_choice import LightChoice
    from convert.training.train import Frames
    from server.recognition.frame import Limits

    options, train = plan.options, plan.train
    if args.light != "auto" or not options.pretrained or args.mode == "int8":
        return None
    left = 0 if plan.decoded.exists() else len(train.frames)
    with plan.terminal.bar("Decoding the training set", left) as advance:
        pixels = load_pixels(train, plan.recipe, Limits(), plan.decoded, advance)
    return LightChoice(
        Frames(pixels, labels_of(train)),
        np.array([plan.groups[item.path] for item in train.frames], np.intp),
        len(train.classes),
        plan.recipe,
        options,
        plan.terminal,
        plan.learner,
    )


def judge_by_folds(
    args: argparse.Namespace, plan: Plan, lights: "LightChoice | None"
) -> "Crossed | None":
    """Cross-validate the training, and say what it reached; None without --folds.

    Raises ConvertError as `cross_validate` does.
    """
    from convert.evaluation.results import Crossed
    from convert.training.cross_validation import cross_validate
    from server.system.resources import available_cores

    if not args.folds:
        return None
    found = cross_validate(
        plan.train,
        plan.recipe,
        plan.options,
        plan.work / "folds",
        plan.terminal,
        available_cores(),
        count=args.folds,
        groups=None if args.similar_apart else plan.groups,
        decoded=plan.decoded,
        learner=plan.learner,
        lights=lights,
    )
    low, high = found.top1["interval"]
    plan.terminal.say(
        f"{args.folds}-fold cross-validation: top-1 {found.top1['share']:.2%} ({low:.1%} to"
        f" {high:.1%}) of {found.top1['frames']} frames, each by a model that never saw it; now"
        f" training on all of them for {found.epoch} epochs"
    )
    return Crossed(
        folds=args.folds,
        epoch=found.epoch,
        grouped=not args.similar_apart,
        top1=found.top1,
        recalls=found.recalls,
        logits=found.logits,
    )


def check_calibration(options: "BundleOptions", recipe: "Recipe") -> None:
    """Raise ConvertError if a frame to calibrate on can't be read, or int8 has too few usable ones.

    `recipe` is the model's. Frames that are decoded already are read only for int8.
    """
    from convert.data.frames import float_spec, tensors
    from convert.quantization.integer import usable_frames

    frames = options.calibration
    if frames is None:
        return
    if options.mode == "int8":
        usable_frames(tensors(frames, recipe), float_spec(recipe).shape)
    elif isinstance(frames, tuple):
        for _ in tensors(frames, recipe):
            pass


def options_from(args: argparse.Namespace) -> "Options":
    """Return the options of the training. Raises ConvertError for a value out of its range."""
    from convert.training.folds import MAX_FOLDS, MIN_FOLDS
    from convert.training.inputs import Augmentation
    from convert.training.network import PRETRAINED
    from convert.training.train import LEARNING_BATCH, Options

    for name, low, high in (
        ("epochs", 0, 100_000),
        ("patience", 1, 100_000),
        ("batch", 1, 4096),
        ("sparsity", 0.0, 0.99),
        ("alpha", 0.05, 4.0),
        ("frozen", 0, 17),
        ("smoothing", 0.0, 0.9),
        ("mixup", 0.0, 10.0),
        ("seed", 0, 2**32 - 1),
    ):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise ConvertError(f"--{name} {value:g} should be from {low:g} to {high:g}")
    if args.light == "even" and args.mode == "int8":
        raise ConvertError("--light even can't be with --mode int8, which is too coarse for it")
    if args.normalisation != "auto" and args.weights not in PRETRAINED:
        raise ConvertError(
            f"--normalisation {args.normalisation} does nothing with --weights {args.weights}:"
            " all of its layers learn"
        )
    if args.normalisation == "learn" and args.batch < LEARNING_BATCH:
        raise ConvertError(
            f"--normalisation learn takes the statistics of a step's frames: --batch {args.batch}"
            f" should be at least {LEARNING_BATCH}"
        )
    if args.similar_apart and args.folds is None:
        raise ConvertError("--similar-apart does nothing without --folds K")
    if args.folds is not None and not MIN_FOLDS <= args.folds <= MAX_FOLDS:
        raise ConvertError(f"--folds {args.folds} should be from {MIN_FOLDS} to {MAX_FOLDS}")
    if args.rate is not None and not 0 < args.rate <= LEARNING_RATE_MAX:
        raise ConvertError(
            f"--rate {args.rate:g} should be above 0 and at most {LEARNING_RATE_MAX:g}"
        )
    return Options(
        alpha=args.alpha,
        size=args.size,
        weights=args.weights,
        epochs=args.epochs,
        patience=args.patience,
        batch=args.batch,
        rate=args.rate,
        seed=args.seed,
        sparsity=args.sparsity,
        teacher=args.teacher,
        augmentation=Augmentation(flips=not args.no_flips),
        frozen=args.frozen,
        smoothing=args.smoothing,
        mixup=args.mixup,
        light="even" if args.light == "even" else "as-is",
    )


def normalisation_of(args: argparse.Namespace, frames: int) -> "Normalisation":
    """Return the normalisation that --normalisation names, or that suits so many frames."""
    from convert.training.train import suited_normalisation

    chosen: Normalisation | Literal["auto"] = args.normalisation
    return suited_normalisation(frames, args.batch, args.folds) if chosen == "auto" else chosen


def default_name(folder: Path) -> str:
    """Make a model's name from its frames' folder; `tiles/train` gives tiles."""
    path = folder.resolve()
    name = path.parent.name if path.stem.lower() in ("train", "training") else path.stem
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._") or "model"


def read_frames(
    args: argparse.Namespace, name: str, terminal: "Terminal"
) -> "tuple[Dataset, Dataset, dict[Path, Fingerprint]]":
    """Read and check the frames to train on and those to validate on, and return them with their
    fingerprints. The second is the first if --folds alone judges. Raises DatasetError.

    name: the model's, whose labelled samples are used if --labelled-of names no other.
    """
    from convert.data.checks import check_dataset
    from convert.data.dataset import read_dataset, split, with_samples
    from convert.folder_check import checking
    from server.recognition.frame import Limits

    train = read_dataset(args.folder)
    if args.labelled:
        own = len(train.frames)
        train = with_samples(train, args.labelled, args.labelled_of or name)
        terminal.say(f"{len(train.frames) - own} labelled samples from {args.labelled}")
    validation = read_dataset(args.validate, train.classes) if args.validate else None
    images = len(train.frames) + len(validation.frames if validation else ())
    with terminal.bar("Checking the images", images) as advance:
        check_dataset(
            train, validation, Limits(), advance, allow_similar=args.allow_similar_classes
        )
    recipe = checking.check_recipe(**view_values(args))
    paths = [item.path for item in (*train.frames, *(validation.frames if validation else ()))]
    prints = checking.read_fingerprints(paths, recipe, terminal)
    if validation is None and args.folds:
        validation = train
        terminal.say("no --validate: the folds alone judge the training")
    elif validation is None:
        groups = checking.grouped(train, prints)
        train, validation = split(train, HELD_OUT_SHARE, args.seed, groups)
        terminal.say(
            f"no --validate: held out {HELD_OUT_SHARE:.0%} of each class, chosen by --seed"
            f" {args.seed}"
        )
    held = 0 if validation is train else len(validation.frames)
    terminal.say(
        f"{counted(len(train.frames), 'frame')} to train on, {held} to validate on: "
        + ", ".join(f"{n} {c}" for n, c in zip(train.classes, train.counts(), strict=True))
    )
    return train, validation, prints
