"""Whether a server may start with its doors open. Imports nothing heavy: it is asked first."""

import socket
from ipaddress import ip_address
from pathlib import Path

from server.config.settings import Settings
from server.errors import StartError
from server.http.access.tokens import token_reader
from server.store.keys import KeyRing


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens at `host`. Raises StartError for a
    name that means nothing."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise StartError(f"can't listen on {host}: {error.strerror}") from None
    return all(ip_address(address[4][0]).is_loopback for address in found)


def from_loopback(address: str | None) -> bool:
    """Return whether a request from `address` comes from this machine, as it does without one."""
    return not address or address in ("127.0.0.1", "::1") or ip_address(address).is_loopback


def check_access(settings: Settings) -> None:
    """Raises StartError where this server would be open to others without anyone having said so,
    or where keys or tokens can't be used as set."""
    ring, reader = KeyRing(Path(settings.keys_file)), token_reader(settings)
    if settings.auth == "off" or ring.current() or reader is not None:
        return
    how = (
        "make one with `python -m server key add NAME --rights recognize`, set jwt_algorithm, or"
        " set auth to off to let everyone in"
    )
    if settings.auth == "required":
        raise StartError(f"auth is required, and {ring.path} has no key: {how}")
    if not is_loopback(settings.host):
        raise StartError(
            f"{settings.host} can be reached from other machines, and {ring.path} has no key: {how}"
        )
