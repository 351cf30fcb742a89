"""`python -m convert check FOLDER`: what is wrong with photographs before a training."""

import argparse
from pathlib import Path

from convert.cli.arguments import add_folder_arguments, add_view_arguments, view_values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of which frames, and where the report goes."""
    add_folder_arguments(parser)
    parser.add_argument(
        "--validate", type=Path, metavar="FOLDER", help="other photographs of the same classes"
    )
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="where to write report.html and report.json"
    )
    add_view_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Check the frames, print what was found, and return the exit code. Raises ConvertError."""
    from convert.data.checks import check_dataset
    from convert.data.dataset import read_dataset
    from convert.evaluation.report import write_folder_report
    from convert.folder_check import checking
    from convert.folder_check.result import lines
    from convert.terminal import Terminal
    from server.recognition.frame import Limits

    terminal = Terminal()
    recipe = checking.check_recipe(**view_values(args))
    train = read_dataset(args.folder)
    validation = read_dataset(args.validate, train.classes) if args.validate else None
    paths = [item.path for item in (*train.frames, *(validation.frames if validation else ()))]
    with terminal.bar("Checking the images", len(paths)) as advance:
        check_dataset(
            train, validation, Limits(), advance, allow_similar=args.allow_similar_classes
        )
    prints = checking.read_fingerprints(paths, recipe, terminal)
    found = checking.check_folder(train, validation, prints, recipe, terminal, download=True)
    for line in lines(found):
        terminal.say(line)
    if args.report:
        write_folder_report(args.report, found, recipe)
        terminal.say(f"wrote {args.report / 'report.html'}")
    return 0
