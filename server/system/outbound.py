"""Requests that this server makes because a caller named a URL: `image_url` and webhooks.

A caller's URL could lead the server to places that only it can reach. So the operator lists the
hosts; the address that a name resolves to is checked, and it is that very address that is connected
to, so that a second answer of the name server can't lead elsewhere."""

import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit

import msgspec

from server.errors import InvalidFieldError, SettingsError

Address = IPv4Address | IPv6Address
PORTS = {"http": 80, "https": 443}
RESOLVER_THREADS = 4
# IPv4 addresses that are not public: IANA's special-purpose registry, multicast, reserved ones.
SPECIAL_IPV4 = tuple(
    IPv4Network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    )
)
# Of IPv6, only global unicast (RFC 4291) is public, without what is set apart within it: protocol
# assignments with Teredo, benchmarks and ORCHID, the 6bone, and addresses for documentation.
GLOBAL_UNICAST = IPv6Network("2000::/3")
SPECIAL_IPV6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "3ffe::/16", "3fff::/20")))
# Well-known NAT64 (RFC 6052): the last four bytes are the IPv4 address that is reached.
NAT64 = IPv6Network("64:ff9b::/96")
ENTRY = re.compile(r"(?P<host>\[[^\]]+\]|[^:]+)(:(?P<port>[0-9]{1,5}))?")
NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})")


class HostRule(msgspec.Struct, frozen=True):
    """One entry of the list: a host name, or a network (an address is one of itself), with its
    port, or None for the usual ones."""

    name: str
    network: IPv4Network | IPv6Network | None
    port: int | None

    def covers(self, host: str, port: int) -> bool:
        """Returns whether a URL may name `host` (lower case, without brackets) at `port`."""
        if port != self.port and (self.port is not None or port not in PORTS.values()):
            return False
        if self.network is None:
            return host == self.name
        address = _address(host)
        return address is not None and address in self.network


def parse_allowed(entry: str, setting: str = "image_url_hosts") -> HostRule:
    """Reads NAME, ADDRESS or NETWORK/BITS, with or without :PORT (an IPv6 one in brackets then).

    Raises SettingsError.
    """
    network = _network(entry)
    if network is not None:
        return HostRule(entry, network, None)
    match = ENTRY.fullmatch(entry)
    network = _network(match["host"].strip("[]")) if match else None
    if match is None or (network is None and not NAME.fullmatch(match["host"])):
        raise SettingsError(
            f"{setting} can't hold {entry!r}: a host name, an address or NETWORK/BITS, each"
            " with or without :PORT"
        )
    return HostRule(
        match["host"].lower().rstrip("."), network, int(match["port"]) if match["port"] else None
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


class OutboundConnections:
    """Connections to the hosts that `entries`, the items of `setting`, list for URLs in `field`.

    Raises SettingsError for an entry that can't be understood.
    """

    def __init__(self, field: str, setting: str, entries: tuple[str, ...]) -> None:
        self.field = field
        self._setting = setting
        self._allowed = tuple(parse_allowed(entry, setting) for entry in entries)
        # Resolving a name can't be given a time limit; done by other threads, it can be left.
        self._resolvers = ThreadPoolExecutor(RESOLVER_THREADS, "resolve")
        self._tls = ssl.create_default_context()

    @contextmanager
    def connected(self, url: str, deadline: float) -> Iterator[tuple[socket.socket, SplitResult]]:
        """Opens a connection, with TLS for https, to the host of `url`, shut at `deadline`
        (seconds of time.monotonic()), and the parts of the URL.

        Raises InvalidFieldError if that is not allowed, OSError if it fails.
        """
        parts, host, port = self.check(url)
        address = self._resolve(host, port, deadline)
        with ExitStack() as stack:
            sock = stack.enter_context(
                socket.create_connection((str(address), port), time_left(deadline))
            )
            if parts.scheme == "https":
                sock = stack.enter_context(
                    self._tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
                )
            # Shuts a connection that a slow peer keeps open too long; the blocked read then ends.
            timer = threading.Timer(time_left(deadline), _shut, (sock,))
            stack.callback(timer.cancel)
            timer.start()
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            yield sock, parts

    def check(self, url: str) -> tuple[SplitResult, str, int]:
        """Returns the parts of `url`, its host and its port. Raises InvalidFieldError if it is
        not to be used."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            raise InvalidFieldError(
                f"{self.field} is not a valid URL: it should be http://HOST[:PORT]/..."
            ) from None
        if parts.scheme not in PORTS or not host or parts.username is not None:
            raise InvalidFieldError(f"{self.field} should be http://HOST/... or https://HOST/...")
        if not url.isascii() or any(c <= " " or c == "\x7f" for c in url):
            raise InvalidFieldError(f"{self.field} has characters that a URL must percent-encode")
        port = port or PORTS[parts.scheme]
        if not any(entry.covers(host, port) for entry in self._allowed):
            raise InvalidFieldError(
                f"{self.field} names {host} at port {port}, which the setting {self._setting} does"
                " not"
            )
        return parts, host, port

    def _resolve(self, host: str, port: int, deadline: float) -> Address:
        """Returns the first address of `host`, if it is public or listed."""
        addresses = self._resolvers.submit(
            socket.getaddrinfo, host, port, type=socket.SOCK_STREAM
        ).result(time_left(deadline))
        address = ip_address(str(addresses[0][4][0]).partition("%")[0])
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        listed = any(
            entry.network is not None and address in entry.network and entry.port in (None, port)
            for entry in self._allowed
        )
        if not listed and not is_public(address):
            raise InvalidFieldError(
                f"{self.field}'s host {host} has the private address {address}, which the setting"
                f" {self._setting} does not list"
            )
        return address


def is_public(address: Address) -> bool:
    """Returns whether `address` belongs to the public internet. An IPv6 address that leads to an
    IPv4 one (IPv4-mapped, NAT64, 6to4) counts as that one."""
    if isinstance(address, IPv6Address):
        embedded = _embedded(address)
        if embedded is None:
            special = any(address in network for network in SPECIAL_IPV6)
            return address in GLOBAL_UNICAST and not special
        address = embedded
    return not any(address in network for network in SPECIAL_IPV4)


def _embedded(address: IPv6Address) -> IPv4Address | None:
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour


def time_left(deadline: float) -> float:
    """Returns the seconds until `deadline`. Raises TimeoutError if it has passed."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        # Not SSLSocket's own, which takes the TLS state away under the thread that reads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
