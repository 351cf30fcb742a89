"""Command-line arguments that several commands share, and what they make."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convert.pipeline import Request
    from convert.sources.quantized import Tflite
    from convert.sources.shapes import Output
    from server.recognition.manifest import Label, Recipe, VerdictPolicy

DEFAULT_IO, DEFAULT_MIN_PROBABILITY = "uint8", 0.5
OUTPUTS = ("probabilities", "logits", "sigmoid")


def version(text: str) -> int:
    """A version's number. Raises argparse.ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 1 on")
    return int(text)


def add_bundle_arguments(parser: argparse.ArgumentParser, name: str | None = None) -> None:
    """Adds options: where the bundle goes, how the model is quantised, and what it must reach."""
    where = parser.add_argument_group("bundle")
    where.add_argument("--out", type=Path, default=Path("models"), help="folder (models)")
    where.add_argument("--name", default=name, help=f"of the model ({name or 'its file name'})")
    where.add_argument("--version", type=version, help="from 1 on (the next that is free)")
    where.add_argument("--source", default="", help="where the model comes from, for bundle.json")
    where.add_argument("--license", default="", help="of the model, for bundle.json")
    where.add_argument("--accept", metavar="LABEL", nargs="+", help="labels of a good part")
    where.add_argument("--min-probability", type=float, help="below it the verdict is unsure (0.5)")
    how = parser.add_argument_group("quantisation")
    how.add_argument(
        "--mode",
        default="dynamic",
        help="dynamic, float16, int8, float32, or all for a table (dynamic; what is quantised"
        " already stays as it is)",
    )
    how.add_argument("--tune", action="store_true", help="measure what to quantise on this machine")
    how.add_argument(
        "--calibrate",
        type=Path,
        metavar="FOLDER",
        help="real frames: int8 needs them, all modes gain",
    )
    how.add_argument("--io", help="int8's input and output: uint8, int8, float32 (uint8)")
    proof = parser.add_argument_group("proof")
    proof.add_argument(
        "--validate", type=Path, metavar="FOLDER", help="one sub-folder a class, or a CSV"
    )
    proof.add_argument(
        "--max-accuracy-drop", type=float, metavar="POINTS", help="of top-1, on --validate (0.5)"
    )
    proof.add_argument("--max-size-ratio", type=float, metavar="RATIO", help="to the float model")
    proof.add_argument(
        "--seconds", type=float, default=4.0, help="of measuring latency in turns (4)"
    )
    proof.add_argument("--samples", type=int, default=0, help="frames copied into samples/ (0)")
    every = parser.add_argument_group("--mode all: a table of every mode, no bundle")
    every.add_argument(
        "--frames",
        type=Path,
        metavar="FOLDER",
        help="images, or one sub-folder a class (--validate)",
    )
    every.add_argument("--plot", type=Path, help="PNG of accuracy on the frames against latency")


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options on how an image is fed to a model that does not say so itself."""
    recipe = parser.add_argument_group("recipe: how an image is fed to the model")
    recipe.add_argument("--scale", type=float, nargs="+", help="tensor = pixel * scale + offset")
    recipe.add_argument("--offset", type=float, nargs="+", help="one number, or one a channel")
    recipe.add_argument("--color", choices=("rgb", "bgr", "gray"))
    recipe.add_argument("--resize", choices=("stretch", "crop", "letterbox"))
    recipe.add_argument(
        "--interpolation", choices=("fast_area", "area", "linear", "cubic", "nearest")
    )
    recipe.add_argument("--decode", choices=("scaled", "exact"))
    recipe.add_argument("--pad", type=int, help="grey level of letterbox bars")
    recipe.add_argument("--output", choices=OUTPUTS, help="what the model's output is")


def recipe_values(args: argparse.Namespace) -> dict[str, Any]:
    """The recipe fields that were given.

    A scale without an offset has the offset 0: a default offset is right for the default scale
    alone. Raises ConvertError for an offset without a scale.
    """
    from convert.errors import ConvertError

    names = ("scale", "offset", "color", "resize", "interpolation", "decode", "pad")
    values = {name: getattr(args, name) for name in names}
    for name in ("scale", "offset"):
        given: Sequence[float] | None = values[name]
        if given is not None:
            values[name] = given[0] if len(given) == 1 else tuple(given)
    if values["scale"] is None and values["offset"] is not None:
        raise ConvertError("--offset needs --scale too: tensor = pixel * scale + offset")
    if values["scale"] is not None and values["offset"] is None:
        values["offset"] = 0.0
    return {name: value for name, value in values.items() if value is not None}


def request(
    args: argparse.Namespace,
    model: "bytes | Tflite",
    labels: "tuple[Label, ...]",
    recipe: "Recipe",
    output: "Output",
) -> "Request":
    """The request that `add_bundle_arguments`'s arguments describe.

    model: a float32 .tflite, or one in any mode.

    Raises ConvertError or DatasetError where a folder of frames is not usable, and as
    `check_used` does.
    """
    from convert.data.dataset import images, labelled
    from convert.pipeline import Request

    policy = verdict(args)
    check_used(args)
    quantized = None
    if not isinstance(model, bytes):
        if model.mode != "float32" or model.dtype != "float32":
            quantized = model.mode
            check_quantized(args, quantized)
        model = model.data
    return Request(
        float_model=model,
        labels=labels,
        recipe=recipe,
        output=output,
        name=args.name,
        out=args.out,
        version=args.version,
        mode=quantized or args.mode,
        quantized=quantized is not None,
        io_dtype=args.io or DEFAULT_IO,
        source=args.source,
        license=args.license,
        validation=labelled(args.validate, labels) if args.validate else None,
        calibration=images(args.calibrate) if args.calibrate else None,
        verdict=policy,
        max_accuracy_drop=args.max_accuracy_drop,
        max_size_ratio=args.max_size_ratio,
        tune=args.tune,
        samples=args.samples,
        seconds=args.seconds,
    )


def verdict(args: argparse.Namespace) -> "VerdictPolicy | None":
    """The policy that --accept and --min-probability state; None without --accept.

    Raises ConvertError for a probability outside 0..1.
    """
    from convert.errors import ConvertError
    from server.recognition.manifest import VerdictPolicy

    least = DEFAULT_MIN_PROBABILITY if args.min_probability is None else args.min_probability
    if not 0 <= least <= 1:
        raise ConvertError(f"--min-probability {least:g} should be in 0..1")
    if not args.accept:
        return None
    return VerdictPolicy(accept=tuple(args.accept), min_probability=least)


def check_used(args: argparse.Namespace) -> None:
    """Raises ConvertError for an option that was given and has no effect without another."""
    from convert.errors import ConvertError

    every = args.mode == "all"
    for option, given, used, needed in (
        ("--min-probability", args.min_probability, args.accept, "--accept LABEL"),
        ("--io", args.io, every or args.mode == "int8", "--mode int8"),
        ("--frames", args.frames, every, "--mode all"),
        ("--plot", args.plot, every, "--mode all"),
    ):
        if given is not None and not used:
            raise ConvertError(f"{option} does nothing without {needed}")


def check_quantized(args: argparse.Namespace, mode: str) -> None:
    """Raises ConvertError for an option that a model of `mode`, quantised already, can't have."""
    from convert.errors import ConvertError

    # Nobody asks for the default alone.
    asked = args.mode if args.mode not in ("dynamic", mode) else None
    for option, value in (
        (f"--mode {asked}", asked),
        ("--tune", args.tune or None),
        ("--calibrate", args.calibrate),
        ("--io", args.io),
        ("--max-size-ratio", args.max_size_ratio),
        ("--max-accuracy-drop", args.max_accuracy_drop),
    ):
        if value is not None:
            raise ConvertError(
                f"the model is quantised already ({mode}) and stays as it is, so {option} has no"
                " effect: leave it out, or give the float32 model that it was made from"
            )


def check_accepted(args: argparse.Namespace, labels: "Sequence[Label]") -> None:
    """Raises ConvertError for a label of --accept that is not among `labels`."""
    from convert.errors import ConvertError

    names = [label.name for label in labels]
    unknown = [name for name in args.accept or () if name not in names]
    if unknown:
        some = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise ConvertError(f"--accept {', '.join(unknown)} is not one of the labels {some}")


def finish(args: argparse.Namespace, request: "Request") -> int:
    """Writes the bundle, or with `--mode all` prints the table; returns the exit code."""
    from convert import pipeline
    from convert.cli import all_modes as modes

    if args.mode == "all":
        modes.every_mode(request, args)
    else:
        pipeline.build(request)
    return 0
