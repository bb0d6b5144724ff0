"""What has changed lately, for those who look again.

Whoever has looked at the directory keeps the revision that it had. If it is the
same later, nothing that a search shows can be another: no row, and no rule of who
sees whom. The nodes whose rows are others are recorded, so many of them.
"""

from __future__ import annotations

from array import array
from typing import Final

__all__ = ["ChangeLog"]

KEPT: Final = 32_768
"""Changes of rows that are recorded, 4 bytes each. Reading all of them takes about
5 ms; whoever has been away for more counts every row as changed."""


class ChangeLog:
    """Counts changes, and records those of rows."""

    __slots__ = ("_ring", "revision", "rows")

    def __init__(self, kept: int = KEPT) -> None:
        self._ring = array("I", bytes(4 * kept))
        self.revision = 0
        """Another one after any change that a search can show."""
        self.rows = 0
        """Changes of rows so far."""

    def note_row(self, node: int) -> None:
        """Note that the node's name, tags, score, or being online is another."""
        self._ring[self.rows % len(self._ring)] = node
        self.rows += 1
        self.revision += 1

    def note_view(self) -> None:
        """Note that somebody may see more or fewer nodes than before."""
        self.revision += 1

    def rows_since(self, rows: int) -> list[int] | None:
        """Return the nodes whose rows changed since there were ``rows`` changes.

        In ascending order, each once. None: it is too long ago.
        """
        ring = self._ring
        count = self.rows - rows
        if count > len(ring):
            return None
        start = rows % len(ring)
        end = start + count
        part = ring[start:end]
        if end > len(ring):
            part += ring[: end - len(ring)]
        return sorted(set(part))
