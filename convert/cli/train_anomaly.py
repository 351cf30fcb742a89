"""`python -m convert train-anomaly GOOD_FOLDER`: good frames in, a checked anomaly bundle out."""

import argparse
from pathlib import Path

from convert.cli.arguments import add_view_arguments, version, view_values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds options: what to learn from, what to judge by, and where the bundle goes."""
    parser.add_argument("folder", type=Path, metavar="GOOD_FOLDER", help="good frames alone")
    parser.add_argument(
        "--false-rejects",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="of good frames that may be called anomalies; sets the threshold (0.01)",
    )
    parser.add_argument(
        "--unsure",
        type=float,
        default=0.02,
        metavar="WIDTH",
        help="scores within WIDTH of the threshold, 0.5, have the verdict unsure (0.02)",
    )
    parser.add_argument(
        "--painted",
        type=int,
        default=1500,
        metavar="COUNT",
        help="frames with painted defects, from which the map learns (1500)",
    )
    proof = parser.add_argument_group("proof")
    proof.add_argument(
        "--validate", type=Path, metavar="FOLDER", help="one sub-folder a class, good ones too"
    )
    proof.add_argument("--good-class", default="good", help="the good one of them (good)")
    proof.add_argument(
        "--masks", type=Path, metavar="FOLDER", help="CLASS/NAME.png, white on the defect"
    )
    proof.add_argument(
        "--samples",
        type=int,
        default=0,
        metavar="COUNT",
        help="validation frames of each class copied into samples/ (0)",
    )
    proof.add_argument("--seconds", type=float, default=4.0, help="of measuring latency (4)")
    where = parser.add_argument_group("bundle")
    where.add_argument("--out", type=Path, default=Path("models"), help="folder (models)")
    where.add_argument("--name", help="of the model (that of GOOD_FOLDER)")
    where.add_argument("--version", type=version, help="from 1 on (the next that is free)")
    where.add_argument("--source", default="", help="where the model comes from, for bundle.json")
    where.add_argument("--license", default="", help="of the model, for bundle.json")
    parser.add_argument(
        "--weights",
        choices=("imagenet", "none"),
        default="imagenet",
        help="of the features: Keras's, or random (imagenet)",
    )
    parser.add_argument("--seed", type=int, default=0)
    add_view_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the bundle; returns the exit code. Raises ConvertError and DatasetError."""
    from convert.anomaly.training import AnomalyOptions, build
    from convert.cli.train import default_name
    from convert.data.dataset import images, read_dataset
    from convert.terminal import Terminal

    folder = args.folder.resolve()
    options = AnomalyOptions(
        good=images(args.folder),
        out=args.out,
        # `tiles/train/good` is tiles.
        name=args.name or default_name(folder.parent if folder.name == "good" else folder),
        version=args.version,
        validation=read_dataset(args.validate) if args.validate else None,
        good_class=args.good_class,
        masks=args.masks,
        samples=args.samples,
        false_rejects=args.false_rejects,
        unsure=args.unsure,
        painted=args.painted,
        weights=args.weights,
        seed=args.seed,
        region=view_values(args).get("region"),
        source=args.source or f"learned from {args.folder.name}",
        license=args.license,
        seconds=args.seconds,
    )
    build(options, Terminal())
    return 0
