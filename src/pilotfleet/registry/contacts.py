"""Who went to find whom lately; soft state."""

from __future__ import annotations

from typing import Final

__all__ = ["Contacts"]

MAX_CONTACTS: Final = 262_144
"""Kept at most; about 100 bytes each. The oldest go first."""


class Contacts:
    """Remembers which node has resolved which other node.

    A node that asks another one for trust directly leaves no trace here but this:
    it resolved its peer. The peer may answer hours later, and has to find it then.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], None] = {}

    def add(self, node: int, peer: int) -> None:
        """Note that ``node`` resolved ``peer``."""
        known = self._known
        known.pop((node, peer), None)
        if len(known) >= MAX_CONTACTS:
            del known[next(iter(known))]
        known[node, peer] = None

    def has(self, node: int, peer: int) -> bool:
        """Tell whether ``node`` resolved ``peer``, as far as is remembered."""
        return (node, peer) in self._known

    def forget(self, node: int, peer: int) -> None:
        """Forget that ``node`` resolved ``peer``."""
        self._known.pop((node, peer), None)
