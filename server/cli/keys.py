"""python -m server key [add | list | revoke]: the API keys of a device."""

import argparse
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server.config.settings import Settings
from server.errors import KeysError
from server.store.keys import RIGHTS, Key, Right, add_key, expired, read_keys, revoke_key


def add_parser(commands: Any) -> None:
    key = commands.add_parser("key", help="make, list and revoke API keys")
    actions = key.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="make a key and print it, this once")
    add.add_argument("name", help="who uses it, for the log")
    add.add_argument(
        "--rights",
        default="recognize",
        help=f"what it opens: {', '.join(RIGHTS)}, with commas between (default recognize)",
    )
    add.add_argument("--expires", help="when it ends, as RFC 3339 or a date such as 2027-01-31")
    add.add_argument("--rate", default="", help="such as 100/second, in place of rate_per_key")
    add.add_argument(
        "--digest",
        action="store_true",
        help="take digest logins too: NAME as user, key as password",
    )
    revoke = actions.add_parser("revoke", help="take a key away")
    revoke.add_argument("name")
    for action in (add, revoke, actions.add_parser("list", help="print the keys' names")):
        action.add_argument("--config", type=Path, help="TOML file of settings")
        action.add_argument("--keys-file", dest="keys_file", metavar="FILE")


def _rights(text: str) -> list[Right]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in RIGHTS:
            raise KeysError(f"there is no right {word!r}: use {', '.join(RIGHTS)}")
    return [right for right in RIGHTS if right in words]


def _expires(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise KeysError(f"--expires can't be {text!r}: send a date such as 2027-01-31") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Add, list or revoke keys in the `keys_file` of the settings, as `args` say. Raises
    KeysError."""
    path = Path(settings.keys_file)
    if args.action == "add":
        is_first = settings.auth != "off" and not os.path.exists(path)
        now, expires = datetime.now(UTC).replace(microsecond=0), _expires(args.expires)
        if expires and expires <= now:
            raise KeysError(f"--expires can't be {args.expires!r}: that moment has passed")
        secret = add_key(
            path,
            args.name,
            _rights(args.rights),
            now=now,
            expires=expires,
            rate=args.rate,
            digest_login=args.digest,
        )
        print(secret)
        print(f"{path} holds only its hash: this is the one time it is shown", file=sys.stderr)
        if is_first:
            print(
                f"a server with {path} now refuses whoever shows no key; to open it again, set auth"
                " to off, or remove the file and start the server anew",
                file=sys.stderr,
            )
    elif args.action == "revoke":
        revoke_key(path, args.name)
        print(f"{args.name} no longer opens anything", file=sys.stderr)
        _warn_if_none_is_usable(read_keys(path))
    else:
        keys = read_keys(path)
        if not keys and not os.path.exists(path):
            print(f"there is no {path}: no key has been made yet", file=sys.stderr)
            return 0
        if not keys:
            print(f"{path} has no keys", file=sys.stderr)
        for key in keys:
            ends = f", until {key.expires:%Y-%m-%d %H:%M} UTC" if key.expires else ""
            late = " (expired)" if expired(key) else ""
            rate = f", {key.rate}" if key.rate else ""
            login = ", digest logins" if key.digest else ""
            print(f"{key.name}: {', '.join(key.rights)}{rate}{login}{ends}{late}")
        _warn_if_none_is_usable(keys)
    return 0


def _warn_if_none_is_usable(keys: tuple[Key, ...]) -> None:
    if all(expired(key) for key in keys):
        print(
            "no key opens anything now, so a server of this file refuses everyone: make one with"
            " `python -m server key add NAME`",
            file=sys.stderr,
        )
