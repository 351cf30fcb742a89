"""JSON Web Tokens (RFC 7519) as bearer tokens, verified by PyJWT.

The algorithm is the operator's, never the token's, so that neither `none` nor a public key used as
an HS256 secret opens anything (RFC 8725, 2.1 and 3.1).
"""

import hashlib
from pathlib import Path

from server.config.settings import Settings
from server.errors import ExpiredError, SettingsError, UnauthorizedError
from server.http.access.caller import Caller, ReadToken
from server.store.keys import RIGHTS
from server.system.files import read_plain_file

# Seconds by which two clocks may differ.
LEEWAY = 10
# Letters of a token's subject that a caller's name has.
LONGEST = 64
# RFC 7518, 3.2: an HS256 key has at least as many bits as the hash.
SHORTEST_SECRET = 32
# RFC 7518, 3.3: bits of an RS256 key.
SHORTEST_RSA = 2048


def _read(path: str) -> bytes:
    try:
        return read_plain_file(Path(path)).strip()
    except OSError as error:
        raise SettingsError(f"jwt_key_file {path} can't be read: {error.strerror}") from None


def _key(settings: Settings) -> bytes:
    """The verified content of `jwt_key_file`. Raises SettingsError."""
    from jwt.algorithms import RSAAlgorithm, has_crypto
    from jwt.exceptions import InvalidKeyError

    content, path = _read(settings.jwt_key_file), settings.jwt_key_file
    if settings.jwt_algorithm == "HS256":
        if content.startswith(b"-----BEGIN"):
            raise SettingsError(f"{path} is a PEM key; HS256 takes a secret: set RS256, or another")
        if len(content) < SHORTEST_SECRET:
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
    if public.key_size < SHORTEST_RSA:
        raise SettingsError(f"{path} has {public.key_size} bits; an RSA key has 2048 or more")
    return content


def token_reader(settings: Settings) -> ReadToken | None:
    """A function from a token to its caller; None where no tokens are taken.

    It raises UnauthorizedError. Signature, `exp`, `iss`, `aud` and `nbf` are checked; rights are
    the words of the claim `scope` (RFC 8693, 4.2) that name one. Raises SettingsError where a
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
                leeway=LEEWAY,
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
        return Caller(_name(claims.get("sub", "")), frozenset(r for r in RIGHTS if r in words))

    return read


def _name(subject: object) -> str:
    """What a token's caller is called, one name a subject. Raises UnauthorizedError."""
    text = str(subject)
    try:
        whole = text.encode()
    except UnicodeEncodeError:
        raise UnauthorizedError("the token is not valid") from None
    if len(text) > LONGEST:
        # Long ones often begin alike.
        text = f"{text[:LONGEST]}~{hashlib.sha256(whole).hexdigest()[:16]}"
    return f"token:{text}"
