"""Digest logins (RFC 7616), the only ones that many IP cameras have. The user is a key's name, the
password the key itself. Only keys that were added with `--digest` open anything this way, since the
server has to keep a hash for it that is as good as a password.

A nonce is a time and its signature, so that asking for one costs no memory. The counters of those
that were used are kept, so that a login that was overheard opens nothing a second time.
"""

import hashlib
import hmac
import os
import threading
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from typing import Any
from urllib.parse import unquote, urlsplit

from werkzeug.datastructures import Authorization

from server.errors import UnauthorizedError
from server.store.keys import DIGEST_HASHES, DIGEST_REALM, Key, KeyRing

# Seconds that a nonce may be used, and how many used ones are remembered.
NONCE_S, NONCES_MAX = 300.0, 1024
TIME_BYTES, SIGNATURE_BYTES, COUNTER_BITS = 8, 16, 32
# How far below the highest counter one may still come: by connections of the same client at once.
COUNTERS_BACK = 64


class StaleNonceError(UnauthorizedError):
    """The login is right, and its nonce too old or used before: the client asks again with a new
    one, without its user."""


class DigestLogins:
    """Checks digest logins, and makes their challenges.

    `_lock` guards `_counters`: of a nonce the highest counter, and a bit for each of the
    COUNTERS_BACK below it that was used; and `_forgotten`, when the newest of the nonces was made
    whose counters are no longer known.
    """

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring
        self._secret = os.urandom(32)
        self._lock = threading.Lock()
        self._counters: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._forgotten = 0.0

    def offered(self) -> bool:
        """Return whether a key takes such a login."""
        return any(key.digest for key in self._ring.current())

    def challenges(self, *, stale: bool) -> list[str]:
        """Return the values of WWW-Authenticate, the stronger hash first (RFC 7616, 3.7)."""
        nonce = self._nonce(time.time())
        end = ", stale=true" if stale else ""
        return [
            f'Digest realm="{DIGEST_REALM}", qop="auth", algorithm={name}, nonce="{nonce}"{end}'
            for name in DIGEST_HASHES
        ]

    def find(self, header: str, environ: dict[str, Any], path: str) -> Key:
        """Return the key whose login the header `Authorization: Digest ...` is.

        environ: of the WSGI request; path: as it was sent. Raises UnauthorizedError if the login
        is nobody's or of another request, and StaleNonceError.
        """
        login = Authorization.from_header(header)
        fields = {k: v or "" for k, v in login.parameters.items()} if login else {}
        algorithm = fields.get("algorithm", "MD5").upper()
        offered = fields.get("qop") == "auth" and fields.get("realm") == DIGEST_REALM
        if algorithm not in DIGEST_HASHES or not offered:
            raise UnauthorizedError("the digest login is not of a kind that this server offers")
        key = next((k for k in self._ring.current() if k.name == fields.get("username")), None)
        secret = key.digest.get(algorithm) if key else None
        # A login of nobody takes as long as a wrong one.
        wanted = response(algorithm, secret or "0" * 64, fields, environ["REQUEST_METHOD"])
        right = hmac.compare_digest(wanted.encode(), fields.get("response", "").encode())
        if key is None or not secret or not right:
            raise UnauthorizedError("the digest login is not valid")
        self._check_address(fields.get("uri", ""), environ, path)
        self._use(fields)
        return key

    def _check_address(self, uri: str, environ: dict[str, Any], path: str) -> None:
        """Raise UnauthorizedError if the login is of another address than that of the request."""
        try:
            sent = urlsplit(uri)
        except ValueError:
            raise UnauthorizedError("the digest login is for no address") from None
        # A proxy may have taken the beginning of the path away.
        same = unquote(sent.path).endswith(path) and sent.query == environ.get("QUERY_STRING", "")
        if not same:
            raise UnauthorizedError("the digest login is for another address")

    def _use(self, fields: dict[str, str]) -> None:
        """Count the nonce's use. Raises StaleNonceError."""
        nonce = fields.get("nonce", "")
        try:
            made = _made(nonce)
            known = hmac.compare_digest(self._nonce(made).encode(), nonce.encode())
            number = int(fields.get("nc", ""), 16)
            if not 0 <= number < 1 << COUNTER_BITS:
                raise ValueError
        except (ValueError, OverflowError):
            raise UnauthorizedError("the digest login is damaged") from None
        if not known or not 0 <= time.time() - made < NONCE_S:
            raise StaleNonceError("the login's nonce is too old")
        with self._lock:
            if nonce not in self._counters and made <= self._forgotten:
                raise StaleNonceError("the login's nonce may have been used before")
            highest, bits = self._counters.get(nonce, (0, 0))
            if number > highest:
                bits = (bits << (number - highest) | 1) if number - highest <= COUNTERS_BACK else 1
                highest = number
            elif highest - number >= COUNTERS_BACK or bits >> (highest - number) & 1:
                raise StaleNonceError("the login was used before")
            else:
                bits |= 1 << (highest - number)
            self._counters[nonce] = highest, bits & ((1 << COUNTERS_BACK) - 1)
            self._counters.move_to_end(nonce)
            while len(self._counters) > NONCES_MAX:
                gone, _ = self._counters.popitem(last=False)
                self._forgotten = max(self._forgotten, _made(gone))

    def _nonce(self, now: float) -> str:
        """Return the nonce that is made at `now`, in seconds since 1970."""
        moment = round(now * 1e6).to_bytes(TIME_BYTES, "big")
        signature = hmac.digest(self._secret, moment, hashlib.sha256)[:SIGNATURE_BYTES]
        return urlsafe_b64encode(moment + signature).decode()


def _made(nonce: str) -> float:
    """Return when a nonce was made, in seconds since 1970. Raises ValueError."""
    return int.from_bytes(urlsafe_b64decode(nonce)[:TIME_BYTES], "big") / 1e6


def response(algorithm: str, secret: str, fields: dict[str, str], method: str) -> str:
    """Return the `response` of a right login (RFC 7616, 3.4.1). secret: H(user:realm:password)."""
    make = DIGEST_HASHES[algorithm]
    address = make(f"{method}:{fields.get('uri', '')}".encode()).hexdigest()
    middle = ":".join(fields.get(name, "") for name in ("nonce", "nc", "cnonce", "qop"))
    return make(f"{secret}:{middle}:{address}".encode()).hexdigest()
