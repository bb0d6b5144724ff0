"""Which local IPv4 address stands for which Pilot address (services.md section 9).

Pure bookkeeping: what an address needs in order to work, listeners and an alias on
the loopback interface, is :mod:`pilotfleet.client.gateway`'s.
"""

from __future__ import annotations

import ipaddress
import os.path
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import AlreadyExists, Busy, InvalidArgument, NotFound

if TYPE_CHECKING:
    from pilotfleet.protocol.address import Address

__all__ = [
    "DEFAULT_PORTS",
    "DEFAULT_SUBNET",
    "Mapping",
    "MappingTable",
    "PortPair",
    "control_path",
    "parse_ports",
    "parse_subnet",
]

# From the specification.
DEFAULT_SUBNET: Final = "10.4.0.0/16"
FIRST_OCTET: Final = 1
"""Automatic addresses begin where the subnet's last octet is this."""

# Of our choosing.
MAX_MAPPINGS: Final = 1024
"""Each one opens a listener per port."""
MAX_PORTS: Final = 64


@dataclass(frozen=True, slots=True)
class PortPair:
    """A local TCP port and the virtual port it leads to."""

    local: int
    """0: any free one, for who can ask afterwards which it was."""
    remote: int


@dataclass(frozen=True, slots=True)
class Mapping:
    """One Pilot address at one local address."""

    ip: str
    address: Address


DEFAULT_PORTS: Final = tuple(
    PortPair(port, port) for port in (80, 443, 1000, 1001, 1002, 7, 8080, 8443)
)


class MappingTable:
    """The mappings of one gateway.

    Raises:
        InvalidArgument: From the constructor: the subnet is none.
    """

    def __init__(self, subnet: str = DEFAULT_SUBNET) -> None:
        self.subnet = parse_subnet(subnet)
        self._by_ip: dict[str, Mapping] = {}
        self._by_address: dict[Address, Mapping] = {}
        first = int(self.subnet.network_address)
        # A subnet smaller than 256 addresses need not hold one that ends in 1.
        start = ipaddress.IPv4Address((first & ~0xFF) | FIRST_OCTET)
        self._first = int(start) if start in self.subnet else first
        self._next = self._first

    def __len__(self) -> int:
        return len(self._by_ip)

    def mappings(self) -> list[Mapping]:
        """Return all mappings, oldest first."""
        return list(self._by_ip.values())

    def find(self, address: Address) -> Mapping | None:
        """Return the mapping of a Pilot address."""
        return self._by_address.get(address)

    def add(self, address: Address, ip: str | None = None) -> Mapping:
        """Map ``address``, or return its mapping if it has one.

        Args:
            address: Where connections go.
            ip: The local address; none takes the next free one.

        Raises:
            InvalidArgument: ``ip`` is no IPv4 address, or not in the subnet.
            AlreadyExists: ``ip`` stands for another address.
            Busy: The subnet or the table is exhausted.
        """
        known = self._by_address.get(address)
        if known is not None:
            return known
        if len(self._by_ip) >= MAX_MAPPINGS:
            raise Busy(f"{MAX_MAPPINGS} addresses are mapped, which is the most")
        mapping = Mapping(self._take(ip) if ip else self._take_next(), address)
        self._by_ip[mapping.ip] = self._by_address[address] = mapping
        return mapping

    def remove(self, ip: str) -> Mapping:
        """End the mapping at a local address.

        Raises:
            NotFound: Nothing is mapped there.
        """
        mapping = self._by_ip.pop(ip, None)
        if mapping is None:
            raise NotFound(f"IP {ip} is not mapped")
        del self._by_address[mapping.address]
        return mapping

    def _take(self, text: str) -> str:
        try:
            ip = ipaddress.IPv4Address(text)
        except ValueError:
            raise InvalidArgument(f"{text[:40]!r} is not an IPv4 address") from None
        if ip not in self.subnet:
            raise InvalidArgument(f"IP {ip} not in subnet {self.subnet}")
        if str(ip) in self._by_ip:
            raise AlreadyExists(f"IP {ip} already mapped")
        return str(ip)

    def _take_next(self) -> str:
        last = int(self.subnet.broadcast_address)
        # Once past the end, what was unmapped is used again. At most all mappings
        # are in the way, and those are bounded.
        for _ in range(2):
            while self._next <= last:
                ip = str(ipaddress.IPv4Address(self._next))
                self._next += 1
                if ip not in self._by_ip:
                    return ip
            self._next = self._first
        raise Busy(f"subnet exhausted: {self.subnet} has no free address left")


def control_path(daemon_socket: str) -> str:
    """Return where the gateway of the daemon at ``daemon_socket`` is controlled."""
    stem, extension = os.path.splitext(daemon_socket)
    return f"{stem}-gateway{extension or '.sock'}"


def parse_subnet(text: str) -> ipaddress.IPv4Network:
    """Read a subnet such as ``10.4.0.0/16``; bits of a host are taken away.

    Raises:
        InvalidArgument: It is none.
    """
    try:
        return ipaddress.IPv4Network(text, strict=False)
    except ValueError:
        raise InvalidArgument(
            f"invalid subnet {text[:40]!r}", hint="write it as 10.4.0.0/16"
        ) from None


def parse_ports(text: str) -> tuple[PortPair, ...]:
    """Read a list of ports such as ``80,8080:80`` (local:virtual).

    Raises:
        InvalidArgument: A part is no port, or there are none or too many.
    """
    pairs = [_parse_pair(part.strip()) for part in text.split(",") if part.strip()]
    if not 0 < len(pairs) <= MAX_PORTS:
        raise InvalidArgument(f"ports must list 1 to {MAX_PORTS} ports")
    return tuple(pairs)


def _parse_pair(text: str) -> PortPair:
    local, separator, remote = text.partition(":")
    numbers = []
    for digits in (local, remote if separator else local):
        is_number = digits.isascii() and digits.isdigit() and len(digits) <= 5
        if not is_number or int(digits) > 0xFFFF:
            raise InvalidArgument(f'invalid port "{text[:40]}": not 0 to 65535')
        numbers.append(int(digits))
    return PortPair(*numbers)
