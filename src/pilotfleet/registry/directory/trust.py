"""Trust pairs: symmetric, and remembered beyond the life of a node."""

from __future__ import annotations

from pilotfleet.registry.directory.idset import IdSet

__all__ = ["TrustTable"]


class TrustTable:
    """For each node, the nodes it has a trust pair with."""

    __slots__ = ("_peers", "pairs")

    def __init__(self) -> None:
        self._peers: dict[int, IdSet] = {}
        self.pairs = 0
        """How many pairs there are."""

    def has(self, one: int, other: int) -> bool:
        """Tell whether the two trust each other."""
        peers = self._peers.get(one)
        return peers is not None and other in peers

    def bits(self, node: int) -> int:
        """Return the bitmap of a node's trusted peers."""
        peers = self._peers.get(node)
        return 0 if peers is None else peers.bits()

    def add(self, one: int, other: int) -> None:
        """Make the pair; nothing happens when it exists."""
        if self.has(one, other):
            return
        self.pairs += 1
        for node, peer in ((one, other), (other, one)):
            peers = self._peers.get(node)
            if peers is None:
                peers = self._peers[node] = IdSet()
            peers.add(peer)

    def remove(self, one: int, other: int) -> None:
        """Undo the pair; nothing happens when there is none."""
        if not self.has(one, other):
            return
        self.pairs -= 1
        for node, peer in {(one, other), (other, one)}:
            peers = self._peers[node]
            peers.discard(peer)
            if not peers:
                del self._peers[node]
