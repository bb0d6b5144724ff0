"""A store that lives as long as its process: for tests and demonstrations."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import Conflict, StorageError
from pilotfleet.registry.store.base import Change, Entry, Store

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

__all__ = ["MemoryStore"]

MAX_DELETED: Final = 100_000
"""Deleted keys that are remembered for slow watchers."""


class MemoryStore(Store):
    """Keys in a dictionary.

    The dictionary is kept in the order of revisions: a changed key moves to
    its end. So a watcher reads it backwards until it meets what it has seen.
    """

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._revision = 0
        self._deleted = 0
        self._changed = asyncio.Event()
        self._closed = False

    async def load(self) -> list[Entry]:
        """Return all existing keys in the order of their revisions."""
        return [entry for entry in self._entries.values() if entry.value is not None]

    async def _write(self, changes: Sequence[Change]) -> list[int]:
        if self._closed:
            raise StorageError("the store is closed")
        self._check(changes)
        revisions = [self._apply(change) for change in changes]
        self._forget_deleted()
        self._changed.set()
        self._changed = asyncio.Event()
        return revisions

    async def watch(self, after: int) -> AsyncGenerator[Entry, None]:
        """Yield every change with a revision above ``after``."""
        while not self._closed:
            changed = self._changed
            for entry in self._since(after):
                after = entry.revision
                yield entry
            await changed.wait()

    async def aclose(self) -> None:
        """End all watches."""
        self._closed = True
        self._changed.set()

    def _check(self, changes: Sequence[Change]) -> None:
        seen: dict[str, int] = {}
        for number, change in enumerate(changes, self._revision + 1):
            current = seen.get(change.key)
            if current is None:
                entry = self._entries.get(change.key)
                alive = entry is not None and entry.value is not None
                current = entry.revision if entry is not None and alive else 0
            if change.expected is not None and change.expected != current:
                raise Conflict(change.key)
            seen[change.key] = 0 if change.value is None else number

    def _apply(self, change: Change) -> int:
        self._revision += 1
        old = self._entries.pop(change.key, None)
        self._deleted += (change.value is None) - (
            old is not None and old.value is None
        )
        self._entries[change.key] = Entry(change.key, change.value, self._revision)
        return self._revision

    def _forget_deleted(self) -> None:
        if self._deleted <= MAX_DELETED:
            return
        # Half of them at once, so that the scan is rare.
        surplus = self._deleted - MAX_DELETED // 2
        keys = (key for key, entry in self._entries.items() if entry.value is None)
        for key in [key for key, _ in zip(keys, range(surplus), strict=False)]:
            del self._entries[key]
            self._deleted -= 1

    def _since(self, after: int) -> list[Entry]:
        entries: list[Entry] = []
        for entry in reversed(self._entries.values()):
            if entry.revision <= after:
                break
            entries.append(entry)
        entries.reverse()
        return entries
