"""python -m server journal: the journal of a device, with or without its server."""

import argparse
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from server.config.settings import Settings
from server.errors import LinesideError, StartError
from server.values import validation
from server.values.validation import InvalidValueError

# Filters of rows, with their help.
FILTERS = {
    "camera": "the camera's name",
    "part": "the part's name",
    "batch": "the batch's name",
    "product": "the product's name",
    "model": "the model's name",
    "version": "the model's version",
    "label": "the best label",
    "verdict": "pass, fail or unsure",
    "vote": "the verdict of the part's vote: pass, fail or unsure",
    "status": "the answer's HTTP status",
    "code": "the error's code",
    "request_id": "the request's id",
    "cached": "whether the answer was another request's: true or false",
    "address": "the address of the client, of a frame that failed",
    "since": "from this time on: Unix seconds, or RFC 3339 with a zone",
    "until": "up to this time",
}


def add_parser(commands: Any) -> None:
    journal = commands.add_parser("journal", help="print what was answered, also without a server")
    for name, text in FILTERS.items():
        journal.add_argument(
            "--" + name.replace("_", "-"), dest=f"row_{name}", metavar="VALUE", help=text
        )
    journal.add_argument("--format", choices=("csv", "jsonl"), default="csv", dest="form")
    journal.add_argument("--order", choices=("newest", "oldest"), default="oldest")
    journal.add_argument("--limit", type=int, help="most rows")
    journal.add_argument("--config", type=Path, help="TOML file of settings")
    journal.add_argument("--data", metavar="FOLDER", help="the folder that holds journal.db")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the rows that `args` ask for. Raises StartError if there is no journal or an argument
    is unusable, JournalUnreadableError if the journal can't be read."""
    from server.store.journal.reader import ENCODERS, JournalReader
    from server.store.journal.schema import FILE

    path = Path(settings.data) / FILE
    if not path.exists():
        raise StartError(f"there is no journal {path}: name its folder with --data")
    if args.limit is not None and args.limit < 1:
        raise StartError("--limit can't be less than 1")
    with closing(JournalReader(path, _filter(args))) as reader:
        for part in ENCODERS[args.form](reader.pages(args.order, args.limit)):
            sys.stdout.buffer.write(part)
    return 0


def _filter(args: argparse.Namespace) -> Any:
    from server.api.recognize.deadlines import parse_instant
    from server.store.journal.reader import Filter

    values: dict[str, Any] = {}
    for name in FILTERS:
        value = getattr(args, f"row_{name}")
        if value is None:
            continue
        try:
            if name in ("since", "until"):
                value = parse_instant(value, f"--{name}")
            values |= {name: getattr(validation.convert({name: value}, Filter, text=True), name)}
        except (LinesideError, InvalidValueError) as error:
            raise StartError(f"--{name.replace('_', '-')} can't be {value!r}: {error}") from None
    return Filter(**values)
