"""Sets of node IDs that do not change: what a search found, what a watch has told.

Like ``IdSet`` a sorted array while sparse and a bitmap while dense, so that a few
nodes of a million cost a few bytes, and two sets of a million are compared in
microseconds. As they never change, all who hold equal ones can share one.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from pilotfleet.registry.directory.idset import bits_of, first_ids, is_sparse

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NO_IDS", "FrozenIds"]


class FrozenIds:
    """A set of small positive integers that stays as it is."""

    __slots__ = ("_bits", "_ids", "count")

    def __init__(self, ids: array[int] | None, bits: int, count: int) -> None:
        """Use ``of`` or ``of_bits``, which choose the form by the members alone."""
        self._ids = ids
        self._bits = bits
        self.count = count

    @classmethod
    def of(cls, ids: Sequence[int]) -> FrozenIds:
        """Return the set of IDs in ascending order, each once."""
        return cls._chosen(array("I", ids))

    @classmethod
    def of_bits(cls, bits: int) -> FrozenIds:
        """Return the set of a bitmap."""
        count = bits.bit_count()
        if is_sparse(count, bits.bit_length() - 1):
            return cls(array("I", first_ids(bits, after=-1, limit=count)), 0, count)
        return cls(None, bits, count)

    @classmethod
    def _chosen(cls, ids: array[int]) -> FrozenIds:
        if not ids or is_sparse(len(ids), ids[-1]):
            return cls(ids, 0, len(ids))
        return cls(None, bits_of(ids), len(ids))

    @property
    def size_bytes(self) -> int:
        """How much memory it takes, about."""
        if self._ids is None:
            return sys.getsizeof(self._bits)
        return sys.getsizeof(self._ids)

    def is_same(self, other: FrozenIds) -> bool:
        """Tell whether both have the same members."""
        if self is other:
            return True
        # Equal sets have equal forms.
        same_size = self.count == other.count
        return same_size and self._bits == other._bits and self._ids == other._ids

    def bits(self) -> int:
        """Return the set as a bitmap: bit n stands for ID n."""
        return self._bits if self._ids is None else bits_of(self._ids)

    def first(self, limit: int, *, after: int = -1) -> list[int]:
        """Return the lowest members above ``after``."""
        if self._ids is None:
            return first_ids(self._bits, after=after, limit=limit)
        start = bisect_right(self._ids, after)
        return self._ids[start : start + limit].tolist()

    def plus(self, other: FrozenIds) -> FrozenIds:
        """Return the members of either."""
        if self is other or not other.count:
            return self
        if not self.count:
            return other
        if self._ids is not None and other._ids is not None:
            return self._chosen(array("I", sorted({*self._ids, *other._ids})))
        return self.of_bits(self.bits() | other.bits())

    def minus(self, other: FrozenIds) -> FrozenIds:
        """Return the members that are not of the other."""
        if self is other:
            return NO_IDS
        if not self.count or not other.count:
            return self
        if self._ids is not None and other._ids is not None:
            others = set(other._ids)
            return self._chosen(array("I", [n for n in self._ids if n not in others]))
        bits = self.bits()
        return self.of_bits(bits ^ (bits & other.bits()))

    def common(self, other: FrozenIds) -> FrozenIds:
        """Return the members of both."""
        if self is other or not self.count:
            return self
        if not other.count:
            return other
        if self._ids is not None and other._ids is not None:
            others = set(other._ids)
            return self._chosen(array("I", [n for n in self._ids if n in others]))
        return self.of_bits(self.bits() & other.bits())


NO_IDS: Final = FrozenIds.of(())
