"""`python -m convert keras`, `saved-model` and `tflite`: a model in a file."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from convert.options import (
    add_bundle_arguments,
    add_recipe_arguments,
    finish,
    recipe_values,
    request,
)

if TYPE_CHECKING:
    from convert.shapes import Shape
    from server.recognition.manifest import Label

FILES = {
    "keras": ".keras, .h5, or the folder of a SavedModel",
    "saved-model": "folder of a SavedModel",
    "tflite": "float32 .tflite",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command that the parser's default `command` names."""
    command = parser.get_default("command")
    parser.add_argument("file", type=Path, metavar="FILE", help=FILES[command])
    parser.add_argument("--labels", type=Path, required=True, help="LABEL or ID<TAB>LABEL a line")
    if command == "saved-model":
        parser.add_argument("--signature", help="of the SavedModel (serving_default)")
    if command != "tflite":
        parser.add_argument(
            "--size",
            type=int,
            nargs=2,
            metavar=("HEIGHT", "WIDTH"),
            help="where the model's is open",
        )
    add_recipe_arguments(parser)
    add_bundle_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the bundle. Returns the exit code; raises ConvertError."""
    from convert import sources

    labels = sources.read_labels(args.labels)
    if args.command == "keras":
        model, shape = sources.keras_file(args.file, args.size)
        return convert(args, model, labels, args.file, shape)
    if args.command == "saved-model":
        signature = args.signature or sources.SERVING
        model, shape = sources.saved_model(args.file, signature, args.size)
        return convert(args, model, labels, args.file, shape)
    return convert(args, sources.tflite_file(args.file), labels, args.file)


def convert(
    args: argparse.Namespace,
    model: bytes,
    labels: "tuple[Label, ...]",
    file: Path,
    shape: "Shape | None" = None,
) -> int:
    """Says how the model will be fed and builds the bundle; also for `pytorch`.

    shape: of the model, where more is known of it than the .tflite shows.
    """
    from convert import shapes, sources

    seen = shape or shapes.describe(model)
    recipe = sources.recipe_with(sources.default_recipe(seen), **recipe_values(args))
    output = args.output or seen.output
    args.name = args.name or file.resolve().stem
    args.source = args.source or file.name
    inside = ", since the model scales them itself" if seen.scales_inside else ""
    chosen = "as given" if args.scale else "by default" + inside
    print(
        f"input {recipe.width} x {recipe.height} {recipe.color}, {recipe.resize}; pixels *"
        f" {_number(recipe.scale)} + {_number(recipe.offset)} {chosen}; output taken as {output}"
    )
    if shape is None and not (args.scale or seen.scales_inside):
        print(
            "warning: where this model scales its pixels itself, which a .tflite need not show,"
            " it needs --scale 1 --offset 0"
        )
    return finish(args, request(args, model, labels, recipe, output))


def _number(value: float | tuple[float, ...]) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return ", ".join(f"{number:.6g}" for number in values)
