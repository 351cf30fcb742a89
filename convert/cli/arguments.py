"""Command-line arguments that several commands share, and the options made of them."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.errors import ConvertError

if TYPE_CHECKING:
    from convert.data.dataset import Dataset
    from convert.pipeline import BundleOptions, Request
    from server.recognition.manifest import VerdictPolicy
    from server.values.labels import Label

DEFAULT_IO, DEFAULT_MIN_PROBABILITY = "uint8", 0.5
OUTPUTS = ("probabilities", "logits", "sigmoid")


def version(text: str) -> int:
    """Parse a version's number. Raises argparse.ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 1 on")
    return int(text)


def number(text: str) -> float:
    """Parse a decimal number or a fraction, `1/255`. Raises argparse.ArgumentTypeError."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text} is not a number or a fraction") from None


def region(text: str) -> tuple[str, tuple[float, ...]]:
    """Parse `X,Y,WIDTH,HEIGHT`, numbers or fractions, perhaps after `NAME=`; return name and
    shares. Raises argparse.ArgumentTypeError."""
    name, _, box = text.rpartition("=")
    shares = tuple(number(part) for part in box.split(","))
    if len(shares) != 4 or not all(0 <= share <= 1 for share in shares):
        raise argparse.ArgumentTypeError(
            f"{text} is not X,Y,WIDTH,HEIGHT in shares of the frame, as in 0.25,0,0.5,1"
        )
    return name, shares


def tiles(text: str) -> tuple[int, int]:
    """Parse `COLUMNSxROWS`. Raises argparse.ArgumentTypeError."""
    columns, _, rows = text.partition("x")
    if not (columns.isdecimal() and rows.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text} is not COLUMNSxROWS, as in 3x2")
    return int(columns), int(rows)


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder of labelled frames, and how its classes may be called."""
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="one sub-folder a class, or a CSV of path,label"
    )
    parser.add_argument(
        "--allow-similar-classes",
        action="store_true",
        help="accept names such as good and Good, or crak and crack, as two classes",
    )


def add_labelled_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of samples that were labelled on a server."""
    parser.add_argument(
        "--labelled",
        type=Path,
        metavar="DIR",
        help="train on the labelled samples in a server's DATA/samples too",
    )
    parser.add_argument(
        "--labelled-of",
        metavar="MODEL",
        help="the model that answered the samples (that of --name)",
    )


def add_verdict_arguments(where: argparse._ArgumentGroup) -> None:
    """Add the options of which answers pass, to a group."""
    where.add_argument("--accept", metavar="LABEL", nargs="+", help="labels of a good part")
    where.add_argument("--min-probability", type=float, help="below it the verdict is unsure (0.5)")


def add_place_arguments(
    parser: argparse.ArgumentParser, name: str | None = None
) -> argparse._ArgumentGroup:
    """Add the options of where the bundle goes and where it comes from; return their group."""
    where = parser.add_argument_group("bundle")
    where.add_argument(
        "--out", type=Path, default=Path("models"), help="folder of the bundles (models)"
    )
    where.add_argument("--name", default=name, help=f"of the model ({name or 'its file name'})")
    where.add_argument("--version", type=version, help="from 1 on (the next free one)")
    where.add_argument("--source", default="", help="where the model comes from, for bundle.json")
    where.add_argument("--license", default="", help="of the model, for bundle.json")
    return where


def add_bundle_arguments(parser: argparse.ArgumentParser, name: str | None = None) -> None:
    """Add the options of the bundle's place, its quantisation and its validation."""
    where = add_place_arguments(parser, name)
    add_verdict_arguments(where)
    how = parser.add_argument_group("quantisation")
    how.add_argument(
        "--mode",
        default="dynamic",
        help="dynamic, float16, int8, float32, or all for a table (dynamic; a quantised model stays"
        " as it is)",
    )
    how.add_argument("--tune", action="store_true", help="measure what to quantise on this machine")
    how.add_argument(
        "--calibrate",
        type=Path,
        metavar="FOLDER",
        help="real frames: int8 needs them, the other modes become more accurate",
    )
    how.add_argument("--io", help="int8's input and output: uint8, int8, float32 (uint8)")
    checks = parser.add_argument_group("validation")
    checks.add_argument(
        "--validate", type=Path, metavar="FOLDER", help="one sub-folder a class, or a CSV"
    )
    checks.add_argument(
        "--max-accuracy-drop",
        type=float,
        metavar="POINTS",
        help="of top-1 that may be lost on --validate (0.5)",
    )
    checks.add_argument(
        "--max-size-ratio",
        type=float,
        metavar="RATIO",
        help="largest size, relative to the float model",
    )
    checks.add_argument(
        "--seconds", type=float, default=4.0, help="duration of the latency measurement (4)"
    )
    checks.add_argument("--samples", type=int, default=0, help="frames copied into samples/ (0)")
    every = parser.add_argument_group("--mode all: a table of every mode, no bundle")
    every.add_argument(
        "--frames",
        type=Path,
        metavar="FOLDER",
        help="images, or one sub-folder a class (--validate)",
    )
    every.add_argument("--plot", type=Path, help="PNG of accuracy on the frames against latency")


def add_recipe_arguments(parser: argparse.ArgumentParser, *, output: bool = True) -> None:
    """Add the options of how an image is fed to a model that does not say so itself, and what its
    `output` is."""
    recipe = parser.add_argument_group("recipe: how an image is fed to the model")
    recipe.add_argument(
        "--scale",
        "--input-scale",
        type=number,
        nargs="+",
        help="tensor = pixel * scale + offset (1/255 is a number)",
    )
    recipe.add_argument("--offset", type=number, nargs="+", help="one number, or one a channel")
    recipe.add_argument(
        "--mean",
        type=number,
        nargs="+",
        help="of pixels in 0..1, instead of --scale: tensor = (pixel / 255 - mean) / std, as in"
        " torchvision",
    )
    recipe.add_argument("--std", type=number, nargs="+", help="one number, or one a channel")
    recipe.add_argument("--color", choices=("rgb", "bgr", "gray"))
    recipe.add_argument("--resize", choices=("stretch", "crop", "letterbox"))
    recipe.add_argument(
        "--interpolation", choices=("fast_area", "area", "linear", "cubic", "nearest")
    )
    recipe.add_argument("--decode", choices=("scaled", "exact"))
    recipe.add_argument("--pad", type=int, help="grey level of letterbox bars")
    add_view_arguments(parser)
    if output:
        recipe.add_argument("--output", choices=OUTPUTS, help="what the model's output is")


def add_size_argument(parser: argparse.ArgumentParser) -> None:
    """Add the size of the image that a model is fed."""
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of the image, if the model leaves it open",
    )


def add_view_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of which part of a frame the model is shown."""
    view = parser.add_argument_group("view: the part of a frame that the model is shown")
    view.add_argument(
        "--region",
        type=region,
        action="append",
        metavar="[NAME=]X,Y,WIDTH,HEIGHT",
        help="in shares of the upright frame: nothing else of it is looked at; several, each with a"
        " name, are answered each on its own",
    )
    view.add_argument(
        "--tiles",
        type=tiles,
        metavar="COLUMNSxROWS",
        help="parts of the region that a detector is shown one by one, for small objects",
    )
    view.add_argument(
        "--tile-overlap",
        type=float,
        metavar="SHARE",
        help="of a tile's side that the next one shows too; larger than the objects (0.2)",
    )


def view_values(args: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe fields of the view that the user gave.

    Raises ConvertError for tiles of a model whose answers can't be merged, and for several regions
    if frames with one label each are read.
    """
    values = _regions(args)
    if args.tile_overlap is not None and args.tiles is None:
        raise ConvertError("--tile-overlap does nothing without --tiles")
    if args.tiles is None:
        return values
    if args.command != "detector":
        raise ConvertError(
            f"--tiles is for detectors, whose boxes can be merged; what {args.command} makes is"
            " shown a frame, or its --region, as a whole"
        )
    columns, rows = args.tiles
    tiles = {"columns": columns, "rows": rows}
    if args.tile_overlap is not None:
        tiles["overlap"] = args.tile_overlap
    return {**values, "tiles": tiles}


def _regions(args: argparse.Namespace) -> dict[str, Any]:
    regions: list[tuple[str, tuple[float, ...]]] = args.region or []
    if len(regions) > 1 and not all(name for name, _ in regions):
        raise ConvertError("each of several regions needs a name: --region NAME=X,Y,WIDTH,HEIGHT")
    if not regions:
        return {}
    if not regions[0][0]:
        return {"region": regions[0][1]}
    learns = args.command in ("train", "search", "train-anomaly", "imagenet")
    if learns or (args.command != "detector" and (args.validate or args.frames)):
        raise ConvertError(
            "frames with one label each say nothing of several regions: give one --region without a"
            " name" + ("" if learns else ", or leave out --validate and --frames")
        )
    return {"regions": [{"name": name, "box": box} for name, box in regions]}


def recipe_values(args: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe fields that the user gave.

    A scale without an offset gets the offset 0, because the default offset is right only for the
    default scale. Raises ConvertError for an offset without a scale, and for a mean or deviation
    that is unusable.
    """
    names = ("scale", "offset", "color", "resize", "interpolation", "decode", "pad")
    values = {name: getattr(args, name) for name in names} | view_values(args)
    if args.mean is not None or args.std is not None:
        if values["scale"] is not None or values["offset"] is not None:
            raise ConvertError("--mean and --std say what --scale and --offset say: give one pair")
        values["scale"], values["offset"] = _scaling(args.mean or [0.0], args.std or [1.0])
    for name in ("scale", "offset"):
        numbers: Sequence[float] | None = values[name]
        if numbers is not None:
            values[name] = numbers[0] if len(numbers) == 1 else tuple(numbers)
    if values["scale"] is None and values["offset"] is not None:
        raise ConvertError("--offset needs --scale too: tensor = pixel * scale + offset")
    if values["scale"] is not None and values["offset"] is None:
        values["offset"] = 0.0
    return {name: value for name, value in values.items() if value is not None}


def _scaling(mean: Sequence[float], std: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return scale and offset of tensor = (pixel / 255 - mean) / std. Raises ConvertError."""
    for option, numbers in (("--mean", mean), ("--std", std)):
        for value in numbers:
            if not -1 <= value <= 1:
                raise ConvertError(
                    f"{option} {value:g} should be from -1 to 1, since it is of pixels in 0..1:"
                    " divide one of pixels in 0..255 by 255, as in 123.675/255"
                )
    if not all(value > 0 for value in std):
        raise ConvertError("--std takes numbers above 0")
    if len(mean) != len(std) and min(len(mean), len(std)) > 1:
        raise ConvertError("--mean and --std take one number each, or one a channel each")
    channels = max(len(mean), len(std))
    means, deviations = ([*each] * (channels if len(each) == 1 else 1) for each in (mean, std))
    return (
        [1 / (255 * deviation) for deviation in deviations],
        [-m / d for m, d in zip(means, deviations, strict=True)],
    )


def bundle_options(
    args: argparse.Namespace,
    labels: "tuple[Label, ...]",
    *,
    name: str,
    source: str,
    license_text: str = "",
    validation: "Dataset | None" = None,
) -> "BundleOptions":
    """Return the options that `add_bundle_arguments`'s arguments ask for, checked.

    name, source, license_text: used if the user gave none. validation: used if it is not None,
    otherwise the frames of --validate. Raises ConvertError.
    """
    from convert.data.dataset import images, labelled
    from convert.pipeline import BundleOptions

    policy = verdict(args)
    check_used(args)
    if validation is None and args.validate:
        validation = labelled(args.validate, labels)
    return BundleOptions(
        labels=labels,
        name=args.name or name,
        out=args.out,
        version=args.version,
        # The table makes every mode itself, `dynamic` among them.
        mode="dynamic" if args.mode == "all" else args.mode,
        io_dtype=args.io or DEFAULT_IO,
        source=args.source or source,
        license=args.license or license_text,
        validation=validation,
        calibration=images(args.calibrate) if args.calibrate else None,
        verdict=policy,
        max_accuracy_drop=args.max_accuracy_drop,
        max_size_ratio=args.max_size_ratio,
        tune=args.tune,
        samples=args.samples,
        seconds=args.seconds,
    )


def verdict(args: argparse.Namespace) -> "VerdictPolicy | None":
    """Return the policy of --accept and --min-probability; None without --accept.

    Raises ConvertError for a probability outside 0..1.
    """
    from server.recognition.manifest import VerdictPolicy

    least = DEFAULT_MIN_PROBABILITY if args.min_probability is None else args.min_probability
    if not 0 <= least <= 1:
        raise ConvertError(f"--min-probability {least:g} should be in 0..1")
    if not args.accept:
        return None
    return VerdictPolicy(accept=tuple(args.accept), min_probability=least)


def check_used(args: argparse.Namespace) -> None:
    """Raise ConvertError for an option that has no effect with the others."""
    every = args.mode == "all"
    for option, value, used, needed in (
        ("--min-probability", args.min_probability, args.accept, "--accept LABEL"),
        ("--io", args.io, every or args.mode == "int8", "--mode int8"),
        ("--frames", args.frames, every, "--mode all"),
        ("--plot", args.plot, every, "--mode all"),
    ):
        if value is not None and not used:
            raise ConvertError(f"{option} does nothing without {needed}")
    if not every:
        return
    if args.frames and args.validate:
        raise ConvertError("--mode all needs --frames or --validate, not both")
    # With --tune the size is a limit of the plan.
    if args.max_accuracy_drop is not None or (args.max_size_ratio and not args.tune):
        raise ConvertError(
            "--mode all writes no bundle that --max-accuracy-drop or --max-size-ratio could refuse"
        )


def check_quantized(args: argparse.Namespace, mode: str) -> None:
    """Raise ConvertError for an option that has no effect on a model quantised in `mode`."""
    # The default mode may be there without the user's wish.
    wanted = args.mode if args.mode not in ("dynamic", mode) else None
    for option, value in (
        (f"--mode {wanted}", wanted),
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


def finish(args: argparse.Namespace, request: "Request") -> int:
    """Write the bundle, or print the table of `--mode all`. Return the exit code."""
    from convert.all_modes import TableOptions, compare_modes
    from convert.pipeline import build

    if args.mode == "all":
        frames = args.frames or args.validate
        compare_modes(request, TableOptions(frames, args.calibrate or args.frames, args.plot))
    else:
        build(request)
    return 0
