"""python -m server fleet [push | status]: the devices of a fleet from one place."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Adds the command `fleet` to the commands of `python -m server`."""
    fleet = commands.add_parser("fleet", help="send a bundle to several devices, or ask them")
    actions = fleet.add_subparsers(dest="action", metavar="ACTION", required=True)
    push = actions.add_parser("push", help="send a bundle, activate it, stop at the first failure")
    push.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder models/NAME/VERSION")
    push.add_argument(
        "--rollback-on-failure",
        action="store_true",
        help="after a failure, take those changed before back to what they served",
    )
    status = actions.add_parser("status", help="print what each device serves")
    for action in (push, status):
        action.add_argument("hosts", nargs="+", metavar="HOST", help="NAME[:PORT], or a URL")
        action.add_argument(
            "--key-file", type=Path, help="file with an API key (else the environment's FLEET_KEY)"
        )
        action.add_argument("--timeout", type=float, default=60.0, help="of each step, in s (60)")


def run(args: argparse.Namespace) -> int:
    """The exit code of the command that `add_parser` described. Raises StartError."""
    from server.cli import fleet

    return fleet.push(args) if args.action == "push" else fleet.status(args)
