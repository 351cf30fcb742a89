"""The commands of `python -m server`."""

import argparse
import errno
import os
import select
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TextIO

from server import __version__
from server.cli import backup as backup_command
from server.cli import certificate as certificate_command
from server.cli import journal as journal_command
from server.cli import keys as keys_command
from server.cli.fleet import command as fleet_command
from server.config.load import arrays_of_tables, describe_settings, load, settings_file
from server.config.settings import Settings
from server.config.tables import describe_tables
from server.errors import LinesideError, SettingsError, StartError
from server.system.handover import Handover


def _parser(chosen: str) -> argparse.ArgumentParser:
    """Return the parser of all commands. Only the command `chosen` gets flags of settings, since
    making them for all would slow every start."""
    parser = argparse.ArgumentParser(
        prog="python -m server", description="Lineside: recognition for the production line."
    )
    parser.add_argument("--version", action="version", version=f"lineside {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve the models over HTTP (the default)")
    check = commands.add_parser(
        "check",
        help="validate settings and bundles, say what would serve",
        description="Validates settings and bundles as `serve` would, loads the models, and says"
        " what would serve. Exit code: 0 if the server would come up, else 1.",
    )
    health = commands.add_parser(
        "health",
        help="ask the running server whether it is ready",
        description="Asks the server at `host` and `port` of the settings whether it is ready."
        " Exit code: 0 if it is, else 1.",
    )
    commands.add_parser("settings", help="print the table of settings")
    commands.add_parser("cameras", help="list the USB cameras that are plugged in")
    keys_command.add_parser(commands)
    journal_command.add_parser(commands)
    certificate_command.add_parser(commands)
    backup_command.add_parsers(commands)
    fleet_command.add_parser(commands, flags=chosen == "fleet")
    worker = commands.add_parser("worker", help="run jobs, for the servers of one `broker_url`")
    bench = commands.add_parser("bench", help="measure this device and propose its settings")
    bench.add_argument("--seconds", type=float, default=20.0, help="to measure in all (20)")
    bench.add_argument(
        "--write", action="store_true", help="set what is proposed in the settings file"
    )
    bench.add_argument(
        "--export",
        type=Path,
        metavar="FILE",
        help="write the figures to this file too, for `convert search --device`",
    )
    for command in (serve, check, health, worker, bench):
        command.add_argument("--config", type=Path, help="TOML file of settings")
        for row in describe_settings() if command.prog.endswith(f" {chosen}") else ():
            text = (
                f"{row.help} ({row.unit + ', ' if row.unit else ''}default {row.default or 'none'})"
            )
            shown = row.type.replace(" or ", "|") if " or " in row.type else row.type.split()[-1]
            command.add_argument(row.flag, dest=row.name, metavar=shown, help=text)
    return parser


def _settings(args: argparse.Namespace) -> Settings:
    names = [row.name for row in describe_settings()]
    flags = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    return load(os.environ, flags, args.config)


# Errors of a disk that is full, over its quota, or failing.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# For the allocator that Granian brings, which reads it when it is loaded (jemalloc(3), TUNING):
# what one connection frees the next may have, and what none needs goes back to the kernel soon.
ALLOCATOR = ("_RJEM_MALLOC_CONF", "narenas:1,dirty_decay_ms:500,muzzy_decay_ms:0")
# For the linear algebra that NumPy and OpenCV each bring, which we don't use: no threads for it.
ALGEBRA = ("OPENBLAS_NUM_THREADS", "1")


def _serve(settings: Settings, handover: Handover | None) -> int:
    os.environ.setdefault(*ALLOCATOR)
    os.environ.setdefault(*ALGEBRA)
    from server.process.startup import application, preflight

    models = preflight(settings)
    # Imports Flask, which a server that can't start is not to wait for.
    from server.process.http_server import run

    make_app = partial(application, handover=handover, models=models)
    run(settings, make_app, handover)
    return 0


def _work(settings: Settings) -> int:
    from server.jobs.worker import run
    from server.process.startup import check_broker

    check_broker(settings)
    return run(settings)


def _check(settings: Settings) -> int:
    from server.process.startup import check

    for line in check(settings):
        print(line)
    return 0


def _health(settings: Settings) -> int:
    from server.process.health import health

    ready, text = health(settings)
    print(text, file=sys.stdout if ready else sys.stderr)
    return 0 if ready else 1


def _bench(settings: Settings, args: argparse.Namespace) -> int:
    from server.cli.bench import run

    file = settings_file(os.environ, args.config)
    if args.write and file is None:
        raise SettingsError(
            "--write needs a settings file: name it with --config FILE or LINESIDE_CONFIG"
        )
    return run(settings, args.seconds, file if args.write else None, args.export)


def _print_settings() -> int:
    print("| setting | environment | flag | type | default | unit | what |")
    print("|---|---|---|---|---|---|---|")
    for row in describe_settings():
        cells = (f"`{row.name}`", f"`{row.env}`", f"`{row.flag}`", row.type, row.default, row.unit)
        print("| " + " | ".join([*cells, row.help]) + " |")
    for array, kinds in arrays_of_tables().items():
        print(f"\n| key of `[[{array}]]` | of kind | type | default | unit | what |")
        print("|---|---|---|---|---|---|")
        for key in describe_tables(kinds):
            of_kind = ", ".join(key.kinds) or "all"
            cells = (f"`{key.name}`", of_kind, key.type, key.default, key.unit, key.help)
            print("| " + " | ".join(cells) + " |")
    return 0


def main(argv: Sequence[str], handover: Handover | None = None) -> int:
    """Run a command. Return 0 if all is well, 1 if a server could not start or go on; argparse ends
    the process with 2 for wrong use.

    handover: what a server's worker leaves to its successor.
    """
    chosen = next((word for word in argv if not word.startswith("-")), "")
    parser = _parser(chosen)
    args, rest = parser.parse_known_args(argv)
    if rest and not fleet_command.takes(args, rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if args.command == "settings":
            return _print_settings()
        if args.command == "cameras":
            from server.cli import cameras

            return cameras.run()
        if args.command == "fleet":
            return fleet_command.run(args)
        if args.command == "certificate":
            return certificate_command.run(args)
        settings = _settings(args)
        if args.command == "key":
            return keys_command.run(args, settings)
        if args.command == "journal":
            return journal_command.run(args, settings)
        if args.command in ("backup", "restore"):
            return backup_command.run(args, settings)
        if args.command == "bench":
            return _bench(settings, args)
        if args.command == "serve":
            return _serve(settings, handover)
        return {"check": _check, "health": _health, "worker": _work}[args.command](settings)
    except (StartError, LinesideError) as error:
        print(f"lineside: {error}", file=sys.stderr)
        return 1


def run_for_reader(command: Callable[[], int]) -> int:
    """Run `command` and write what it printed. Return its exit code; 0 if its reader closed the
    pipe before its end; 1, with a sentence, if its output can't be written. Raises what `command`
    raises otherwise."""
    code = 0
    ended: SystemExit | None = None
    try:
        try:
            code = command()
        except SystemExit as error:  # argparse's, after --help
            ended = error
        if sys.stdout is not None:  # else it was closed before the start
            sys.stdout.flush()
        if ended and not _drop_unread():
            raise ended
    except BrokenPipeError:
        if not _drop_unread():
            raise  # it was another pipe
    except OSError as error:
        if error.errno not in UNWRITABLE or error.filename is not None:
            raise
        print(f"lineside: the output can't be written: {error.strerror}", file=sys.stderr)
        _drop(sys.stdout)
        return 1
    return code


def _drop(stream: TextIO) -> None:
    """Point `stream` at nothing, since Python would write what it still holds at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _drop_unread() -> bool:
    """Drop the standard streams whose reader is gone. Return whether there was one."""
    gone = [stream for stream in (sys.stdout, sys.stderr) if stream and _reader_is_gone(stream)]
    for stream in gone:
        _drop(stream)
    return bool(gone)


def _reader_is_gone(stream: TextIO) -> bool:
    try:
        number = stream.fileno()
    except (OSError, ValueError):
        return False  # closed, or no file at all
    poll = select.poll()
    poll.register(number, 0)
    return bool(poll.poll(0))  # only errors are asked for: poll(2), POLLERR
