"""`python -m convert compare`."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `compare`."""
    parser.add_argument(
        "bundles", type=Path, nargs="+", metavar="BUNDLE", help="folder models/NAME/VERSION"
    )
    parser.add_argument(
        "--frames", type=Path, metavar="FOLDER", help="one sub-folder a class, a CSV, or images"
    )
    parser.add_argument("--plot", type=Path, help="PNG of accuracy against latency (compare.png)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of measuring latency (10)")


def run(args: argparse.Namespace) -> int:
    """Prints the table and writes the plot. Returns the exit code; raises ConvertError."""
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
        picture = compare.plot(rows)
        try:
            path.write_bytes(picture)
        except OSError as error:
            raise ConvertError(f"{path} can't be written: {error.strerror}") from None
        print(f"wrote {path}")
    return 0
