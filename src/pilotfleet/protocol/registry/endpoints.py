"""Endpoints as text, and which one a registration stores (registry.md section 6.1)."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import DecodeError

if TYPE_CHECKING:
    from pilotfleet.protocol.address import Endpoint

__all__ = [
    "format_endpoint",
    "is_loopback",
    "is_private",
    "parse_endpoint",
    "stored_endpoint",
]

# Listed one by one: ``ipaddress.is_private`` covers more, among them the
# documentation networks, which the rule keeps as they are.
_PRIVATE: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/32",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "::/128",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)


def format_endpoint(endpoint: Endpoint) -> str:
    """Return ``host:port``, with brackets around an IPv6 host."""
    host, port = endpoint
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_endpoint(text: str) -> Endpoint:
    """Read ``host:port``; the host may be empty, a name, or bracketed IPv6.

    Raises:
        DecodeError: Not of that form.
    """
    host, separator, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    plain = not any(character in host for character in "[]:")
    digits = port.isascii() and port.isdigit() and len(port) <= 5
    if not (separator and digits and (plain or bracketed)) or int(port) > 0xFFFF:
        raise DecodeError(f"{text[:64]!r} is not host:port")
    return host, int(port)


def stored_endpoint(listen_addr: str, tcp_peer: Endpoint) -> str:
    """Return the endpoint to store for a node that asks to be at ``listen_addr``.

    Args:
        listen_addr: As the node sent it.
        tcp_peer: Where its TCP connection comes from; replaces a host that
            nobody else could reach.
    """
    if not listen_addr:
        return format_endpoint(tcp_peer)
    try:
        host, port = parse_endpoint(listen_addr)
    except DecodeError:
        return listen_addr
    if not host or is_private(host):
        return format_endpoint((tcp_peer[0], port))
    return listen_addr


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches what is bound to ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# The agents of a fleet register from a few hosts, and this took a twentieth of it.
@lru_cache(maxsize=1_024)
def is_private(host: str) -> bool:
    """Tell whether only its own machine or network could reach a host."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in _PRIVATE)
