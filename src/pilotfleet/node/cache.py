"""A bounded table of answers that grow old."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["ExpiringCache"]

K = TypeVar("K")
V = TypeVar("V")


class ExpiringCache(Generic[K, V]):
    """Keeps values until their time has passed, the oldest going first.

    Nothing is swept: an entry that expired is dropped when it is asked for, or
    when room is needed. So an idle cache costs no timer.
    """

    __slots__ = ("_entries", "_limit")

    def __init__(self, limit: int) -> None:
        self._entries: dict[K, tuple[float, V]] = {}
        self._limit = limit

    def __len__(self) -> int:
        """Return the number of entries, expired ones included."""
        return len(self._entries)

    def get(self, key: K, now: float) -> V | None:
        """Return the value of ``key``, or None if there is none or it is old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[0] <= now:
            del self._entries[key]
            return None
        return entry[1]

    def put(self, key: K, value: V, expires: float) -> None:
        """Keep ``value`` until ``expires``."""
        entries = self._entries
        entries.pop(key, None)
        if len(entries) >= self._limit:
            del entries[next(iter(entries))]
        entries[key] = (expires, value)

    def discard(self, key: K) -> None:
        """Forget ``key``."""
        self._entries.pop(key, None)
