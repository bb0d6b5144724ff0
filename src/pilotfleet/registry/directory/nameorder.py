"""Hostnames in order, so that those with a common beginning are found together.

The order is kept in groups of some thousand names. Each group has the set of its
nodes, so the nodes under a prefix are the union of whole groups and of parts of two:
milliseconds for a million names, and a new name moves one group's names only.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from itertools import chain
from typing import TYPE_CHECKING, Final

from pilotfleet.registry.directory.idset import IdSet, bits_of_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["NameOrder"]

MOST: Final = 16_384
"""Names in a group. With more of them, the parts at both ends take longer; with
fewer, there are more groups to unite."""
_AFTER_ALL: Final = "~"
"""No character of a hostname sorts above this one."""


class _Group:
    """Neighbours in the order, and their nodes."""

    __slots__ = ("names", "nodes")

    def __init__(self, names: list[str], nodes: IdSet) -> None:
        self.names = names
        self.nodes = nodes


class NameOrder:
    """Names in order. Each belongs to one node, and each node has one of them."""

    __slots__ = ("_firsts", "_groups", "_node_of")

    def __init__(self, node_of: Callable[[str], int]) -> None:
        """Begin empty.

        Args:
            node_of: Returns the node of a name that is in the order.
        """
        self._node_of = node_of
        self._groups = [_Group([], IdSet())]
        self._firsts = [""]
        """For each group, a text that none of its names sorts below, and all names
        of the groups before it do."""

    def names(self) -> list[str]:
        """Return all names in order."""
        return list(chain.from_iterable(group.names for group in self._groups))

    def fill(self, names: Iterable[str]) -> None:
        """Replace what is there by many names, in any order."""
        ordered = sorted(names)
        step = MOST // 2
        parts = [ordered[at : at + step] for at in range(0, len(ordered), step)]
        self._groups = [self._group(part) for part in parts] or [self._group([])]
        self._firsts = ["", *(part[0] for part in parts[1:])]

    def add(self, name: str, node: int) -> None:
        """Put in a name that is not there; ``node_of`` must know it already."""
        at = self._group_of(name)
        group = self._groups[at]
        insort(group.names, name)
        group.nodes.add(node)
        if len(group.names) > MOST:
            self._split(at)

    def discard(self, name: str, node: int) -> None:
        """Take out the name of a node."""
        at = self._group_of(name)
        group = self._groups[at]
        del group.names[bisect_left(group.names, name)]
        group.nodes.discard(node)
        if len(group.names) < MOST // 4:
            self._unite(at)

    def prefix_bits(self, prefix: str) -> int:
        """Return the bitmap of the nodes whose name begins with ``prefix``."""
        bits = 0
        for group, start, end in self._parts(prefix):
            bits |= self._part_bits(group, start, end)
        return bits

    def few(self, prefix: str, most: int) -> list[int] | None:
        """Return the nodes under ``prefix``; None if they are more than ``most``."""
        parts = self._parts(prefix)
        if sum(end - start for _, start, end in parts) > most:
            return None
        names = chain.from_iterable(g.names[start:end] for g, start, end in parts)
        return sorted(map(self._node_of, names))

    def _parts(self, prefix: str) -> list[tuple[_Group, int, int]]:
        """Return each group with names under ``prefix``, and from where to where."""
        end = prefix + _AFTER_ALL
        first, last = self._group_of(prefix), self._group_of(end)
        return [
            (group, bisect_left(group.names, prefix), bisect_left(group.names, end))
            for group in self._groups[first : last + 1]
        ]

    def _part_bits(self, group: _Group, start: int, end: int) -> int:
        """Return the bitmap of some neighbours of a group."""
        names = group.names
        if 2 * (end - start) < len(names):
            return bits_of_ids(map(self._node_of, names[start:end]))
        # Each name takes as long as a whole bitmap of a thousand, so the fewer ones.
        others = chain(names[:start], names[end:])
        return group.nodes.bits() ^ bits_of_ids(map(self._node_of, others))

    def _group_of(self, name: str) -> int:
        return bisect_right(self._firsts, name) - 1

    def _group(self, names: list[str]) -> _Group:
        return _Group(names, IdSet.of(map(self._node_of, names)))

    def _split(self, at: int) -> None:
        names = self._groups[at].names
        half = len(names) // 2
        self._groups[at : at + 1] = [
            self._group(names[:half]),
            self._group(names[half:]),
        ]
        self._firsts.insert(at + 1, names[half])

    def _unite(self, at: int) -> None:
        """Join a small group to the one after it, or else to the one before."""
        last = len(self._groups) - 1
        if not last:
            return
        left = min(at, last - 1)
        one, other = self._groups[left : left + 2]
        if len(one.names) + len(other.names) <= MOST // 2:
            self._groups[left : left + 2] = [self._group(one.names + other.names)]
            del self._firsts[left + 1]
