"""Authentication: decides for each request who sent it and what that caller may do.

Keys and tokens are asked for off the loopback, and wherever there are any. They are never logged,
counted or sent back; a caller is known by the name of its key.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from flask import Flask, Response, request
from werkzeug.datastructures import EnvironHeaders

from server.config.settings import Settings
from server.errors import ExpiredError, ForbiddenError, UnauthorizedError
from server.http.access.caller import (
    NO_KEY,
    Caller,
    credentials,
    from_loopback,
    identify,
    is_loopback,
    key_caller,
    passwords,
    token_reader,
)
from server.http.access.digest import DigestLogins, StaleNonceError
from server.http.access.origins import OriginCheck
from server.http.access.sessions import Sessions, session_values
from server.http.routes import ADMIN, OPEN, current_route
from server.http.wsgi import context_of, current
from server.store.keys import Key, KeyRing, Right, expired

logger = logging.getLogger(__name__)


class Authenticator:
    """Decides for each request whether it needs a caller, and which.

    Raises KeysError or SettingsError if keys or tokens can't be used as set.
    """

    def __init__(self, settings: Settings) -> None:
        self._auth = settings.auth
        self._ring = KeyRing(Path(settings.keys_file))
        # When a key of a name came last, in seconds since 1970.
        self._last_used: dict[str, float] = {}
        self.digest_logins = DigestLogins(self._ring)
        self.sessions = Sessions()
        self._read_token = token_reader(settings)
        loopback = is_loopback(settings.host)
        self._origins = OriginCheck(settings, loopback=loopback)
        self._always = settings.auth == "required" or (
            settings.auth == "auto" and (self._read_token is not None or not loopback)
        )

    def closed(self) -> bool:
        """Return whether a key or token is asked for."""
        return self._always or (self._auth == "auto" and self._ring.present())

    def usable_keys(self) -> int:
        """Return how many API keys open anything now."""
        return self._ring.usable()

    def last_used(self, key: Key) -> float | None:
        """Return when `key` came last, in seconds since 1970; None if not since the start."""
        used = self._last_used.get(key.name)
        # A key of the same name may have come before this one was made.
        return used if used is not None and used >= key.created.timestamp() else None

    def knows(self, caller: Caller | None) -> bool:
        """Return whether `caller`, who was let in a moment before, would not be refused for a key
        that was revoked or has expired since, or that is asked for since."""
        if not self.closed():
            return True
        if caller is None:
            return False
        named = (key for key in self._ring.current() if key.name == caller.name)
        return caller.by_token or any(not expired(key) for key in named)

    def takes_tokens(self) -> bool:
        """Return whether callers may come with tokens."""
        return self._read_token is not None

    def locked(self) -> bool:
        """Return whether nobody can come in: a key is asked for, none is usable, and no tokens are
        taken."""
        return self.closed() and self._read_token is None and not self._ring.usable()

    def _hint(self) -> str:
        """Return the end of the answer to a caller without a valid key."""
        if not self.locked():
            return ""
        return (
            "; no key opens this server now: whoever runs it makes one with `python -m server key"
            " add NAME`"
        )

    def any_rates(self) -> bool:
        """Return whether a key has a rate of its own."""
        return any(key.rate for key in self._ring.current())

    def identify(
        self, environ: dict[str, Any], rights: Iterable[Right]
    ) -> tuple[Caller | None, UnauthorizedError | None]:
        """Return the caller of a WSGI request, or None and what is wrong with its credentials, if
        it has any.

        Of several that are valid, the first with one of `rights` counts, and it alone: rights of
        two callers don't add up.
        """
        valid: list[Caller] = []
        faults: list[UnauthorizedError] = []
        for find in self._ways(environ):
            try:
                caller = find()
            except UnauthorizedError as error:
                faults.append(error)
                continue
            if not caller.by_token:
                self._last_used[caller.name] = time.time()
            if not caller.rights.isdisjoint(rights):
                return caller, None
            valid.append(caller)
        if valid:
            return valid[0], None
        # One that was valid once is this server's, whatever a proxy has put beside it.
        faults.sort(key=lambda error: not isinstance(error, ExpiredError))
        return None, faults[0] if faults else None

    def _ways(self, environ: dict[str, Any]) -> Iterator[Callable[[], Caller]]:
        """Yield a function for each credential of a request, which returns its caller or raises
        UnauthorizedError."""
        headers = EnvironHeaders(environ)
        for secret in credentials(headers):
            yield partial(identify, secret, self._ring, self._read_token)
        for password in passwords(headers):
            yield partial(self._login_caller, password)
        login = environ.get("HTTP_AUTHORIZATION", "")
        if login[:7].lower() == "digest ":
            yield partial(self._digest_caller, login, environ)
        for value in session_values(environ):
            yield partial(self.sessions.caller, value)

    def _digest_caller(self, login: str, environ: dict[str, Any]) -> Caller:
        context = context_of(environ)
        path = context.sent_path or environ["PATH_INFO"]
        caller = key_caller(self.digest_logins.find(login, environ, path))
        return msgspec.structs.replace(caller, by_login=True)

    def _login_caller(self, password: str) -> Caller:
        caller = identify(password, self._ring, None)
        return msgspec.structs.replace(caller, by_login=True)

    def sign_in(self, secret: str, environ: dict[str, Any]) -> tuple[Caller, str]:
        """Return the caller whose key or token `secret` is, and the value of the cookie of a new
        session. Raises UnauthorizedError if it is nobody's, and ForbiddenError if another site's
        page sent the WSGI request."""
        if sentence := self._origins.of_another_site(environ):
            raise ForbiddenError(sentence)
        caller = identify(secret, self._ring, self._read_token)
        key = self._ring.find(secret)

        def by_key(sha256: str) -> Caller:
            found = self._ring.with_hash(sha256)
            if found is None:
                raise UnauthorizedError("the key of this session was revoked")
            return key_caller(found)

        # The key itself is not kept. A token is, since only it says when it ends.
        find = (
            partial(by_key, key.sha256)
            if key
            else partial(identify, secret, self._ring, self._read_token)
        )
        return caller, self.sessions.begin(find, caller.name)

    def sign_out(self, environ: dict[str, Any]) -> None:
        """End the sessions whose cookies a WSGI request has. Raises ForbiddenError if another
        site's page sent it."""
        values = session_values(environ)
        if values and (sentence := self._origins.session_fault(environ)):
            raise ForbiddenError(sentence)
        for value in values:
            self.sessions.end(value)

    def admit(self, environ: dict[str, Any], rights: Iterable[Right]) -> tuple[bool, Caller | None]:
        """Return whether a WSGI request for frames may do what one of `rights` opens, by its
        headers and address alone, and whose it is."""
        if not self.closed():
            let_in = self.open_to(environ.get("REMOTE_ADDR")) and self._origins.admits(environ)
            return let_in, None
        caller, _ = self.identify(environ, rights)
        if caller is not None and self._foreign_use(caller, environ):
            return False, caller
        return caller is not None and not caller.rights.isdisjoint(rights), caller

    def _foreign_use(self, caller: Caller, environ: dict[str, Any]) -> str:
        """Return why `caller`, whom a browser names by itself, may be used by another site's page,
        as a sentence; empty if not."""
        if caller.by_session:
            return self._origins.session_fault(environ)
        return self._origins.of_another_site(environ) if caller.by_login else ""

    def authorize(self, caller: Caller | None, fault: str, *, closed: bool) -> None:
        """Raise UnauthorizedError or ForbiddenError if this request may not go on."""
        if request.url_rule is None or request.method == "OPTIONS":
            return  # there is nothing, or a browser asks what it may send
        route = current_route()
        rights = route.rights if route else None
        if not closed:
            if route is None or not route.unguarded:
                self._check_unguarded(rights)
        elif rights == OPEN:
            return
        elif caller is None:
            raise UnauthorizedError((fault or NO_KEY) + self._hint())
        elif rights is None or not caller.rights.intersection(rights):
            needs = " or ".join(rights or ()) or "a right that nobody has"
            raise ForbiddenError(f"{caller.name} has no right to this; it needs {needs}")
        elif sentence := self._foreign_use(caller, request.environ):
            raise ForbiddenError(sentence)

    def open_to(self, address: str | None) -> bool:
        """Return whether `address` may come in while no key is asked for."""
        return self._auth != "auto" or from_loopback(address)

    def _check_unguarded(self, rights: tuple[str, ...] | None) -> None:
        """Raise if a request without a key comes from another machine, or may be that of another
        site's page in a browser."""
        page = rights == OPEN
        if not page and not self.open_to(request.remote_addr):
            raise UnauthorizedError("this server asks other machines for a key, and has none yet")
        strict = rights == ADMIN and self._auth == "auto"
        if sentence := self._origins.refusal(request.environ, page=page, strict=strict):
            raise ForbiddenError(sentence)


def install_auth(app: Flask, settings: Settings, doors: Authenticator) -> None:
    """Let only those in who may come in, and no more often than they may.

    Raises SettingsError if rates can't be used as set.
    """
    if settings.auth == "off":
        fields = {"address": settings.host}
        logger.warning("everyone is let in, since auth is off", extra={"fields": fields})

    if doors.locked():
        fields = {
            "keys_file": settings.keys_file,
            "remedy": "python -m server key add NAME --rights recognize",
        }
        logger.warning("no key is usable, so everyone is refused", extra={"fields": fields})

    @app.before_request
    def know() -> None:
        if doors.closed():
            route = current_route()
            rights = route.rights if route else ()
            context = current()
            context.keys_asked = True
            context.caller, fault = doors.identify(request.environ, rights)
            context.caller_fault = fault.message if fault else ""
            context.caller_stale = isinstance(fault, StaleNonceError)

    if settings.rate_per_key or settings.rate_per_address or doors.any_rates():
        from server.http.access.rate_limits import limit_rates

        limit_rates(app, settings)

    @app.before_request
    def authorize() -> None:
        context = current()
        doors.authorize(context.caller, context.caller_fault, closed=context.keys_asked)

    @app.after_request
    def challenge(response: Response) -> Response:
        if response.status_code == 401:
            context = current()
            error = ', error="invalid_token"' if context.caller_fault else ""
            # A browser would ask its user for a password, in front of the page that asks for a key.
            # By plain HTTP it sends no Sec-Fetch-Mode, but always a language.
            if not {"Sec-Fetch-Mode", "Accept-Language"} & set(request.headers.keys()):
                if doors.digest_logins.offered():
                    for each in doors.digest_logins.challenges(stale=context.caller_stale):
                        response.headers.add("WWW-Authenticate", each)
                response.headers.add("WWW-Authenticate", 'Basic realm="lineside"')
            response.headers.add("WWW-Authenticate", f'Bearer realm="lineside"{error}')
        return response

    if settings.cors_origins:
        from flask_cors import CORS

        CORS(
            app,
            origins=list(settings.cors_origins),
            allow_headers=[
                *("Authorization", "Content-Type", "X-API-Key", "X-Request-Id"),
                *("traceparent", "tracestate"),
            ],
            expose_headers=[
                "RateLimit",
                "RateLimit-Policy",
                "Retry-After",
                "X-Model",
                "X-Request-Id",
                "X-Should-Retry",
                "X-Verdict",
                "X-Verdict-Reason",
            ],
        )
