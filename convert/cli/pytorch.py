"""`python -m convert pytorch`."""

import argparse
from pathlib import Path

from convert.cli.arguments import add_bundle_arguments, add_recipe_arguments, check_accepted
from convert.cli.models import convert, warn_of_similar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pytorch`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a program saved by torch.export.save (.pt2), or MODULE:CALLABLE that returns a"
        " torch.nn.Module",
    )
    parser.add_argument("--labels", type=Path, required=True, help="LABEL or ID<TAB>LABEL a line")
    parser.add_argument("--weights", type=Path, help="state_dict for MODULE:CALLABLE")
    parser.add_argument(
        "--size", type=int, nargs="+", default=[224], help="height and width of its image (224)"
    )
    parser.add_argument("--channels", type=int, default=3, choices=(1, 3), help="of its image (3)")
    add_recipe_arguments(parser)
    add_bundle_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the bundle. Returns the exit code; raises ConvertError."""
    from convert.data.labels import read_labels
    from convert.errors import ConvertError
    from convert.sources import pytorch
    from convert.sources.quantized import read_tflite

    labels = read_labels(args.labels)
    warn_of_similar(labels)
    check_accepted(args, labels)
    if len(args.size) > 2 or min(args.size) < 1:
        raise ConvertError(f"--size {args.size} should be a height and a width, or one for both")
    if ":" in args.model:
        module = pytorch.load_module(args.model, args.weights)
        model = pytorch.from_module(module, args.size[0], args.size[-1], args.channels)
        return convert(args, read_tflite(model), labels, Path(args.model.partition(":")[2]))
    path = Path(args.model)
    if not path.is_file():
        raise ConvertError(f"{path} does not exist; a module is named as MODULE:CALLABLE")
    return convert(args, read_tflite(pytorch.exported_program(path)), labels, path)
