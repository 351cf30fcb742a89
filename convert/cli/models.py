"""`python -m convert keras`, `saved-model`, `tflite`, `pytorch` and `imagenet`: trained models."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from convert.cli.arguments import (
    add_bundle_arguments,
    add_recipe_arguments,
    add_size_argument,
    bundle_options,
    check_quantized,
    finish,
    recipe_values,
)
from convert.errors import ConvertError

if TYPE_CHECKING:
    from convert.pipeline import BundleOptions
    from convert.sources.quantized import Tflite
    from server.values.labels import Label

FILES = {
    "keras": ".keras, .h5, the folder of a SavedModel, or an archive of one",
    "saved-model": "folder or archive of a SavedModel",
    "tflite": ".tflite, float32 or quantised",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command that the parser's default `command` names."""
    command = parser.get_default("command")
    if command == "imagenet":
        _add_imagenet_arguments(parser)
        add_bundle_arguments(parser, name="imagenet")
        return
    if command == "pytorch":
        _add_pytorch_arguments(parser)
    else:
        _add_file_arguments(parser, command)
    add_recipe_arguments(parser)
    add_bundle_arguments(parser)


def _add_imagenet_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--alpha", type=float, default=1.0, help="width of the network (1.0)")
    parser.add_argument("--size", type=int, default=224, help="of its input in pixels (224)")
    parser.add_argument(
        "--weights", default="imagenet", help="imagenet, none (random) or a file (imagenet)"
    )


def _add_pytorch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a program saved by torch.export.save (.pt2), or MODULE:CALLABLE that returns a"
        " torch.nn.Module",
    )
    _add_labels(parser)
    parser.add_argument("--weights", type=Path, help="state_dict for MODULE:CALLABLE")
    parser.add_argument(
        "--size", type=int, nargs="+", default=[224], help="height and width of its image (224)"
    )
    parser.add_argument("--channels", type=int, default=3, choices=(1, 3), help="of its image (3)")


def _add_file_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help=FILES[command])
    _add_labels(parser)
    parser.set_defaults(signature=None, size=None, run_lambdas=False)
    if command == "saved-model":
        parser.add_argument("--signature", help="of the SavedModel (serving_default)")
    if command != "tflite":
        add_size_argument(parser)
    if command == "keras":
        parser.add_argument(
            "--run-lambdas",
            action="store_true",
            help="run the Python code that FILE brings for its Lambda layers",
        )


def _add_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labels", type=Path, required=True, help="LABEL or ID<TAB>LABEL a line")


def run(args: argparse.Namespace) -> int:
    """Write the bundle and return the exit code. Raises ConvertError."""
    if args.command == "imagenet":
        return _imagenet(args)
    from convert.data.labels import read_labels, similar_classes

    labels = read_labels(args.labels)
    for one, other in similar_classes({label.name: 1 for label in labels}):
        print(
            f"warning: the labels {one!r} and {other!r} look like one label; the model answers them"
            " separately"
        )
    return (_pytorch if args.command == "pytorch" else _file)(args, labels)


def _imagenet(args: argparse.Namespace) -> int:
    from convert.sources import imagenet
    from convert.sources.keras import from_keras

    print(f"MobileNetV2 alpha {args.alpha:g} at {args.size} pixels, weights {args.weights}")
    options = bundle_options(
        args,
        imagenet.labels(),
        name="imagenet",
        source=f"keras.applications.MobileNetV2(alpha={args.alpha:g}, weights={args.weights!r})",
        license_text=imagenet.LICENSE,
    )
    model = from_keras(imagenet.model(args.alpha, args.size, args.weights))
    return finish(args, options.request(model, imagenet.recipe(args.size), "probabilities"))


def _file(args: argparse.Namespace, labels: "tuple[Label, ...]") -> int:
    from convert.sources.keras import SERVING, model_file

    options = bundle_options(args, labels, name=bundle_name(args.file), source=args.file.name)
    size = tuple(args.size) if args.size else None
    signature = args.signature or SERVING
    model = model_file(args.file, size, signature, run_lambdas=args.run_lambdas)
    return _convert(args, options, model)


def _pytorch(args: argparse.Namespace, labels: "tuple[Label, ...]") -> int:
    from convert.sources import pytorch
    from convert.sources.quantized import read_tflite

    if len(args.size) > 2 or min(args.size) < 1:
        raise ConvertError(f"--size {args.size} should be a height and a width, or one for both")
    is_module = ":" in args.model
    path = Path(args.model.partition(":")[2] if is_module else args.model)
    if not is_module and not path.is_file():
        raise ConvertError(f"{path} does not exist; a module is named as MODULE:CALLABLE")
    options = bundle_options(args, labels, name=bundle_name(path), source=path.name)
    if is_module:
        module = pytorch.load_module(args.model, args.weights)
        data = pytorch.from_module(module, args.size[0], args.size[-1], args.channels)
    else:
        data = pytorch.exported_program(path)
    return _convert(args, options, read_tflite(data))


def _convert(args: argparse.Namespace, options: "BundleOptions", model: "Tflite") -> int:
    """Choose the recipe, print it, and build the bundle. Return the exit code."""
    from convert.data.dataset import is_labelled, labelled
    from convert.data.labels import is_numbered
    from convert.recipe.choice import choose_recipe

    output = args.output or model.shape.output
    frames = options.validation
    if frames is None and args.frames and is_labelled(args.frames):
        frames = labelled(args.frames, options.labels)
    choice = choose_recipe(
        model,
        options.labels,
        output,
        recipe_values(args),
        teachable_machine=is_numbered(args.labels),
        frames=frames,
    )
    recipe = choice.recipe
    print(
        f"input {recipe.width} x {recipe.height} {recipe.color}, {recipe.resize}; pixels *"
        f" {_numbers(recipe.scale)} + {_numbers(recipe.offset)} {choice.why}; output taken as"
        f" {output}"
    )
    if choice.warning:
        print(choice.warning)
    quantized = None
    if model.mode != "float32" or model.dtype != "float32":
        quantized = model.mode
        check_quantized(args, quantized)
    return finish(args, options.request(model.data, recipe, output, quantized))


def _numbers(value: float | tuple[float, ...]) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return ", ".join(f"{number:.6g}" for number in values)


def bundle_name(file: Path) -> str:
    """Make a model's name from the name of its file or folder."""
    path = file.resolve()
    if path.name == "saved_model.pb":
        return path.parent.name
    stem = path.stem
    return stem.removesuffix(".tar")
