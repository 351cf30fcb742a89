"""The flags of `python -m server fleet`, and which module does what."""

import argparse
from pathlib import Path
from typing import Any

# A connection that ssh keeps for later ones would keep its output open too.
SSH = "ssh -o BatchMode=yes -o ControlMaster=no -o ServerAliveInterval=10"
TIMEOUT_MAX_S = 86_400.0
CHECKOUT = Path(__file__).parents[3]


def add_parser(commands: Any, *, flags: bool) -> None:
    """Add the command; its actions and their flags only if `flags`, since they take time."""
    fleet = commands.add_parser(
        "fleet", help="bundles, status, data and keys of many devices, and their program"
    )
    if not flags:
        return
    actions = fleet.add_subparsers(dest="action", metavar="ACTION", required=True)
    push = actions.add_parser("push", help="send a bundle, activate it, stop at the first failure")
    push.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder models/NAME/VERSION")
    push.add_argument(
        "--rollback-on-failure",
        action="store_true",
        help="after a failure, take those changed before back to what they served",
    )
    status = actions.add_parser("status", help="print how each device is, and what it serves")
    status.add_argument("--json", action="store_true", help="a JSON object a line")
    pull = actions.add_parser("pull", help="fetch journal and samples, what is new of them")
    pull.add_argument("folder", type=Path, metavar="FOLDER", help="gets a folder for each device")
    upgrade = actions.add_parser(
        "upgrade", help="bring the program of this checkout to devices, stop at the first failure"
    )
    upgrade.add_argument(
        "--source", type=Path, default=CHECKOUT, help="another checkout, whose program is taken"
    )
    upgrade.add_argument(
        "--reach", default=SSH, help=f"gets a shell's place and a command, as ssh does ({SSH})"
    )
    upgrade.add_argument(
        "--install-timeout", type=_seconds, default=1800.0, help="of scripts/install, in s (1800)"
    )
    key = actions.add_parser("key", help="make, list and revoke keys on all devices")
    keys = key.add_subparsers(dest="key_action", metavar="ACTION", required=True)
    add = keys.add_parser("add", help="make a key on each device and print it, this once")
    add.add_argument("name", metavar="KEY_NAME", help="who uses it")
    add.add_argument("--rights", default="recognize", help="with commas between (recognize)")
    add.add_argument("--expires", help="when they end, as RFC 3339 with a zone")
    revoke = keys.add_parser("revoke", help="take the keys of one name away")
    revoke.add_argument("name", metavar="KEY_NAME")
    listing = keys.add_parser("list", help="print the keys")
    for action in (push, status, pull, upgrade, add, listing, revoke):
        _add_devices(action)
    for action in (status, pull, *keys.choices.values()):
        action.add_argument("--parallel", type=_count, default=8, help="devices at a time (8)")


def _add_devices(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "hosts", nargs="*", metavar="HOST", help="NAME[:PORT], or a URL; with --hosts: its names"
    )
    action.add_argument(
        "--hosts", dest="hosts_file", type=Path, metavar="FILE", help="host file; its devices, all"
    )
    action.add_argument("--group", default="", help="only those of this group of the host file")
    action.add_argument(
        "--key-file", type=Path, help="file with an API key (else the environment's FLEET_KEY)"
    )
    action.add_argument("--timeout", type=_seconds, default=60.0, help="of each step, in s (60)")
    action.add_argument(
        "--ca", type=Path, help="certificates, PEM, that vouch for https:// devices"
    )
    action.add_argument(
        "--client-certificate", type=Path, help="PEM of this machine's certificate and key"
    )


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number <= TIMEOUT_MAX_S:
        raise argparse.ArgumentTypeError(f"it may be up to {TIMEOUT_MAX_S:.0f}, and not 0")
    return number


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 64:
        raise argparse.ArgumentTypeError("it may be 1 to 64")
    return number


def takes(args: argparse.Namespace, rest: list[str]) -> bool:
    """Add `rest` to the devices of a fleet command; return whether it can be that. Python 3.11 does
    not see the devices that come behind a flag if other words came before it."""
    if args.command != "fleet" or any(word.startswith("-") for word in rest):
        return False
    args.hosts += rest
    return True


def run(args: argparse.Namespace) -> int:
    """Run the action. Raises StartError, BundleError."""
    if args.action == "push":
        from server.cli.fleet.push import push

        return push(args)
    if args.action == "pull":
        from server.cli.fleet.pull import pull

        return pull(args)
    if args.action == "upgrade":
        from server.cli.fleet.upgrade import upgrade

        return upgrade(args)
    if args.action == "key":
        from server.cli.fleet.keys import keys

        return keys(args)
    from server.cli.fleet.status import status

    return status(args)
