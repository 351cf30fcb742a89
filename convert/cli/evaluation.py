"""`python -m convert evaluate`."""

import argparse
import dataclasses
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `evaluate`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder models/NAME/VERSION")
    parser.add_argument(
        "frames", type=Path, metavar="FOLDER", help="one sub-folder a class, or CSV"
    )
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="float32 .tflite to compare with"
    )
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="where to write the report")
    parser.add_argument("--seconds", type=float, default=4.0, help="of measuring latency (4)")


def run(args: argparse.Namespace) -> int:
    """Prints what was found and writes the report. Returns the exit code; raises ConvertError."""
    from convert.bundle_writer import load
    from convert.data.dataset import labelled
    from convert.errors import ConvertError
    from convert.evaluation import report
    from convert.evaluation.evaluate import Model, evaluate, from_bundle
    from convert.evaluation.results import class_table, sentence
    from convert.recipe.choice import recipe_with
    from convert.sources import keras as sources
    from convert.sources import shapes
    from convert.terminal import suppress_native_output

    with suppress_native_output():
        bundle = load(args.bundle).bundle
    model = from_bundle(bundle)
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
        reference = Model("float32", data, recipe, model.output, model.labels)
    proof = evaluate(
        model,
        reference,
        labelled(args.frames, model.labels).frames,
        mode=bundle.manifest.quantization,
        seconds=args.seconds,
    )
    policy = bundle.manifest.verdict
    proof = dataclasses.replace(proof, accept=policy.accept if policy else ())
    print(sentence(proof))
    print(class_table(proof))
    if args.report:
        try:
            args.report.mkdir(parents=True, exist_ok=True)
            for name, data in report.files(proof).items():
                (args.report / name).write_bytes(data)
        except OSError as error:
            raise ConvertError(f"{args.report} can't be written: {error.strerror}") from None
        print(f"wrote {args.report / report.HTML}")
    return 0
