"""python -m server backup and restore: all that a server keeps, in one file."""

import argparse
import time
from pathlib import Path
from typing import Any

from server.config.settings import Settings
from server.errors import StartError
from server.system.clock import rfc3339
from server.values.wording import counted


def add_parsers(commands: Any) -> None:
    backup = commands.add_parser(
        "backup",
        help="write all that the server keeps into one file, also while it runs",
        description="Writes journal, jobs, samples, models, choices and keys to a tar file. The"
        " settings file is not in it, and neither are verdicts that outputs still wait for.",
    )
    restore = commands.add_parser(
        "restore",
        help="put back what `backup` wrote, while no server runs",
        description="Puts back what `backup` wrote, to the folders of the settings. All of it is"
        " verified before the first file is moved.",
    )
    for command in (backup, restore):
        command.add_argument("file", type=Path, metavar="FILE", help="the tar file")
        command.add_argument("--config", type=Path, help="TOML file of settings")
        command.add_argument("--no-models", action="store_true", help="without the models folder")
    backup.add_argument("--no-samples", action="store_true", help="without the kept frames")
    restore.add_argument(
        "--replace", action="store_true", help="set aside what is there, and restore"
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Write or restore the backup `args.file`. Raises StartError, as `server.store.backup` does."""
    from server.store import backup, data_lock

    places = backup.Places(
        Path(settings.data),
        None if args.no_models else Path(settings.models),
        Path(settings.keys_file),
    )
    if args.command == "backup":
        if not places.data.is_dir():
            raise StartError(f"there is no folder {places.data}, the setting data")
        index = backup.write_backup(
            places, args.file, rfc3339(time.time()), samples=not args.no_samples
        )
        size = args.file.stat().st_size / 1e6
        print(f"{args.file}: {counted(len(index.files), 'file')}, {size:.1f} MB")
        return 0
    if not args.file.is_file():
        raise StartError(f"there is no file {args.file}")
    # It is held until this process ends.
    lock = data_lock.lock_data(places.data)
    if lock.descriptor is None:
        raise StartError(f"{places.data} can't be used: {lock.fault or 'it can not be written to'}")
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    index = backup.restore_backup(args.file, places, stamp, replace=args.replace)
    print(f"restored {counted(len(index.files), 'file')} of {index.at} by lineside {index.program}")
    return 0
