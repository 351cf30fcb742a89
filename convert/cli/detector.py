"""`python -m convert detector`: a detection model that was exported by another program."""

import argparse
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from convert.cli.arguments import (
    add_place_arguments,
    add_recipe_arguments,
    number,
    recipe_values,
)
from convert.cli.models import bundle_name
from convert.errors import ConvertError

if TYPE_CHECKING:
    from convert.detection.model import Detector
    from server.recognition.detection.manifest import DetectionPolicy
    from server.values.labels import Label

COUNTS = ("expect", "minimum", "maximum")


def count_of(text: str) -> tuple[str, int]:
    """Parse `LABEL=COUNT`. Raises argparse.ArgumentTypeError."""
    label, equals, count = text.rpartition("=")
    if not (equals and label and count.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text} is not LABEL=COUNT, as in screw=4")
    return label, int(count)


def anchors_of(text: str) -> tuple[int, int]:
    """Parse `STRIDExCOUNT`. Raises argparse.ArgumentTypeError."""
    stride, _, count = text.partition("x")
    if not (stride.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text} is not STRIDExCOUNT, as in 8x2")
    return int(stride), int(count)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    from server.recognition.detection.manifest import Convention

    parser.add_argument("file", type=Path, metavar="FILE", help=".tflite, float32 or quantised")
    parser.add_argument(
        "--labels",
        type=Path,
        help="LABEL or ID<TAB>LABEL a line, in the order of classes (those that FILE carries)",
    )
    parser.add_argument(
        "--validate",
        type=Path,
        metavar="FOLDER",
        help="pictures that show objects: they decide how FILE is read, and some become golden",
    )
    add_place_arguments(parser)
    outputs = parser.add_argument_group("outputs: what FILE itself does not show")
    outputs.add_argument("--convention", choices=typing.get_args(Convention))
    outputs.add_argument(
        "--outputs", type=int, nargs="+", metavar="N", help="places of the tensors, from 0"
    )
    outputs.add_argument("--box-format", choices=("xywh", "xyxy", "yxyx"))
    outputs.add_argument("--box-unit", choices=("pixels", "share"))
    outputs.add_argument("--activation", choices=("none", "sigmoid", "softmax"))
    outputs.add_argument("--score-scale", type=number, help="makes scores 0..1 (1/100 of percent)")
    outputs.add_argument("--score", choices=("product", "objectness"), help="of yolov5")
    outputs.add_argument("--class-offset", type=int, help="line of labels less the model's number")
    outputs.add_argument("--background", metavar="LABEL", help="that is no object")
    outputs.add_argument(
        "--anchors", type=anchors_of, nargs="+", metavar="STRIDExCOUNT", help="of blazeface"
    )
    outputs.add_argument("--score-threshold", type=float, help="least score of an object")
    outputs.add_argument("--iou-threshold", type=float, help="overlap of two objects of one class")
    outputs.add_argument("--max-detections", type=int, help="objects in one answer (100)")
    verdict = parser.add_argument_group("verdict: the rules of a good part")
    verdict.add_argument("--accept", metavar="LABEL", nargs="+", help="any other object fails")
    verdict.add_argument("--forbid", metavar="LABEL", nargs="+", help="one such object fails")
    for name, text in zip(COUNTS, ("exactly", "at least", "at most"), strict=True):
        verdict.add_argument(
            f"--{name}",
            type=count_of,
            nargs="+",
            metavar="LABEL=COUNT",
            help=f"{text} so many objects",
        )
    verdict.add_argument("--min-probability", type=float, help="of an object that decides (0.5)")
    verdict.add_argument(
        "--verdict-region",
        type=number,
        nargs=4,
        metavar=("LEFT", "TOP", "WIDTH", "HEIGHT"),
        help="in shares of the frame: objects with the centre of their box outside do not count",
    )
    add_recipe_arguments(parser, output=False)


def run(args: argparse.Namespace) -> int:
    """Write the bundle and return the exit code. Raises ConvertError."""
    from convert.detection.bundle import DetectorOptions, build
    from convert.detection.model import read_detector
    from convert.sources.model_files import TFLITE, kind_of_model

    if kind_of_model(args.file) != TFLITE:
        raise ConvertError(f"{args.file} is no .tflite, which a detector is converted from")
    detector = read_detector(args.file)
    labels = _labels(args.labels, detector)
    options = DetectorOptions(
        labels=labels,
        name=args.name or bundle_name(args.file),
        out=args.out,
        version=args.version,
        source=args.source or args.file.name,
        license=args.license,
        given=_given(args, labels),
        recipe=recipe_values(args),
        frames=args.validate,
        verdict=_policy(args, labels),
    )
    build(detector, options)
    return 0


def _labels(file: Path | None, detector: "Detector") -> "tuple[Label, ...]":
    """Return the labels of --labels, or those that the model's file carries."""
    from convert.data.labels import read_labels

    metadata = detector.metadata
    if metadata.task not in ("", "detect"):
        raise ConvertError(
            f"{metadata.source or 'its metadata'} in the file says that it is a model for the task"
            f" {metadata.task}: only detectors are converted here"
        )
    if file is not None:
        labels = read_labels(file)
        if metadata.labels and len(metadata.labels) != len(labels):
            print(
                f"warning: {file} has {len(labels)} labels, and {metadata.source} in the model's"
                f" file has {len(metadata.labels)}"
            )
        return labels
    if not metadata.labels:
        raise ConvertError("the file carries no labels: give them with --labels FILE")
    print(f"{len(metadata.labels)} labels from {metadata.source} in the model's file")
    return metadata.labels


def _given(args: argparse.Namespace, labels: "tuple[Label, ...]") -> dict[str, Any]:
    """Return the fields of DetectionOutputs that the user gave."""
    names = (
        *("convention", "outputs", "box_format", "box_unit", "activation", "score_scale", "score"),
        *("class_offset", "anchors", "score_threshold", "iou_threshold", "max_detections"),
    )
    values = {name: getattr(args, name) for name in names}
    if args.background is not None:
        _check_labels("--background", [args.background], labels)
        values["background"] = [label.name for label in labels].index(args.background)
    return {name: value for name, value in values.items() if value is not None}


def _policy(args: argparse.Namespace, labels: "tuple[Label, ...]") -> "DetectionPolicy | None":
    from server.recognition.detection.manifest import DetectionPolicy

    least = 0.5 if args.min_probability is None else args.min_probability
    if not 0 <= least <= 1:
        raise ConvertError(f"--min-probability {least:g} should be in 0..1")
    counts = {name: dict(getattr(args, name) or ()) for name in COUNTS}
    for option, named in (("accept", args.accept), ("forbid", args.forbid), *counts.items()):
        _check_labels(f"--{option}", named or (), labels)
    if not (args.accept or args.forbid or any(counts.values())):
        for option in ("min_probability", "verdict_region"):
            if getattr(args, option) is not None:
                name = option.replace("_", "-")
                raise ConvertError(f"--{name} does nothing without a rule, such as --accept")
        return None
    return DetectionPolicy(
        accept=tuple(args.accept or ()),
        forbidden=tuple(args.forbid or ()),
        expected=counts["expect"],
        minimum=counts["minimum"],
        maximum=counts["maximum"],
        min_probability=least,
        region=tuple(args.verdict_region) if args.verdict_region else UNSET,
    )


def _check_labels(option: str, named: typing.Iterable[str], labels: "tuple[Label, ...]") -> None:
    known = {label.name for label in labels}
    for name in named:
        if name not in known:
            some = ", ".join(label.name for label in labels[:10])
            more = ", ..." if len(labels) > 10 else ""
            raise ConvertError(f"{option} {name} is not one of the labels {some}{more}")
