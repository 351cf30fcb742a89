"""`python -m convert keras`, `saved-model` and `tflite`: a model in a file."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from convert.cli.arguments import (
    add_bundle_arguments,
    add_recipe_arguments,
    check_accepted,
    check_used,
    finish,
    recipe_values,
    request,
)

if TYPE_CHECKING:
    from convert.sources.quantized import Tflite
    from server.recognition.manifest import Label

FILES = {
    "keras": ".keras, .h5, the folder of a SavedModel, or an archive of one",
    "saved-model": "folder or archive of a SavedModel",
    "tflite": ".tflite, float32 or quantised",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command that the parser's default `command` names."""
    command = parser.get_default("command")
    parser.add_argument("file", type=Path, metavar="FILE", help=FILES[command])
    parser.add_argument("--labels", type=Path, required=True, help="LABEL or ID<TAB>LABEL a line")
    parser.set_defaults(signature=None, size=None, run_lambdas=False)
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
    if command == "keras":
        parser.add_argument(
            "--run-lambdas",
            action="store_true",
            help="run the Python code that FILE brings for its Lambda layers",
        )
    add_recipe_arguments(parser)
    add_bundle_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the bundle. Returns the exit code; raises ConvertError."""
    from convert.data.labels import read_labels
    from convert.sources import keras as sources

    labels = read_labels(args.labels)
    warn_of_similar(labels)
    check_accepted(args, labels)
    check_used(args)
    size = tuple(args.size) if args.size else None
    signature = args.signature or sources.SERVING
    found = sources.model_file(args.file, size, signature, run_lambdas=args.run_lambdas)
    return convert(args, found, labels, args.file)


def convert(
    args: argparse.Namespace, found: "Tflite", labels: "tuple[Label, ...]", file: Path
) -> int:
    """Says how the model will be fed and builds the bundle; also for `pytorch`."""
    from convert.data.dataset import is_labelled, labelled
    from convert.data.labels import is_numbered
    from convert.recipe.choice import choose_recipe

    output = args.output or found.shape.output
    frames = args.validate or (args.frames if args.mode == "all" else None)
    choice = choose_recipe(
        found,
        labels,
        output,
        recipe_values(args),
        teachable_machine=is_numbered(args.labels),
        frames=labelled(frames, labels) if frames and is_labelled(frames) else None,
    )
    recipe = choice.recipe
    args.name = args.name or bundle_name(file)
    args.source = args.source or file.name
    print(
        f"input {recipe.width} x {recipe.height} {recipe.color}, {recipe.resize}; pixels *"
        f" {_number(recipe.scale)} + {_number(recipe.offset)} {choice.why}; output taken as"
        f" {output}"
    )
    if choice.warning:
        print(choice.warning)
    return finish(args, request(args, found, labels, recipe, output))


def warn_of_similar(labels: "Sequence[Label]") -> None:
    """Prints the labels that look like one: an output each, so that the model can't join them."""
    from convert.data.labels import similar_classes

    for one, other in similar_classes({label.name: 1 for label in labels}):
        print(f"warning: the labels {one!r} and {other!r} look like one, and are two in answers")


def _number(value: float | tuple[float, ...]) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return ", ".join(f"{number:.6g}" for number in values)


def bundle_name(file: Path) -> str:
    """A model's name from that of its file or folder."""
    path = file.resolve()
    if path.name == "saved_model.pb":
        return path.parent.name
    stem = path.stem
    return stem.removesuffix(".tar")
