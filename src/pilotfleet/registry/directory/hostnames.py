"""Hostnames: who holds one, and which begin with a prefix."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING, Final, NamedTuple

from pilotfleet.registry.directory.idset import IdSet

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HostClaim", "HostnameIndex"]

_PREFIXES: Final = 64
"""Bitmaps kept for prefixes that were asked for. Building one visits each name
once (about 15 ms for 100,000 names); after that, changes keep it up to date."""
_SMALLEST_KEPT: Final = 256
"""Names from which a bitmap is worth keeping."""


class HostClaim(NamedTuple):
    """The stored claim of a node on a name."""

    node: int
    revision: int


class HostnameIndex:
    """Claims by name, in order.

    The index knows claims, not nodes: whether the claiming node lives is for
    the caller to check, who drops the claim of a dead one.
    """

    __slots__ = ("_claims", "_names", "_prefixes")

    def __init__(self) -> None:
        self._claims: dict[str, HostClaim] = {}
        self._names: list[str] = []
        self._prefixes: dict[str, IdSet] = {}

    def get(self, name: str) -> HostClaim | None:
        """Return the claim on ``name``."""
        return self._claims.get(name)

    def names(self) -> list[str]:
        """Return all names that are claimed, in order."""
        return self._names.copy()

    def put(self, name: str, claim: HostClaim, *, bulk: bool = False) -> None:
        """Record a claim. In bulk, ``put_in_order`` has to follow."""
        old = self._claims.get(name)
        self._claims[name] = claim
        if old is None and bulk:
            self._names.append(name)
        elif old is None:
            insort(self._names, name)
        for nodes in self._matching(name):
            if old is not None:
                nodes.discard(old.node)
            nodes.add(claim.node)

    def put_in_order(self) -> None:
        """Make up for the order that was neglected in bulk."""
        self._names.sort()

    def remove(self, name: str) -> None:
        """Forget the claim on ``name``, if there is one."""
        claim = self._claims.pop(name, None)
        if claim is None:
            return
        names = self._names
        del names[bisect_left(names, name)]
        for nodes in self._matching(name):
            nodes.discard(claim.node)

    def prefix_bits(self, prefix: str) -> int:
        """Return the bitmap of the nodes whose name begins with ``prefix``."""
        nodes = self._prefixes.pop(prefix, None)
        if nodes is None:
            nodes = self._collect(prefix)
            if len(nodes) < _SMALLEST_KEPT:
                return nodes.bits()
            if len(self._prefixes) >= _PREFIXES:
                del self._prefixes[next(iter(self._prefixes))]
        # Most recently used last, so that the first is the one to forget.
        self._prefixes[prefix] = nodes
        return nodes.bits()

    def _collect(self, prefix: str) -> IdSet:
        names, claims = self._names, self._claims
        start = bisect_left(names, prefix)
        # No character of a hostname sorts above this one.
        end = bisect_left(names, prefix + "~", start)
        # A node may hold a second name that an interrupted renaming has left.
        return IdSet.of({claims[names[index]].node for index in range(start, end)})

    def _matching(self, name: str) -> Iterator[IdSet]:
        for prefix, nodes in self._prefixes.items():
            if name.startswith(prefix):
                yield nodes
