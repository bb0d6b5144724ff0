"""The inverted index: which nodes carry a tag."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.registry.directory.idset import IdSet

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["TagIndex"]

_NO_NODES: Final = IdSet()


class TagIndex:
    """Tag to the live nodes that carry it."""

    __slots__ = ("_nodes",)

    def __init__(self) -> None:
        self._nodes: dict[str, IdSet] = {}

    def replace(self, node: int, old: Iterable[str], new: Iterable[str]) -> None:
        """Move ``node`` from its old tags to its new ones."""
        kept = frozenset(new)
        for tag in old:
            if tag not in kept:
                self._remove(node, tag)
        for tag in kept:
            nodes = self._nodes.get(tag)
            if nodes is None:
                nodes = self._nodes[tag] = IdSet()
            nodes.add(node)

    def names(self) -> list[str]:
        """Return all tags that some live node carries."""
        return list(self._nodes)

    def bits(self, tag: str) -> int:
        """Return the bitmap of the nodes with ``tag``."""
        nodes = self._nodes.get(tag)
        return 0 if nodes is None else nodes.bits()

    def nodes(self, tag: str) -> IdSet:
        """Return the nodes with ``tag``."""
        return self._nodes.get(tag, _NO_NODES)

    def count(self, tag: str) -> int:
        """Return how many nodes carry ``tag``."""
        nodes = self._nodes.get(tag)
        return 0 if nodes is None else len(nodes)

    def _remove(self, node: int, tag: str) -> None:
        nodes = self._nodes.get(tag)
        if nodes is None:
            return
        nodes.discard(node)
        if not nodes:
            del self._nodes[tag]
