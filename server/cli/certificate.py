"""python -m server certificate: a self-signed certificate for a test bench."""

import argparse
import os
import socket
from pathlib import Path
from typing import Any

from server.errors import SettingsError
from server.system.files import write_whole

# For what runs on the device, and for a plant that has no authority of its own: two years.
DAYS = 730


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command's parser to `commands`, and return it."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "certificate",
        help="make a self-signed certificate and its key",
        description="Makes a self-signed certificate with its private key, for a test bench or a"
        " closed network. Clients have to be given the certificate. Never overwrites a file.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="host names and IP addresses (this machine's)"
    )
    parser.add_argument("--certificate", type=Path, default=Path("certificate.pem"), metavar="FILE")
    parser.add_argument("--key", type=Path, default=Path("key.pem"), metavar="FILE")
    parser.add_argument("--days", type=int, default=DAYS, help=f"it is valid for ({DAYS})")
    return parser


def own_addresses() -> list[str]:
    """Return the names and addresses by which this machine is known to itself, the name first."""
    name = os.uname().nodename.lower()
    names = [name, "localhost", "127.0.0.1", "::1"]
    if "." not in name:
        names.insert(1, f"{name}.local")
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        found = []  # the machine's own name leads nowhere
    return list(dict.fromkeys([*names, *(str(each[4][0]).partition("%")[0] for each in found)]))


def run(args: argparse.Namespace) -> int:
    """Make the certificate that `args` ask for. Raises SettingsError if it can't be made."""
    from server.process.certificates import make_certificate

    names = args.names or own_addresses()
    for path in (args.certificate, args.key):
        if os.path.lexists(path):
            raise SettingsError(f"{path} exists: remove it, or name another file")
    if args.days < 1:
        raise SettingsError("--days should be 1 or more")
    try:
        certificate, key = make_certificate(names, args.days)
    except ValueError:
        raise SettingsError(f"a name among {', '.join(names)} is no host name") from None
    try:
        write_whole(args.key, key, private=True)
        write_whole(args.certificate, certificate)
    except OSError as error:
        raise SettingsError(f"{error.filename or args.key}: {error.strerror}") from None
    print(f"{args.certificate} is valid for {', '.join(names)}; its key is {args.key}")
    print(f"serve with --tls-certificate {args.certificate} --tls-key {args.key}")
    print(
        f"clients need {args.certificate}: curl --cacert {args.certificate} https://{names[0]}:8080/"
    )
    return 0
