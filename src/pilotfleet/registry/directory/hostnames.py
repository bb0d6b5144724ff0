"""Hostnames: who holds one, and which begin with a prefix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from pilotfleet.registry.directory.idset import IdSet
from pilotfleet.registry.directory.nameorder import NameOrder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["HostClaim", "HostnameIndex"]

_PREFIXES: Final = 64
"""Bitmaps kept for prefixes that were asked for. Making one takes some milliseconds
for a million names; after that, changes keep it up to date."""
_SMALLEST_KEPT: Final = 256
"""Names from which a bitmap is worth keeping."""


class HostClaim(msgspec.Struct, frozen=True, gc=False):
    """The stored claim of a node on a name."""

    node: int
    revision: int


class HostnameIndex:
    """Claims by name, and the names that nodes show, in order.

    A node may have an older claim that an interrupted renaming has left; it shows
    one name. Whether the claiming node lives is for the caller to check.
    """

    __slots__ = ("_claims", "_order", "_prefixes")

    def __init__(self) -> None:
        self._claims: dict[str, HostClaim] = {}
        self._order = NameOrder(self._node_of)
        self._prefixes: dict[str, IdSet] = {}

    def get(self, name: str) -> HostClaim | None:
        """Return the claim on ``name``."""
        return self._claims.get(name)

    def names(self) -> list[str]:
        """Return all names that nodes show, in order."""
        return self._order.names()

    def claim(self, name: str, claim: HostClaim) -> None:
        """Record a claim on a name that nobody else shows."""
        self._claims[name] = claim

    def release(self, name: str) -> None:
        """Forget the claim on a name that nobody shows, if there is one."""
        self._claims.pop(name, None)

    def show(self, name: str, node: int) -> None:
        """Note that ``node`` shows a name that it has claimed."""
        self._order.add(name, node)
        for nodes in self._matching(name):
            nodes.add(node)

    def show_all(self, names: Iterable[str]) -> None:
        """Note all names that are shown, each by the node that has claimed it."""
        self._order.fill(names)
        self._prefixes.clear()

    def hide(self, name: str, node: int) -> None:
        """Note that ``node`` shows the name no longer."""
        self._order.discard(name, node)
        for nodes in self._matching(name):
            nodes.discard(node)

    def few(self, prefix: str, most: int) -> list[int] | None:
        """Return the nodes whose name begins with ``prefix``, unless they are more."""
        return self._order.few(prefix, most)

    def prefix_bits(self, prefix: str) -> int:
        """Return the bitmap of the nodes whose name begins with ``prefix``."""
        nodes = self._prefixes.pop(prefix, None)
        if nodes is None:
            bits = self._order.prefix_bits(prefix)
            if bits.bit_count() < _SMALLEST_KEPT:
                return bits
            nodes = IdSet.of_bits(bits)
            if len(self._prefixes) >= _PREFIXES:
                del self._prefixes[next(iter(self._prefixes))]
        # Most recently used last, so that the first is the one to forget.
        self._prefixes[prefix] = nodes
        return nodes.bits()

    def _node_of(self, name: str) -> int:
        return self._claims[name].node

    def _matching(self, name: str) -> Iterator[IdSet]:
        for prefix, nodes in self._prefixes.items():
            if name.startswith(prefix):
                yield nodes
