"""Reads what proxies say of a request: who sent it, by which scheme, under which path. Anyone can
send these headers, so they count only from the addresses that the operator lists.
"""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from server.errors import SettingsError

FOR, PROTO, PREFIX = "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO", "HTTP_X_FORWARDED_PREFIX"
HEADERS = (FOR, PROTO, PREFIX, "HTTP_FORWARDED")
# Proxies of one request that are looked at, the last first.
HOPS_MAX = 16


class TrustedProxies:
    """The proxies whose headers count, by address. Raises SettingsError for an entry that is no
    address and no network."""

    def __init__(self, entries: tuple[str, ...]) -> None:
        try:
            networks = [ip_network(entry) for entry in entries]
        except ValueError as error:
            raise SettingsError(
                f"trusted_proxies can't be {', '.join(entries)}: name ADDRESS or NETWORK/BITS, such"
                f" as 10.0.0.5 or 10.0.0.0/24 ({error})"
            ) from None
        self._networks = [
            each if isinstance(each, IPv6Network) else _mapped_network(str(each))
            for each in networks
        ]

    def apply(self, environ: dict[str, Any]) -> None:
        """Put the client's address and scheme, as a trusted proxy says, in the place of the
        proxy's in a WSGI environment; take the headers of any other sender away."""
        if not self._trusts(_address(environ.get("REMOTE_ADDR", ""))):
            for name in HEADERS:
                environ.pop(name, None)
            return
        # The last proxy appends whom it was asked by; what comes before may be forged by that one,
        # unless that is a proxy of ours too.
        for entry in reversed(environ.get(FOR, "").split(",")[-HOPS_MAX:]):
            address = _address(entry)
            if address is None:
                break
            environ["REMOTE_ADDR"] = str(address.ipv4_mapped or address)
            if not self._trusts(address):
                break
        scheme = environ.get(PROTO, "").rpartition(",")[2].strip().lower()
        if scheme in ("http", "https"):
            environ["wsgi.url_scheme"] = scheme

    def _trusts(self, address: IPv6Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def _mapped(address: IPv4Address) -> IPv6Address:
    """Return an IPv4 address as a socket of both versions shows it (RFC 4291, 2.5.5.2)."""
    return IPv6Address(f"::ffff:{address}")


def _mapped_network(text: str) -> IPv6Network:
    address, _, bits = text.partition("/")
    return IPv6Network(f"::ffff:{address}/{96 + int(bits)}")


def _address(text: str) -> IPv6Address | None:
    """Return an address as a proxy writes it, with a port or in brackets or not; None if it is
    none, such as `unknown`."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return _mapped(address) if isinstance(address, IPv4Address) else address
