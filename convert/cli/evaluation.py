"""`python -m convert evaluate` and `compare`: bundles on labelled frames."""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.recognition.manifest import VerdictPolicy
    from server.recognition.recognizer import Recognizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command that the parser's default `command` names."""
    if parser.get_default("command") == "evaluate":
        _add_evaluate_arguments(parser)
    else:
        _add_compare_arguments(parser)


def _add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder models/NAME/VERSION")
    parser.add_argument(
        "frames",
        type=Path,
        metavar="FOLDER",
        help="one sub-folder a class, or CSV; for a detector a COCO JSON file, or a folder with it"
        " or with YOLO's or Pascal VOC's files",
    )
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="float32 .tflite to compare with"
    )
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="where to write the report")
    parser.add_argument(
        "--verdict",
        action="store_true",
        help="count bad parts that pass and good parts that are refused, as served",
    )
    parser.add_argument(
        "--good-class",
        default="good",
        metavar="CLASS",
        help="with --verdict: sub-folder of good frames (good); a classifier's are those of the"
        " labels that its policy accepts",
    )
    parser.add_argument(
        "--policy",
        type=Path,
        metavar="FILE",
        help="with --verdict: JSON of another policy, with the fields of `verdict` in bundle.json",
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="of measuring latency (4)")


def _add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundles", type=Path, nargs="+", metavar="BUNDLE", help="folder models/NAME/VERSION"
    )
    parser.add_argument(
        "--frames", type=Path, metavar="FOLDER", help="one sub-folder a class, a CSV, or images"
    )
    parser.add_argument("--plot", type=Path, help="PNG of accuracy against latency (compare.png)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of measuring latency (10)")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code. Raises ConvertError."""
    return _evaluate(args) if args.command == "evaluate" else _compare(args)


def _evaluate(args: argparse.Namespace) -> int:
    from convert.bundle_writer import load
    from convert.data.dataset import labelled
    from convert.errors import ConvertError
    from convert.evaluation import report
    from convert.evaluation.evaluate import Model, evaluate, from_bundle
    from convert.evaluation.results import class_table, sentence
    from convert.recipe.choice import recipe_with
    from convert.sources import keras as sources
    from convert.sources import shapes
    from convert.temperature import divided
    from convert.terminal import suppress_native_output

    with suppress_native_output():
        recognizer = load(args.bundle)
    bundle = recognizer.bundle
    if args.verdict:
        return _evaluate_verdicts(args, recognizer)
    if args.policy:
        raise ConvertError("--policy does nothing without --verdict")
    if bundle.manifest.task == "detect":
        return _evaluate_detector(args, recognizer)
    model = from_bundle(bundle)
    calibration = bundle.manifest.report.calibration if bundle.manifest.report else None
    reference = None
    if args.against:
        recipe = recipe_with(model.recipe, dtype="float32")
        data = sources.tflite_file(args.against)
        seen = shapes.describe(data)
        mine = (recipe.height, recipe.width, recipe.channels, len(model.labels))
        other = (seen.height, seen.width, seen.channels, seen.classes)
        if other != mine:
            raise ConvertError(
                f"{args.against} makes {other[3]} values of {list(other[:3])}, but {model.name}"
                f" makes {mine[3]} of {list(mine[:3])}"
            )
        if calibration is not None:
            data = divided(data, model.output, calibration)
        reference = Model("float32", data, recipe, model.output, model.labels)
    proof = evaluate(
        model,
        reference,
        labelled(args.frames, model.labels).frames,
        mode=bundle.manifest.quantization,
        seconds=args.seconds,
    )
    proof = dataclasses.replace(proof, calibration=calibration)
    print(sentence(proof))
    print(class_table(proof))
    if args.report:
        _write_report(args.report, report.files(proof))
    return 0


def _evaluate_verdicts(args: argparse.Namespace, recognizer: "Recognizer") -> int:
    from convert.errors import ConvertError
    from convert.evaluation.report import verdict_files
    from convert.evaluation.verdicts import lines, prove_served
    from server.recognition.manifest import DevicePolicy

    if args.against:
        raise ConvertError("--against compares models, and --verdict judges one: give one of them")
    if args.policy:
        recognizer.use_policy(DevicePolicy(_read_policy(args.policy, recognizer)))
    proof = prove_served(recognizer, args.frames, args.good_class)
    details = proof.details()
    print("\n".join(lines(details)))
    if args.report:
        _write_report(args.report, verdict_files(recognizer, proof, details))
    return 0


def _read_policy(path: Path, recognizer: "Recognizer") -> "VerdictPolicy":
    from convert.errors import ConvertError
    from server.recognition.tasks.task import read_policy
    from server.values import json_values
    from server.values.validation import InvalidValueError

    try:
        value = json_values.decode(path.read_bytes(), dict, name="it")
        return read_policy(value, recognizer.bundle)
    except OSError as error:
        raise ConvertError(f"--policy {path} can't be read: {error.strerror}") from None
    except InvalidValueError as error:
        raise ConvertError(f"--policy {path}: {error}") from None


def _evaluate_detector(args: argparse.Namespace, recognizer: "Recognizer") -> int:
    from convert.detection.annotations import read_annotations
    from convert.detection.evaluation import evaluate_detector
    from convert.errors import ConvertError

    if args.against:
        raise ConvertError(
            "--against is for classifiers: evaluate the other detector's bundle on the same frames"
        )
    proof = evaluate_detector(recognizer, read_annotations(args.frames, recognizer.labels))
    print("\n".join(proof.lines()))
    if args.report:
        _write_report(args.report, proof.files())
    return 0


def _write_report(folder: Path, files: Mapping[str, bytes]) -> None:
    from convert.errors import ConvertError
    from convert.evaluation.report import HTML

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise ConvertError(f"{folder} can't be written: {error.strerror}") from None
    print(f"wrote {folder / HTML}")


def _compare(args: argparse.Namespace) -> int:
    from convert.bundle_writer import load
    from convert.errors import ConvertError
    from convert.evaluation import compare
    from convert.evaluation.evaluate import from_bundle
    from convert.terminal import suppress_native_output

    with suppress_native_output():
        models = [from_bundle(load(folder).bundle) for folder in args.bundles]
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise ConvertError(f"a bundle is named twice: {', '.join(names)}")
    rows = compare.compare(models, args.frames, args.seconds)
    print(compare.table(rows, names[0]))
    if args.frames or args.plot:
        path = args.plot or Path("compare.png")
        compare.write_plot(rows, path)
        print(f"wrote {path}")
    return 0
