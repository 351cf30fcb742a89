"""Who asks: an API key or a bearer token, read from a request's headers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from server.errors import ExpiredError, UnauthorizedError
from server.store.keys import PREFIX, KeyRing, Right, expired

if TYPE_CHECKING:
    from werkzeug.datastructures import Headers

# A header longer than this is no key or token of ours.
LONGEST = 8192
# Keys and tokens of one request that are looked at.
MOST_CREDENTIALS = 4
NO_KEY = "send a key as `Authorization: Bearer KEY`, or as `X-API-Key: KEY`"


class Caller(msgspec.Struct, frozen=True):
    """name: of the key, or the token's subject, for logs and limits. rate: requests allowed, where
    the key says so itself."""

    name: str
    rights: frozenset[Right]
    rate: str = ""


ReadToken: TypeAlias = Callable[[str], Caller]


def credentials(headers: Headers) -> list[str]:
    """All keys and tokens among a request's headers: of `Authorization: Bearer ...` (RFC 6750, 2.1)
    and `X-API-Key`. What is empty or of another scheme is a proxy's or a login's, not ours."""
    found = []
    for header in headers.getlist("Authorization"):
        for part in header.split(","):  # as servers join what came in several lines
            scheme, _, value = part.strip().partition(" ")
            if scheme.lower() == "bearer":
                found.append(value.strip())
    for header in headers.getlist("X-API-Key"):
        found += [part.strip() for part in header.split(",")]
    return list(dict.fromkeys(secret for secret in found if secret))[:MOST_CREDENTIALS]


def identify(secret: str, ring: KeyRing, read_token: ReadToken | None) -> Caller:
    """Whose `secret` is. Raises UnauthorizedError where it is nobody's, or has expired."""
    if len(secret) > LONGEST or not secret.isascii():
        raise UnauthorizedError("the key or token is not valid")
    if secret.startswith(PREFIX) or read_token is None:
        key = ring.find(secret)
        if key is None:
            raise UnauthorizedError("the key is not valid")
        if expired(key):
            raise ExpiredError("the key has expired")
        return Caller(key.name, frozenset(key.rights), key.rate)
    return read_token(secret)
