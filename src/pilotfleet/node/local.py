"""Addresses of this machine, and which address of a peer to use."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import socket
import struct
import sys
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.registry.endpoints import parse_endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pilotfleet.protocol.address import Endpoint

__all__ = [
    "choose_endpoint",
    "has_address",
    "is_routable_ip",
    "local_addresses",
    "local_ipv4_addresses",
    "parse_ip_endpoint",
]

_SIOCGIFADDR: Final = 0x8915
_IFREQ: Final = struct.Struct("256s")
_GLOBAL_SCOPE: Final = "00"
_IFREQ_ADDRESS: Final = slice(20, 24)

MAX_REMEMBERED: Final = 1024
"""Addresses of which it is remembered whether they are routable: the beacon tells each
agent of a host the same one, every minute."""


def parse_ip_endpoint(text: str) -> Endpoint:
    """Read ``ip:port`` or ``[ip]:port``.

    Names are refused: looking one up would block the process, and a registry
    record could make us ask for any name.

    Raises:
        DecodeError: Not an IP address and a port.
    """
    host, port = parse_endpoint(text)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise DecodeError(f"endpoint {text[:64]!r} has no ip address") from None
    if not port:
        raise DecodeError(f"endpoint {text[:64]!r} has port 0")
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address), port


@functools.lru_cache(maxsize=MAX_REMEMBERED)
def is_routable_ip(host: str) -> bool:
    """Tell whether another machine could reach this one at ``host``.

    Private addresses count: a rendezvous within a company sees nothing else, and the
    registry replaces those it cannot use (registry.md 6.1).
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return not (
        address.is_loopback
        or address.is_unspecified
        or address.is_link_local
        or address.is_multicast
    )


def has_address(host: str) -> bool:
    """Tell whether ``host`` is an address of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


def local_ipv4_addresses() -> tuple[str, ...]:
    """Return the machine's IPv4 addresses, loopback left out."""
    found = _interface_addresses() or _default_address()
    return tuple(host for host in found if not host.startswith("127."))


def local_addresses() -> frozenset[str]:
    """Return the machine's addresses that others may use, IPv4 and IPv6."""
    return frozenset((*local_ipv4_addresses(), *_ipv6_addresses()))


def choose_endpoint(
    real: Endpoint,
    lan: Iterable[Endpoint],
    *,
    own_host: str,
    local: Iterable[str],
) -> Endpoint:
    """Return the address to reach a peer at (wire.md section 9.2).

    A LAN address is used when both sides have the same public IP and one of
    ours is in the same /24. The second test alone would confuse everybody's
    192.168.1.0.
    """
    if real[0] != own_host or _is_loopback(real[0]):
        return real
    networks = {host.rpartition(".")[0] for host in local}
    for endpoint in lan:
        if "." in endpoint[0] and endpoint[0].rpartition(".")[0] in networks:
            return endpoint
    return real


def _is_loopback(host: str) -> bool:
    return host.startswith("127.") or host == "::1"


def _interface_addresses() -> list[str]:
    if sys.platform != "linux":
        return []
    import fcntl  # Not on every system.

    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = _IFREQ.pack(name.encode()[:15])
            # Interfaces without an IPv4 address answer with an error.
            with contextlib.suppress(OSError):
                reply = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
                found.append(socket.inet_ntoa(reply[_IFREQ_ADDRESS]))
    return found


def _ipv6_addresses() -> list[str]:
    """Return the IPv6 addresses of global scope, where the kernel lists them."""
    found = []
    with contextlib.suppress(OSError), open("/proc/net/if_inet6") as listed:
        for line in listed:
            digits, _, _, scope, *_ = line.split()
            if scope == _GLOBAL_SCOPE:
                found.append(str(ipaddress.IPv6Address(bytes.fromhex(digits))))
    return found


def _default_address() -> list[str]:
    """Return the address of the default route; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return []
        return [probe.getsockname()[0]]
