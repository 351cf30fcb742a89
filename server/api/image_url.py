"""Fetching an image that a request only names: `image_url`.

A server that fetches what strangers name can be sent to places that only it can reach. So the
operator lists the hosts; the address that a name resolves to is checked, and it is that very
address that is connected to, so that a second answer of the name server can't lead elsewhere;
and every redirect passes the same checks.
"""

import re
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import SplitResult, urljoin, urlsplit

import msgspec

from server.errors import (
    BodyTooLargeError,
    ImageUrlError,
    InvalidFieldError,
    OverloadedError,
    SettingsError,
)

Address = IPv4Address | IPv6Address
PORTS = {"http": 80, "https": 443}
MOST_REDIRECTS = 3
AT_ONCE = 4
ENTRY = re.compile(r"(?P<host>\[[^\]]+\]|[^:]+)(:(?P<port>[0-9]{1,5}))?")
NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})")


class Allowed(msgspec.Struct, frozen=True):
    """One entry of the list: a host name, or a network (an address is one of itself), with its
    port, or None for the usual ones."""

    name: str
    network: IPv4Network | IPv6Network | None
    port: int | None

    def covers(self, host: str, port: int) -> bool:
        """Whether a URL may name `host` (lower case, without brackets) at `port`."""
        if port != self.port and (self.port is not None or port not in PORTS.values()):
            return False
        if self.network is None:
            return host == self.name
        address = _address(host)
        return address is not None and address in self.network


def parse_allowed(entry: str) -> Allowed:
    """NAME, ADDRESS or NETWORK/BITS, with or without :PORT (an IPv6 one in brackets then).

    Raises SettingsError.
    """
    network = _network(entry)
    if network is not None:
        return Allowed(entry, network, None)
    found = ENTRY.fullmatch(entry)
    network = _network(found["host"].strip("[]")) if found else None
    if found is None or (network is None and not NAME.fullmatch(found["host"])):
        raise SettingsError(
            f"image_url_hosts can't hold {entry!r}: a host name, an address or NETWORK/BITS, each"
            " with or without :PORT"
        )
    return Allowed(
        found["host"].lower().rstrip("."), network, int(found["port"]) if found["port"] else None
    )


def _network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text)
    except ValueError:
        return None


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


class ImageFetcher:
    """Fetches images from the hosts that `entries` list; at most AT_ONCE at the same time.

    max_bytes: of an image. seconds: for all of one fetch, redirects included. Raises SettingsError
    for an entry that can't be understood.
    """

    def __init__(self, entries: tuple[str, ...], max_bytes: int, seconds: float) -> None:
        self._allowed = tuple(parse_allowed(entry) for entry in entries)
        self._max_bytes, self._seconds = max_bytes, seconds
        self._free = threading.BoundedSemaphore(AT_ONCE)
        # Resolving a name can't be given a time limit; done by other threads, it can be left.
        self._resolvers = ThreadPoolExecutor(AT_ONCE, "resolve")
        self._tls = ssl.create_default_context()

    def __call__(self, url: str) -> bytes:
        """The bytes at `url`.

        Raises InvalidFieldError where it may not be fetched, OverloadedError where too many are
        being fetched, BodyTooLargeError, and ImageUrlError where it can't be had.
        """
        if not self._free.acquire(blocking=False):
            raise OverloadedError(f"{AT_ONCE} image_urls are being fetched, which is the most")
        deadline = time.monotonic() + self._seconds
        try:
            for _ in range(MOST_REDIRECTS + 1):
                found = self._fetch(url, deadline)
                # An answer without a length that was shut for its time looks complete.
                _left(deadline)
                if isinstance(found, bytes):
                    return found
                url = found
        except (OSError, HTTPException) as error:
            late = time.monotonic() >= deadline or isinstance(error, TimeoutError)
            reason = f"no answer in {self._seconds:g} s" if late else str(error) or repr(error)
            raise ImageUrlError(f"image_url can't be fetched: {reason}") from None
        finally:
            self._free.release()
        raise ImageUrlError(f"image_url can't be fetched: more than {MOST_REDIRECTS} redirects")

    def _fetch(self, url: str, deadline: float) -> bytes | str:
        """The image, or the URL that it has moved to."""
        parts, host, port = self._check(url)
        address = self._resolve(host, port, deadline)
        with ExitStack() as stack:
            sock = stack.enter_context(
                socket.create_connection((str(address), port), _left(deadline))
            )
            if parts.scheme == "https":
                sock = stack.enter_context(
                    self._tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
                )
            # What a slow peer keeps open beyond its time is shut; the blocked read then ends.
            timer = threading.Timer(_left(deadline), _shut, (sock,))
            stack.callback(timer.cancel)
            timer.start()
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            return self._exchange(sock, parts, url)

    def _check(self, url: str) -> tuple[SplitResult, str, int]:
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError as error:
            raise InvalidFieldError(f"image_url is not a valid URL: {error}") from None
        if parts.scheme not in PORTS or not host or parts.username is not None:
            raise InvalidFieldError("image_url should be http://HOST/... or https://HOST/...")
        if not url.isascii() or any(c <= " " or c == "\x7f" for c in url):
            raise InvalidFieldError("image_url has characters that a URL must percent-encode")
        port = port or PORTS[parts.scheme]
        if not any(entry.covers(host, port) for entry in self._allowed):
            raise InvalidFieldError(
                f"image_url names {host} at port {port}, which the setting image_url_hosts does not"
            )
        return parts, host, port

    def _resolve(self, host: str, port: int, deadline: float) -> Address:
        """The first address of `host`, if it is public or listed."""
        found = self._resolvers.submit(
            socket.getaddrinfo, host, port, type=socket.SOCK_STREAM
        ).result(_left(deadline))
        address = ip_address(str(found[0][4][0]).partition("%")[0])
        public = address.is_global and not address.is_multicast
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
            public = address.is_global and not address.is_multicast
        networks = (entry.network for entry in self._allowed if entry.network is not None)
        if not public and not any(address in network for network in networks):
            raise InvalidFieldError(
                f"image_url's host {host} has the private address {address}, which the setting"
                " image_url_hosts does not list"
            )
        return address

    def _exchange(self, sock: socket.socket, parts: SplitResult, url: str) -> bytes | str:
        connection = HTTPConnection(parts.hostname or "", parts.port)
        connection.sock = sock
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Host": parts.netloc, "Accept": "image/*", "Accept-Encoding": "identity"}
        connection.request("GET", target, headers=headers)
        with connection.getresponse() as response:
            if response.status in (301, 302, 303, 307, 308):
                return _moved(url, response.getheader("Location", ""))
            if response.status != 200:
                raise ImageUrlError(f"image_url can't be fetched: it answers {response.status}")
            return self._read(response)

    def _read(self, response: HTTPResponse) -> bytes:
        most = self._max_bytes
        if (response.length or 0) <= most:
            data = response.read(most + 1)
            if response.length:
                raise ImageUrlError("image_url can't be fetched: its answer was cut off")
            if len(data) <= most:
                return data
        raise BodyTooLargeError(f"the image at image_url has more than {most / 1e6:g} MB")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _moved(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise ImageUrlError("image_url can't be fetched: its redirect is no URL") from None


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        # Not SSLSocket's own, which takes the TLS state away under the thread that reads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
