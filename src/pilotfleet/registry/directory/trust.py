"""Who consented to whom: trust pairs, remembered beyond the life of a node.

A pair exists when one side has said so. What it opens is decided side by side:
a node is shown to, and admits, only those it consented to itself, so that nobody
lets himself in by a report of his own. Two weaker facts complete it:

* A pair that an older release stored (``trust.<low>.<high>``) counts as the
  consent of both.
* A node that had itself looked for the peer grants its *location* only: the peer
  saw it anyway when it came, and has to find it again to answer its request.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from pilotfleet.registry.directory.idset import IdSet
from pilotfleet.registry.directory.trustlinks import LinkTable

__all__ = ["Grant", "TrustTable"]


class Grant(Enum):
    """What one node grants another; the value is its stored form."""

    CONSENT = b"1"
    """To find it, locate it and connect to it."""
    LOCATION = b"0"
    """To locate it only."""


class _Relation:
    """A directed relation between nodes, kept by the second of each two."""

    __slots__ = ("_sets",)

    def __init__(self) -> None:
        self._sets: dict[int, IdSet] = {}

    def has(self, one: int, other: int) -> bool:
        known = self._sets.get(other)
        return known is not None and one in known

    def add(self, one: int, other: int) -> None:
        known = self._sets.get(other)
        if known is None:
            known = self._sets[other] = IdSet()
        known.add(one)

    def discard(self, one: int, other: int) -> None:
        known = self._sets.get(other)
        if known is None or one not in known:
            return
        known.discard(one)
        if not known:
            del self._sets[other]

    def bits(self, other: int) -> int:
        known = self._sets.get(other)
        return 0 if known is None else known.bits()

    def nodes(self, other: int) -> IdSet:
        return self._sets.get(other, _NOBODY)


_NOBODY: Final = IdSet()


class TrustTable:
    """For each two nodes, what each grants the other."""

    __slots__ = ("_consents", "_locations", "_old", "links", "pairs")

    def __init__(self) -> None:
        self._consents = _Relation()
        self._locations = _Relation()
        self._old = _Relation()
        self.pairs = 0
        """How many pairs there are."""
        self.links = LinkTable()
        """The same pairs, to be listed."""

    def admits(self, node: int, peer: int) -> bool:
        """Tell whether ``node`` consented to ``peer``."""
        return self._consents.has(node, peer) or self._old.has(node, peer)

    def shows(self, node: int, peer: int) -> bool:
        """Tell whether ``peer`` may know where ``node`` is."""
        return self.admits(node, peer) or self._locations.has(node, peer)

    def has_pair(self, one: int, other: int) -> bool:
        """Tell whether either side has said that there is trust."""
        return self.admits(one, other) or self.admits(other, one)

    def has_grant(self, node: int, peer: int) -> bool:
        """Tell whether something is stored that ``node`` grants ``peer``."""
        return self._consents.has(node, peer) or self._locations.has(node, peer)

    def is_old(self, one: int, other: int) -> bool:
        """Tell whether the pair is stored in the form of an older release."""
        return self._old.has(one, other)

    def bits(self, node: int) -> int:
        """Return the bitmap of those that consented to ``node``."""
        return self._consents.bits(node) | self._old.bits(node)

    def truster_sets(self, node: int) -> tuple[IdSet, IdSet]:
        """Return the sets that those who consented to ``node`` are in."""
        return self._consents.nodes(node), self._old.nodes(node)

    def set_grant(self, node: int, peer: int, grant: Grant | None) -> bool:
        """Note what ``node`` grants ``peer``; None: nothing.

        Returns whether the pair of the two came or went.
        """
        was_pair = self.has_pair(node, peer)
        for relation, kind in (
            (self._consents, Grant.CONSENT),
            (self._locations, Grant.LOCATION),
        ):
            if grant is kind:
                relation.add(node, peer)
            else:
                relation.discard(node, peer)
        return self._count(node, peer, was_pair=was_pair)

    def set_old_pair(self, one: int, other: int, *, exists: bool) -> bool:
        """Note a pair in the form of an older release; returns as ``set_grant``."""
        was_pair = self.has_pair(one, other)
        for node, peer in ((one, other), (other, one)):
            if exists:
                self._old.add(node, peer)
            else:
                self._old.discard(node, peer)
        return self._count(one, other, was_pair=was_pair)

    def _count(self, one: int, other: int, *, was_pair: bool) -> bool:
        is_pair = self.has_pair(one, other)
        if is_pair == was_pair:
            return False
        self.pairs += is_pair - was_pair
        self.links.set(one, other, exists=is_pair)
        return True
