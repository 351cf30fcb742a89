"""`python -m convert train FOLDER`: photographs in, a checked bundle out."""

import argparse
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.cli.arguments import add_bundle_arguments
from convert.cli.arguments import request as request_of

if TYPE_CHECKING:
    from convert.data.dataset import Dataset
    from convert.terminal import Terminal
    from convert.training.train import Options
    from server.recognition.manifest import Recipe

HELD_OUT = 0.2
HIGHEST_RATE = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds options: what to train on, how, and where the bundle goes."""
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="one sub-folder a class, or a CSV of path,label"
    )
    parser.add_argument(
        "--labelled", type=Path, metavar="DIR", help="a server's DATA/samples: labelled ones too"
    )
    parser.add_argument(
        "--labelled-of", metavar="MODEL", help="the model that answered them (that of --name)"
    )
    parser.add_argument(
        "--allow-similar-classes",
        action="store_true",
        help="names such as good and Good, or crak and crack, are two classes",
    )
    how = parser.add_argument_group("training")
    how.add_argument("--alpha", type=float, default=1.0, help="width of MobileNetV2 (1.0)")
    how.add_argument("--size", type=int, default=224, help="sides of its input in pixels (224)")
    how.add_argument(
        "--weights",
        choices=("imagenet", "slice", "none"),
        default="imagenet",
        help="to start from: Keras's for this alpha and size, the strongest channels of those of"
        " alpha 1.0, or random (imagenet)",
    )
    how.add_argument("--epochs", type=int, default=20, help="of fine-tuning, at most (20)")
    how.add_argument("--patience", type=int, default=6, help="epochs without a better one (6)")
    how.add_argument("--batch", type=int, default=16, help="frames a step (16)")
    how.add_argument(
        "--rate", type=float, help="highest learning rate (3e-5; 1e-3 without ImageNet weights)"
    )
    how.add_argument(
        "--no-flips", action="store_true", help="where left and right or up and down matter"
    )
    how.add_argument(
        "--teacher", type=Path, metavar="BUNDLE_OR_KERAS", help="larger model to learn from"
    )
    how.add_argument(
        "--sparsity", type=float, default=0.0, metavar="SHARE", help="of weights made zero (0)"
    )
    how.add_argument("--seed", type=int, default=0)
    how.add_argument(
        "--work", type=Path, metavar="FOLDER", help="for what resuming needs (OUT/.training)"
    )
    add_bundle_arguments(parser, "that of FOLDER")
    parser.set_defaults(name=None)


def run(args: argparse.Namespace) -> int:
    """Trains and writes the bundle; returns the exit code.

    Raises ConvertError, GateError and DatasetError. After any of them, a kill or Ctrl-C the same
    command goes on where it stopped.
    """
    import shutil

    from convert.sources import imagenet
    from convert.terminal import Terminal
    from convert.training.checkpoint import exclusive_lock, fingerprint
    from convert.training.train import Training
    from server.system.resources import available_cores

    options, recipe, terminal = options_from(args), imagenet.recipe(args.size), Terminal()
    args.name = args.name or default_name(args.folder)
    train, validation = data(args, terminal)
    check_before(args, train, recipe)
    state = fingerprint((options, recipe), train, validation)
    work = (args.work or args.out / ".training") / f"{args.name}-{state}"
    with exclusive_lock(work):
        model = Training(
            train, validation, recipe, options, work, terminal, available_cores()
        ).run()
        bundle_of(args, model, train, validation, recipe, terminal)
        shutil.rmtree(work)
    return 0


def bundle_of(
    args: argparse.Namespace,
    model: Any,
    train: "Dataset",
    validation: "Dataset",
    recipe: "Recipe",
    terminal: "Terminal",
) -> None:
    """Writes the bundle of the trained Keras model. Raises ConvertError and GateError."""
    from convert import pipeline
    from convert.sources import keras as sources
    from server.recognition.manifest import Label

    labels = tuple(Label(name) for name in train.classes)
    request = dataclasses.replace(
        request_of(args, sources.from_keras(model), labels, recipe, "probabilities"),
        validation=validation,
        chose_epoch=True,
        source=args.source or f"trained on {trained_on(args)}, {len(train.frames)} frames",
    )
    if request.calibration is None:
        calibration = tuple(item.path for item in train.frames)
        request = dataclasses.replace(request, calibration=calibration)
    pipeline.build(request, terminal.say)


def trained_on(args: argparse.Namespace) -> str:
    """Names the source of the training frames, for bundle.json."""
    return f"{args.folder.name} and a server's samples" if args.labelled else str(args.folder.name)


def check_before(args: argparse.Namespace, train: "Dataset", recipe: "Recipe") -> None:
    """Finds before the training what `pipeline.build` would refuse after it.

    Raises ConvertError for an unknown label, an option out of its range or without effect, and a
    version that is there already; for frames to calibrate on that won't do also CalibrationError.
    """
    from convert import bundle_writer as bundle
    from convert.cli.arguments import DEFAULT_IO, check_used, verdict
    from convert.errors import ConvertError
    from convert.pipeline import check_options

    unknown = sorted(set(args.accept or ()) - set(train.classes))
    if unknown:
        raise ConvertError(
            f"--accept {', '.join(unknown)} is not one of the classes {', '.join(train.classes)}"
        )
    verdict(args)
    check_options(
        args.mode,
        args.io or DEFAULT_IO,
        tune=args.tune,
        max_accuracy_drop=args.max_accuracy_drop,
        max_size_ratio=args.max_size_ratio,
    )
    check_used(args)
    version = args.version or bundle.next_version(args.out, args.name)
    bundle.check_free(args.out, args.name, version)
    check_calibration(args, train, recipe)


def check_calibration(args: argparse.Namespace, train: "Dataset", recipe: "Recipe") -> None:
    """Reads the frames that the model will be calibrated on, and for int8 counts those that will
    do. Raises ConvertError for one that is not a readable image, and CalibrationError."""
    from convert.data.dataset import images
    from convert.data.frames import tensors
    from convert.quantization.integer import usable_frames

    paths = images(args.calibrate) if args.calibrate else [item.path for item in train.frames]
    if args.mode == "int8":
        shape = (1, recipe.height, recipe.width, recipe.channels)
        usable_frames(tensors(paths, recipe), shape)
    elif args.calibrate:
        for _ in tensors(paths, recipe):
            pass


def options_from(args: argparse.Namespace) -> "Options":
    """The options of the training. Raises ConvertError for a value out of its range."""
    from convert.errors import ConvertError
    from convert.training.inputs import Augmentation
    from convert.training.train import Options

    for name, low, high in (
        ("epochs", 0, 100_000),
        ("patience", 1, 100_000),
        ("batch", 1, 4096),
        ("sparsity", 0.0, 0.99),
        ("alpha", 0.05, 4.0),
        ("seed", 0, 2**32 - 1),
    ):
        value = getattr(args, name)
        if not low <= value <= high:
            raise ConvertError(f"--{name} {value:g} should be from {low:g} to {high:g}")
    if args.rate is not None and not 0 < args.rate <= HIGHEST_RATE:
        raise ConvertError(f"--rate {args.rate:g} should be above 0 and at most {HIGHEST_RATE:g}")
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
    )


def default_name(folder: Path) -> str:
    """A model's name from its frames' folder; `tiles/train` is tiles."""
    path = folder.resolve()
    name = path.parent.name if path.stem.lower() in ("train", "training") else path.stem
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._") or "model"


def data(args: argparse.Namespace, terminal: "Terminal") -> "tuple[Dataset, Dataset]":
    """The frames to train on and those to validate on, checked. Raises DatasetError."""
    from convert.data.checks import check_dataset
    from convert.data.dataset import read_dataset, split, with_samples
    from server.recognition.frame import Limits

    train = read_dataset(args.folder)
    if args.labelled:
        own = len(train.frames)
        train = with_samples(train, args.labelled, args.labelled_of or args.name)
        terminal.say(f"{len(train.frames) - own} labelled samples from {args.labelled}")
    validation = read_dataset(args.validate, train.classes) if args.validate else None
    images = len(train.frames) + len(validation.frames if validation else ())
    with terminal.bar("Checking the images", images) as advance:
        check_dataset(
            train, validation, Limits(), advance, allow_similar=args.allow_similar_classes
        )
    if validation is None:
        train, validation = split(train, HELD_OUT, args.seed)
        terminal.say(
            f"no --validate: held out {HELD_OUT:.0%} of each class, chosen by --seed {args.seed}"
        )
    terminal.say(
        f"{len(train.frames)} frames to train on, {len(validation.frames)} to validate on: "
        + ", ".join(f"{n} {c}" for n, c in zip(train.classes, train.counts(), strict=True))
    )
    return train, validation
