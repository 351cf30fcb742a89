"""Sessions of people who signed in to the console with a key or token: a cookie in its place.

The cookie is a random name and holds nothing. Here it leads to a function that looks the key up
again with each request, so that a session has the key's rights and ends with the key. Sessions are
in memory alone: they end with the server's process.
"""

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec
from werkzeug.http import dump_cookie
from werkzeug.sansio.http import parse_cookie

from server.errors import UnauthorizedError
from server.http.access.caller import Caller

# Seconds without a request after which a session ends, and of its whole life: a long shift.
IDLE_S, LIFE_S = 3600.0, 12 * 3600.0
# Beyond so many sessions in all, and of one key, the one that was used least recently ends. So a
# camera's key signs nobody else out.
SESSIONS_MAX, SESSIONS_OF_ONE_MAX = 1024, 128
# Cookies of one request that are looked at.
COOKIES_MAX = 4


class _Session(msgspec.Struct):
    """find: returns the caller, or raises UnauthorizedError. owner: the caller's name. began, used:
    seconds of the clock."""

    find: Callable[[], Caller]
    owner: str
    began: float
    used: float


class Sessions:
    """The sessions of one server. clock: seconds that only go forward.

    `_lock` guards `_sessions`, by the hash of their cookie's value, the least recently used first.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()

    def begin(self, find: Callable[[], Caller], owner: str) -> str:
        """Begin a session of the caller that `find` returns, and return its cookie's value. find:
        is called with each request; it raises UnauthorizedError once the caller's key is gone.
        owner: the caller's name."""
        value, now = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            own = [name for name, each in self._sessions.items() if each.owner == owner]
            if len(own) >= SESSIONS_OF_ONE_MAX:
                del self._sessions[own[0]]
            self._sessions[_digest(value)] = _Session(find, owner, now, now)
            while len(self._sessions) > SESSIONS_MAX:
                self._sessions.popitem(last=False)
        return value

    def caller(self, value: str) -> Caller:
        """Return the caller of the session whose cookie has `value`. Raises UnauthorizedError if it
        has ended, or its key is gone."""
        name, now = _digest(value), self._clock()
        with self._lock:
            session = self._sessions.get(name)
            if session is not None:
                if now - session.used >= IDLE_S or now - session.began >= LIFE_S:
                    del self._sessions[name]
                    session = None
                else:
                    session.used = now
                    self._sessions.move_to_end(name)
        if session is None:
            raise UnauthorizedError("the session has ended: sign in again")
        return msgspec.structs.replace(session.find(), by_session=True)

    def end(self, value: str) -> None:
        """End the session whose cookie has `value`, if there is one."""
        with self._lock:
            self._sessions.pop(_digest(value), None)


def _digest(value: str) -> bytes:
    return hashlib.sha256(value.encode()).digest()


def _cookie_name(environ: dict[str, Any]) -> str:
    """Return the name of the cookie. Browsers send a cookie to all ports of a host, so the port is
    in the name: two servers of one machine would end each other's sessions."""
    port = environ.get("HTTP_HOST", "").rpartition(":")[2]
    return f"lineside-{port}" if port.isascii() and port.isdecimal() else "lineside"


def session_values(environ: dict[str, Any]) -> list[str]:
    """Return the values of a WSGI request's session cookies. There may be several: of another
    path, or of a neighbouring site."""
    header = environ.get("HTTP_COOKIE")
    if not header:
        return []
    # As it is: a cookie of another program may be in any encoding, and ours is ASCII.
    return parse_cookie(header).getlist(_cookie_name(environ))[:COOKIES_MAX]


def session_cookie(environ: dict[str, Any], value: str) -> str:
    """Return the header Set-Cookie of a session's `value`; empty: for one that has ended. It lives
    as long as the browser: how long a session lives is decided here alone."""
    return dump_cookie(
        _cookie_name(environ),
        value,
        max_age=None if value else 0,
        path=environ.get("SCRIPT_NAME") or "/",
        secure=environ["wsgi.url_scheme"] == "https",
        httponly=True,
        samesite="Strict",
    )
