"""Reads from a request's headers who asks, by an API key or a bearer token; says if a server may
start without asking for any. Imports nothing heavy: the start asks it first.

Tokens are JSON Web Tokens (RFC 7519), verified by PyJWT. The algorithm is the operator's, never the
token's, so that neither `none` nor a public key used as an HS256 secret opens anything (RFC 8725,
2.1 and 3.1).
"""

from __future__ import annotations

import hashlib
import socket
from base64 import b64decode
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from server.config.settings import Settings
from server.errors import ExpiredError, SettingsError, StartError, UnauthorizedError
from server.store.keys import PREFIX, RIGHTS, Key, KeyRing, Right, expired
from server.system.files import read_plain_file

if TYPE_CHECKING:
    from werkzeug.datastructures import Headers

# Characters of the longest key or token that is looked at, and how many of one request are.
SECRET_CHARACTERS_MAX, CREDENTIALS_MAX = 8192, 4
# Seconds by which two clocks may differ.
CLOCK_LEEWAY_S = 10
# Letters of a token's subject that a caller's name has.
SUBJECT_LETTERS = 64
# RFC 7518, 3.2: an HS256 key has at least as many bits as the hash; 3.3: bits of an RS256 key.
HS256_BYTES_MIN, RS256_BITS_MIN = 32, 2048
NO_KEY = (
    "send a key as `Authorization: Bearer KEY`, as `X-API-Key: KEY`, or as the password of a login"
)


class Caller(msgspec.Struct, frozen=True):
    """name: of the key, or the token's subject, for logs and limits. rate: requests allowed, if the
    key has a rate of its own. by_login: a Basic or digest login, which browsers repeat by
    themselves, whatever page sends the request. by_session: a session's cookie, as well.
    by_token: a token of an identity provider."""

    name: str
    rights: frozenset[Right]
    rate: str = ""
    by_login: bool = False
    by_session: bool = False
    by_token: bool = False


ReadToken: TypeAlias = Callable[[str], Caller]


def credentials(headers: Headers) -> list[str]:
    """Return all keys and tokens among a request's headers: of `Authorization: Bearer ...` (RFC
    6750, 2.1) and `X-API-Key`. What is empty or of another scheme is a proxy's or a login's."""
    secrets = []
    for header in headers.getlist("Authorization"):
        for part in header.split(","):  # as servers join what came in several lines
            scheme, _, value = part.strip().partition(" ")
            if scheme.lower() == "bearer":
                secrets.append(value.strip())
    for header in headers.getlist("X-API-Key"):
        secrets += [part.strip() for part in header.split(",")]
    return list(dict.fromkeys(secret for secret in secrets if secret))[:CREDENTIALS_MAX]


def passwords(headers: Headers) -> list[str]:
    """Return the keys that are passwords of Basic logins (RFC 7617, 2); those of others, such as a
    proxy's, are left out."""
    secrets = []
    for header in headers.getlist("Authorization"):
        for part in header.split(","):
            scheme, _, value = part.strip().partition(" ")
            if scheme.lower() != "basic":
                continue
            try:
                secret = b64decode(value.strip(), validate=True).decode("ascii").partition(":")[2]
            except ValueError:
                continue
            if secret.startswith(PREFIX):
                secrets.append(secret)
    return secrets[:CREDENTIALS_MAX]


def identify(secret: str, ring: KeyRing, read_token: ReadToken | None) -> Caller:
    """Return whose `secret` is. Raises UnauthorizedError if it is nobody's, or has expired."""
    if len(secret) > SECRET_CHARACTERS_MAX or not secret.isascii():
        raise UnauthorizedError("the key or token is not valid")
    if secret.startswith(PREFIX) or read_token is None:
        key = ring.find(secret)
        if key is None:
            raise UnauthorizedError("the key is not valid")
        return key_caller(key)
    return read_token(secret)


def key_caller(key: Key) -> Caller:
    """Return the owner of `key`. Raises ExpiredError."""
    if expired(key):
        raise ExpiredError("the key has expired")
    return Caller(key.name, frozenset(key.rights), key.rate)


def _read(path: str) -> bytes:
    try:
        return read_plain_file(Path(path)).strip()
    except OSError as error:
        raise SettingsError(f"jwt_key_file {path} can't be read: {error.strerror}") from None


def _key(settings: Settings) -> bytes:
    """Return the verified content of `jwt_key_file`. Raises SettingsError."""
    from jwt.algorithms import RSAAlgorithm, has_crypto
    from jwt.exceptions import InvalidKeyError

    content, path = _read(settings.jwt_key_file), settings.jwt_key_file
    if settings.jwt_algorithm == "HS256":
        if content.startswith(b"-----BEGIN"):
            raise SettingsError(f"{path} is a PEM key; HS256 takes a secret: set RS256, or another")
        if len(content) < HS256_BYTES_MIN:
            raise SettingsError(f"{path} has {len(content)} bytes; an HS256 secret has 32 or more")
        return content
    if not has_crypto:
        raise SettingsError("RS256 needs the package cryptography: pip install cryptography")
    if b"PRIVATE KEY" in content:
        raise SettingsError(f"{path} is a private key; this server needs only the public one")
    try:
        public = RSAAlgorithm(RSAAlgorithm.SHA256).prepare_key(content)
    except (InvalidKeyError, ValueError) as error:
        raise SettingsError(f"{path} is not an RSA public key in PEM: {error}") from None
    if public.key_size < RS256_BITS_MIN:
        raise SettingsError(f"{path} has {public.key_size} bits; an RSA key has 2048 or more")
    return content


def token_reader(settings: Settings) -> ReadToken | None:
    """Return a function from a token to its caller; None if no tokens are taken.

    It raises UnauthorizedError. Signature, `exp`, `iss`, `aud` and `nbf` are checked; rights are
    the words of the claim `scope` (RFC 8693, 4.2) that name one. Raises SettingsError if a
    setting is missing or the key is unusable.
    """
    if not settings.jwt_algorithm:
        return None
    for name in ("jwt_key_file", "jwt_issuer", "jwt_audience"):
        if not getattr(settings, name):
            raise SettingsError(f"jwt_algorithm is set, so {name} must be too")
    import jwt

    key = _key(settings)

    def read(token: str) -> Caller:
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[settings.jwt_algorithm],
                issuer=settings.jwt_issuer,
                audience=settings.jwt_audience,
                leeway=CLOCK_LEEWAY_S,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError:
            raise ExpiredError("the token has expired") from None
        except (jwt.InvalidIssuerError, jwt.InvalidAudienceError):
            raise UnauthorizedError("the token is not from the issuer, or not for here") from None
        except jwt.MissingRequiredClaimError as error:
            raise UnauthorizedError(f"the token has no {error.claim}") from None
        except (jwt.PyJWTError, ValueError, TypeError):
            raise UnauthorizedError("the token is not valid") from None
        scope = claims.get("scope")
        words = scope.split() if isinstance(scope, str) else ()
        rights = frozenset(r for r in RIGHTS if r in words)
        return Caller(_name(claims.get("sub", "")), rights, by_token=True)

    return read


def _name(subject: object) -> str:
    """Return the name of a token's caller, one a subject. Raises UnauthorizedError."""
    text = str(subject)
    try:
        whole = text.encode()
    except UnicodeEncodeError:
        raise UnauthorizedError("the token is not valid") from None
    if len(text) > SUBJECT_LETTERS:
        # Long ones often begin alike.
        text = f"{text[:SUBJECT_LETTERS]}~{hashlib.sha256(whole).hexdigest()[:16]}"
    return f"token:{text}"


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a server that listens at `host`. Raises StartError
    for a name that means nothing."""
    try:
        addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise StartError(f"can't listen on {host} (host): {error.strerror}") from None
    return all(ip_address(address[4][0]).is_loopback for address in addresses)


def from_loopback(address: str | None) -> bool:
    """Return whether a request from `address` comes from this machine, as it does without one."""
    return not address or address in ("127.0.0.1", "::1") or ip_address(address).is_loopback


def check_access(settings: Settings) -> None:
    """Raise StartError if this server would be open to others without anyone having said so, or if
    keys or tokens can't be used as set."""
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
