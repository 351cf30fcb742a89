"""`python -m convert onnx` and `sklearn`: models that ONNX Runtime runs on the device."""

import argparse
from pathlib import Path

from convert.cli.arguments import (
    add_bundle_arguments,
    add_place_arguments,
    add_recipe_arguments,
    add_size_argument,
    bundle_options,
    finish,
    recipe_values,
)
from convert.cli.models import bundle_name
from convert.errors import ConvertError

MODEL_FILE = "model.onnx"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command that the parser's default `command` names."""
    onnx = parser.get_default("command") == "onnx"
    kind = ".onnx" if onnx else ".pkl or .joblib, a scikit-learn classifier of numbers"
    parser.add_argument("file", type=Path, metavar="FILE", help=kind)
    parser.add_argument(
        "--labels", type=Path, required=True, help="LABEL or ID<TAB>LABEL a line, in output order"
    )
    if not onnx:
        parser.add_argument(
            "--trust-pickle",
            action="store_true",
            help="run the code that FILE brings: a pickle can do anything that you can",
        )
        add_place_arguments(parser)
        return
    add_size_argument(parser)
    add_recipe_arguments(parser)
    add_bundle_arguments(parser)
    parser.set_defaults(mode="float32")


def run(args: argparse.Namespace) -> int:
    """Write the bundle and return the exit code. Raises ConvertError."""
    if args.command == "sklearn":
        from convert.sources.sklearn_models import build_sklearn

        return build_sklearn(
            args.file,
            args.labels,
            trusted=args.trust_pickle,
            out=args.out,
            name=args.name or bundle_name(args.file),
            version=args.version,
            source=args.source or args.file.name,
            license_text=args.license,
        )
    return _onnx(args)


def _onnx(args: argparse.Namespace) -> int:
    from convert.data.labels import read_labels
    from convert.recipe.choice import recipe_with
    from convert.sources.onnx_models import PIXEL_RANGE, load_onnx, read_onnx
    from server.recognition.manifest import Recipe

    if args.mode not in ("float32", "int8"):
        raise ConvertError(f"--mode {args.mode} is not for ONNX models: say float32 or int8")
    if args.tune or args.io:
        raise ConvertError("--tune and --io are not for ONNX models: leave them out")
    options = bundle_options(
        args, read_labels(args.labels), name=bundle_name(args.file), source=args.file.name
    )
    model = read_onnx(load_onnx(args.file), args.size)
    given = model.metadata_recipe() | recipe_values(args)
    if "scale" not in given:
        raise ConvertError(
            "the model does not say how its pixels were scaled in training: say it with --scale and"
            f" --offset or --mean and --std, or in its metadata {PIXEL_RANGE}"
        )
    base = Recipe(
        width=model.width,
        height=model.height,
        layout=model.layout,
        color="gray" if model.channels == 1 else "rgb",
    )
    recipe = recipe_with(base, **given)
    output = args.output or model.output
    print(
        f"input {recipe.width} x {recipe.height} {recipe.color}, {recipe.layout}, {recipe.resize};"
        f" pixels * {recipe.scale} + {recipe.offset}; output taken as {output}"
    )
    return finish(args, options.request(model.data, recipe, output, file=MODEL_FILE))
