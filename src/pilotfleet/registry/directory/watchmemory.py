"""What watches take, per address that they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilotfleet.registry.directory.frozenids import FrozenIds

__all__ = ["Shelf"]


class _Share:
    """What the watches of one address take."""

    __slots__ = ("held", "size_bytes", "watches")

    def __init__(self) -> None:
        self.watches = 0
        self.size_bytes = 0
        self.held: dict[FrozenIds, int] = {}
        """How often each set is held; by identity, as sets do not compare."""


class Shelf:
    """Counts watches and the sets that they hold; a shared set counts once each
    address."""

    __slots__ = ("_shares", "size_bytes")

    def __init__(self) -> None:
        self._shares: dict[str | None, _Share] = {}
        self.size_bytes = 0

    def watches(self, source: str | None) -> int:
        """Return how many watches an address has."""
        share = self._shares.get(source)
        return 0 if share is None else share.watches

    def size_bytes_of(self, source: str | None) -> int:
        """Return how much the watches of an address take."""
        share = self._shares.get(source)
        return 0 if share is None else share.size_bytes

    def open(self, source: str | None) -> None:
        """Note that an address has one watch more."""
        self._shares.setdefault(source, _Share()).watches += 1

    def close(self, source: str | None) -> None:
        """Note that an address has one watch less, which holds nothing any more."""
        share = self._shares[source]
        share.watches -= 1
        if not share.watches:
            del self._shares[source]

    def hold(self, source: str | None, ids: FrozenIds) -> None:
        """Note that a watch of an address holds a set."""
        share = self._shares[source]
        count = share.held.get(ids, 0)
        share.held[ids] = count + 1
        if not count:
            share.size_bytes += ids.size_bytes
            self.size_bytes += ids.size_bytes

    def release(self, source: str | None, ids: FrozenIds) -> None:
        """Note that a watch of an address holds a set no longer."""
        share = self._shares[source]
        count = share.held[ids] - 1
        if count:
            share.held[ids] = count
            return
        del share.held[ids]
        share.size_bytes -= ids.size_bytes
        self.size_bytes -= ids.size_bytes
