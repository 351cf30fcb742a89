"""Requests without a key: only under this server's own names, and not from pages of other sites.

A browser on this machine, or on this network, sends requests for whatever page it shows. Such a
page can make its own name resolve to this server (DNS rebinding), and then read every answer; and
it can post forms and plain text to any address. A key stops both, since no page has it. Where none
is asked for, the headers `Host`, `Origin` and `Sec-Fetch-Site`, which pages can't forge, decide.
"""

import os
import re
from ipaddress import ip_address
from typing import Any

from server.config.settings import Settings
from server.errors import SettingsError

NAME = r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?"
HOST = re.compile(rf"(\[[0-9A-Fa-f:.]{{2,45}}\]|{NAME})(?::([0-9]{{1,5}}))?")
ALLOWED = re.compile(rf"\*|(?:\*\.)?{NAME}")
LONGEST = 262
PORTS = {"http": 80, "https": 443}
# Top levels that no public name server answers for, by which a network names its own machines.
PRIVATE_SUFFIXES = (
    *(".local", ".lan", ".internal", ".intranet", ".localdomain", ".home.arpa", ".svc"),
)
# What `Sec-Fetch-Site` says of a request that no other site's page made.
OWN_SITES = frozenset({"same-origin", "none"})
# Methods that change nothing (RFC 9110, 9.2.1); browsers send `Origin` with all others.
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Host headers that were let in and are remembered, so that a frame costs one look-up.
MOST_REMEMBERED = 64


def parse_host(text: str) -> tuple[str, int | None] | None:
    """Return the name in lower case, or the address, and the port of a Host header (RFC 9110, 7.2);
    None for what is no such header. Never raises."""
    host = HOST.fullmatch(text) if len(text) <= LONGEST else None
    if host is None:
        return None
    return host[1].strip("[]").rstrip(".").lower(), int(host[2]) if host[2] else None


def parse_origin(text: str) -> tuple[str, int] | None:
    """Return the name or address and the port of an Origin header (RFC 6454, 7); None for `null`
    and what is no web origin. Never raises."""
    scheme, separator, rest = text.partition("://")
    port = PORTS.get(scheme)
    host = parse_host(rest) if separator and port else None
    return None if host is None or port is None else (host[0], host[1] or port)


def is_address(name: str) -> bool:
    """Return whether `name` is an IP address: no name server can make it lead elsewhere."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _bare(entry: str) -> str:
    """Return `entry` without the brackets that an IPv6 address has in a URL."""
    return entry[1:-1] if entry.startswith("[") and entry.endswith("]") else entry


def own_names(settings: Settings) -> frozenset[str]:
    """The names by which this machine is known without anyone saying so."""
    node = os.uname().nodename.lower()
    short = node.partition(".")[0]
    names = {"localhost", "localhost.localdomain", settings.host.lower(), node, short}
    return frozenset({*names, f"{short}.local", f"{short}.localdomain"})


class OriginCheck:
    """Decides by headers alone whether a request that needs no key may be one of another site's
    page. Raises SettingsError for an entry of `allowed_hosts` that is no name."""

    def __init__(self, settings: Settings, *, loopback: bool) -> None:
        """loopback: the server is reached from this machine only."""
        for entry in settings.allowed_hosts:
            if not ALLOWED.fullmatch(entry) and not is_address(_bare(entry)):
                raise SettingsError(
                    f"allowed_hosts can't hold {entry!r}: say a name such as lineside.example,"
                    " *.example for all below it, or * for every name"
                )
        allowed = [_bare(entry).rstrip(".").lower() for entry in settings.allowed_hosts]
        self._names = own_names(settings) | {entry for entry in allowed if entry[0] != "*"}
        self._suffixes = (".localhost", *(entry[1:] for entry in allowed if entry[:2] == "*."))
        self._any = "*" in allowed
        self._private = () if loopback else PRIVATE_SUFFIXES
        self._origins = frozenset(settings.cors_origins)
        self._remembered: set[str] = set()

    def admits(self, environ: dict[str, Any]) -> bool:
        """Return whether a WSGI request for a frame passes; as cheap as it can be for a camera."""
        return (
            environ.get("HTTP_HOST") in self._remembered
            and "HTTP_ORIGIN" not in environ
            and "HTTP_SEC_FETCH_SITE" not in environ
        ) or not self.refusal(environ)

    def refusal(self, environ: dict[str, Any], *, page: bool = False, strict: bool = False) -> str:
        """Return why a WSGI request may not go on, as a sentence; empty if it may.

        page: it asks for one of our pages, to which other sites may link. strict: what it does is
        worth more care, so that a name without a dot has to be listed too.
        """
        host = environ.get("HTTP_HOST") or ""  # HTTP/1.0, which no browser speaks, has none
        if host and (strict or host not in self._remembered):
            if not self._knows(host, strict=strict):
                return (
                    f"this server is not known as {host[:LONGEST]}: use its IP address, list the"
                    " name in the setting allowed_hosts, or ask for keys"
                )
            if not strict and len(self._remembered) < MOST_REMEMBERED:
                self._remembered.add(host)
        return self.of_another_site(environ, page=page)

    def _knows(self, text: str, *, strict: bool) -> bool:
        host = parse_host(text)
        if host is None:
            return False
        name = host[0]
        # Public name servers answer for no name without a dot, so no page has such a name.
        private = not strict and ("." not in name or name.endswith(self._private))
        return (
            self._any
            or private
            or name in self._names
            or name.endswith(self._suffixes)
            or is_address(name)
        )

    def of_another_site(self, environ: dict[str, Any], *, page: bool = False) -> str:
        """Return why a WSGI request that another site's page made may not go on, as a sentence;
        empty if none made it, or one that may. page: as in `refusal`."""
        host = environ.get("HTTP_HOST") or ""
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None:
            if origin in self._origins or "*" in self._origins:
                return ""
            if not _same(origin, host):
                return (
                    f"pages of {origin[:LONGEST]} may not do this here: list the origin in the"
                    " setting cors_origins, or ask for keys"
                )
        site = environ.get("HTTP_SEC_FETCH_SITE")
        if site is None or site in OWN_SITES:
            return ""
        if page and environ.get("HTTP_SEC_FETCH_MODE") == "navigate":
            return ""  # a link, whose page does not see where it leads
        return "pages of other sites may not do this here: their origin is not in cors_origins"

    def session_fault(self, environ: dict[str, Any]) -> str:
        """Return why a WSGI request with a session's cookie may not go on, as a sentence; empty if
        our own page sent it. Browsers send the cookie for the pages of all ports of this host too,
        and `cors_origins` lists pages that have keys of their own."""
        origin, site = environ.get("HTTP_ORIGIN"), environ.get("HTTP_SEC_FETCH_SITE")
        if origin is not None and not _same(origin, environ.get("HTTP_HOST") or ""):
            return f"pages of {origin[:LONGEST]} may not use the session of this server's page"
        if site is not None and site not in OWN_SITES:
            return "pages of other sites may not use the session of this server's page"
        if origin is None and site is None and environ["REQUEST_METHOD"] not in SAFE_METHODS:
            return "a request that changes something by a session needs the header Origin"
        return ""


def _same(origin: str, host: str) -> bool:
    """Return whether the page at `origin` came from the server that is asked as `host`, through a
    proxy with TLS or not."""
    page, server = parse_origin(origin), parse_host(host)
    if page is None or server is None:
        return False
    port = server[1] or PORTS[origin.partition("://")[0]]
    return page == (server[0], port)
