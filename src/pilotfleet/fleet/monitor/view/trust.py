"""Who trusts whom, by the registry, and what changed.

The registry tells all links each time. What it told first is where one begins; later
on the difference is new links and revocations, also over a restart of the monitor.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from pilotfleet.fleet.monitor.figures import TrustChange

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

__all__ = ["SavedTrust", "TrustBook"]

MAX_LINKS: Final = 200_000
MAX_CHANGES: Final = 1_000
HOUR_S: Final = 3_600
LINKED: Final = "linked"
REVOKED: Final = "revoked"
_NODE: Final = (1 << 32) - 1


class SavedTrust(msgspec.Struct, frozen=True, array_like=True):
    """Trust as it is kept over a restart."""

    links: list[int] | None
    linked: int
    revoked: int
    hour: list[tuple[int, int, int]]
    changes: list[TrustChange]
    open: tuple[int, int]


class TrustBook:
    """The links of a fleet, and their changes."""

    def __init__(self) -> None:
        self._links: set[int] | None = None
        """Two node numbers in one: a set of 200,000 pairs takes twice the memory."""
        self.linked = self.revoked = 0
        """Ever."""
        self._hour: deque[tuple[int, int, int]] = deque()
        self._linked_hour = self._revoked_hour = 0
        self._open = (0, 0)
        """Linked and revoked in the open second."""
        self._changes: deque[TrustChange] = deque(maxlen=MAX_CHANGES)
        self._adjacent: dict[int, list[int]] | None = None

    @property
    def links(self) -> int:
        """How many there are."""
        return len(self._links or ())

    def take(
        self,
        links: Collection[tuple[int, int]],
        name_of: Callable[[int], str],
        *,
        at: float,
    ) -> None:
        """Take all links of now."""
        now = _packed(links)
        before, self._links = self._links, now
        self._adjacent = None
        if before is None:
            return
        for change, changed in ((LINKED, now - before), (REVOKED, before - now)):
            self._count(change, len(changed))
            for link in sorted(changed)[-MAX_CHANGES:]:
                one, other = name_of(link >> 32), name_of(link & _NODE)
                self._changes.append(
                    TrustChange(at=at, change=change, one=one, other=other)
                )

    def close(self, second: int) -> tuple[int, int]:
        """End the open second; return how many were linked and revoked in it."""
        linked, revoked = ended = self._open
        if linked or revoked:
            self._hour.append((second, linked, revoked))
            self._linked_hour += linked
            self._revoked_hour += revoked
            self._open = (0, 0)
        return ended

    def last_hour(self, second: int) -> tuple[int, int]:
        """Return how many were linked and revoked when this is the open second."""
        while self._hour and self._hour[0][0] <= second - HOUR_S:
            _, linked, revoked = self._hour.popleft()
            self._linked_hour -= linked
            self._revoked_hour -= revoked
        linked, revoked = self._open
        return self._linked_hour + linked, self._revoked_hour + revoked

    def changes(self, limit: int) -> list[TrustChange]:
        """Return the last changes, newest first."""
        return list(self._changes)[::-1][: max(0, limit)]

    def adjacent(self) -> Mapping[int, Sequence[int]]:
        """Return by node number whom it trusts and is trusted by."""
        if self._adjacent is None:
            adjacent: dict[int, list[int]] = {}
            for link in self._links or ():
                one, other = link >> 32, link & _NODE
                adjacent.setdefault(one, []).append(other)
                adjacent.setdefault(other, []).append(one)
            self._adjacent = adjacent
        return self._adjacent

    def save(self) -> SavedTrust:
        """Return it as it is kept over a restart."""
        return SavedTrust(
            links=None if self._links is None else list(self._links),
            linked=self.linked,
            revoked=self.revoked,
            hour=list(self._hour),
            changes=list(self._changes),
            open=self._open,
        )

    @classmethod
    def load(cls, saved: SavedTrust, *, latest: int) -> TrustBook:
        """Return what was saved; seconds later than ``latest`` are forgotten."""
        book = cls()
        if saved.links is not None:
            book._links = {link for link in saved.links[:MAX_LINKS] if link >= 0}
        book.linked, book.revoked = saved.linked, saved.revoked
        for second, linked, revoked in saved.hour[-HOUR_S:]:
            if second <= latest:
                book._hour.append((second, linked, revoked))
                book._linked_hour += linked
                book._revoked_hour += revoked
        book._changes.extend(saved.changes)
        book._open = saved.open
        return book

    def _count(self, change: str, number: int) -> None:
        linked, revoked = self._open
        if change == LINKED:
            self.linked += number
            self._open = (linked + number, revoked)
        else:
            self.revoked += number
            self._open = (linked, revoked + number)


def _packed(links: Iterable[tuple[int, int]]) -> set[int]:
    packed = {
        min(one, other) << 32 | max(one, other)
        for one, other in links
        if one != other and 0 <= one <= _NODE and 0 <= other <= _NODE
    }
    # Always the same ones, or the rest would seem to come and go.
    return packed if len(packed) <= MAX_LINKS else set(sorted(packed)[:MAX_LINKS])
