"""Closed doors: who may come in, how often, and what every answer tells browsers.

Keys and tokens are asked for off the loopback, and wherever there are any. They are never logged,
counted or told; a caller is known by the name of its key.
"""

import logging
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, Response, g, request
from werkzeug.datastructures import EnvironHeaders, Headers

from server.api.access import ADMIN, OPEN, rights_of
from server.api.callers import NO_KEY, OWNER, Caller, credential, identify
from server.api.doors import is_loopback
from server.api.tokens import token_reader
from server.config import Settings
from server.errors import ForbiddenError, UnauthorizedError
from server.observe.logs import LOGGER
from server.store.keys import KeyRing, Right

logger = logging.getLogger(LOGGER)

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

# Pages come with everything they need from this server, and no other page may frame them.
HEADERS = (
    (
        "Content-Security-Policy",
        "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none';"
        " form-action 'self'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Doors:
    """Decides for each request whether it needs a caller, and which.

    Raises KeysError or SettingsError where keys or tokens can't be used as set.
    """

    def __init__(self, settings: Settings) -> None:
        self._auth = settings.auth
        self._ring = KeyRing(Path(settings.keys_file))
        self._read_token = token_reader(settings)
        self._origins = frozenset(settings.cors_origins)
        self._always = settings.auth == "required" or (
            settings.auth == "auto"
            and (self._read_token is not None or not is_loopback(settings.host))
        )

    def closed(self) -> bool:
        """Whether a key or token is asked for."""
        return self._always or (self._auth == "auto" and self._ring.present())

    def any_rates(self) -> bool:
        """Whether a key has a rate of its own."""
        return any(key.rate for key in self._ring.current())

    def identify(self, headers: Headers) -> tuple[Caller | None, str]:
        """The caller whose request has `headers`, or None and what is wrong with its credential,
        if any."""
        try:
            secret = credential(headers)
            return (identify(secret, self._ring, self._read_token), "") if secret else (None, "")
        except UnauthorizedError as error:
            return None, error.message

    def admit(self, environ: dict[str, Any], rights: Iterable[Right]) -> tuple[bool, Caller | None]:
        """Whether a WSGI request may do what one of `rights` opens, by its headers and address
        alone, and whose it is."""
        if not self.closed():
            return self.open_to(environ.get("REMOTE_ADDR")), None
        caller, _ = self.identify(EnvironHeaders(environ))
        return caller is not None and not caller.rights.isdisjoint(rights), caller

    def authorize(self, caller: Caller | None, fault: str, *, closed: bool) -> None:
        """Raises UnauthorizedError or ForbiddenError where this request may not go on."""
        if request.url_rule is None or request.method == "OPTIONS":
            return  # there is nothing, or a browser asks what it may send
        rights = rights_of(request.url_rule.rule)
        if rights == OPEN:
            return
        if not closed:
            self._check_unguarded(rights)
        elif caller is None:
            raise UnauthorizedError(fault or NO_KEY)
        elif rights is None or not caller.rights.intersection(rights):
            needs = " or ".join(rights or ()) or "a right that nobody has"
            raise ForbiddenError(f"{caller.name} has no right to this; it needs {needs}")

    def open_to(self, address: str | None) -> bool:
        """Whether `address` may come in while no key is asked for."""
        return self._auth != "auto" or _from_loopback(address)

    def _check_unguarded(self, rights: tuple[str, ...] | None) -> None:
        """Open doors are open to this machine, and what admins do is not done by other sites'
        pages in a browser on it."""
        if not self.open_to(request.remote_addr):
            raise UnauthorizedError("this server asks other machines for a key, and has none yet")
        if rights != ADMIN:
            return
        origin = request.headers.get("Origin")
        if origin and origin not in self._origins and urlsplit(origin).netloc != request.host:
            raise ForbiddenError(f"pages of {origin} may not do this here")
        name = urlsplit(f"//{request.host}").hostname
        if self._auth == "auto" and name not in LOOPBACK_NAMES:
            raise ForbiddenError(f"this is not done under the name {name} without a key")


def _from_loopback(address: str | None) -> bool:
    return not address or address in ("127.0.0.1", "::1") or ip_address(address).is_loopback


def guard(app: Flask, settings: Settings, doors: Doors) -> None:
    """Lets only those in who may come in, and no more often than they may.

    Raises SettingsError where rates can't be used as set.
    """
    if settings.auth == "off":
        fields = {"address": settings.host}
        logger.warning("everyone is let in, since auth is off", extra={"fields": fields})

    @app.before_request
    def know() -> None:
        if doors.closed():
            g.caller, g.caller_fault = doors.identify(request.headers)
            if g.caller:
                request.environ[OWNER] = g.caller.name

    if settings.rate_per_key or settings.rate_per_address or doors.any_rates():
        from server.api.rates import limit_rates

        limit_rates(app, settings)

    @app.before_request
    def authorize() -> None:
        closed = "caller" in g
        doors.authorize(g.get("caller"), g.get("caller_fault", ""), closed=closed)

    @app.after_request
    def challenge(response: Response) -> Response:
        if response.status_code == 401:
            error = ', error="invalid_token"' if g.get("caller_fault") else ""
            response.headers["WWW-Authenticate"] = f'Bearer realm="lineside"{error}'
        return response

    if settings.cors_origins:
        from flask_cors import CORS

        CORS(
            app,
            origins=list(settings.cors_origins),
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-Id"],
            expose_headers=[
                "RateLimit",
                "RateLimit-Policy",
                "Retry-After",
                "X-Request-Id",
                "X-Should-Retry",
            ],
        )


class SecureHeaders:
    """WSGI middleware that adds `HEADERS` to every answer of `app` that lacks them."""

    def __init__(self, app: Wsgi) -> None:
        self._app = app

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            given = {name for name, _ in headers}
            added = [header for header in HEADERS if header[0] not in given]
            return start_response(status, headers + added, *error)

        return self._app(environ, start)
