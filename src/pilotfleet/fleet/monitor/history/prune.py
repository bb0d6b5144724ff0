"""How long history is kept, and the removal of what is older or too much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pilotfleet.fleet.monitor.history.schema import (
    MINUTES,
    RESOLUTIONS,
    SECONDS,
    transaction,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from pilotfleet.fleet.monitor.history.schema import Resolution

__all__ = ["Pruner", "Retention"]

PRUNE_STEP: Final = 2_000
"""Rows removed in one transaction; others get their turn in between."""
PRUNE_EVERY_S: Final = 60.0
FREED_PAGES: Final = 500
"""Pages given back to the file system at a time."""
SPARE_PAGES: Final = 2_000
"""Free pages that stay for what comes."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long history is kept. Whatever is reached first removes the oldest."""

    seconds_s: float = 3600.0
    minutes_s: float = 7 * 86_400.0
    hours_s: float = 400 * 86_400.0
    max_bytes: int = 2 << 30
    """Of the file, without what waits in its ``-wal``. Full, a fleet of 100 tags with
    2,000 tasks an hour each takes about 1.6 GB, one of ten tags a tenth of that."""

    def of(self, resolution: Resolution) -> float:
        """Return how many seconds back the rows of a table go."""
        lengths = {SECONDS: self.seconds_s, MINUTES: self.minutes_s}
        return lengths.get(resolution, self.hours_s)


class Pruner:
    """Removes rows of a file in steps."""

    def __init__(self, database: sqlite3.Connection, retention: Retention) -> None:
        self._database = database
        self._retention = retention
        self._pruned_at = 0.0
        self._is_pruning = True

    def prune(self, now: float) -> bool:
        """Remove a step of what is too old or too much; False when there is no more.

        Looks for it once a minute.
        """
        if now - self._pruned_at >= PRUNE_EVERY_S or now < self._pruned_at:
            self._pruned_at, self._is_pruning = now, True
        if self._is_pruning:
            removed = sum(self._remove(*limit) for limit in self._limits(now))
            self._is_pruning = removed > 0 or self._remove_oldest()
            self._shrink()
        return self._is_pruning

    def _limits(self, now: float) -> Iterator[tuple[str, float]]:
        for resolution in RESOLUTIONS:
            oldest = now - self._retention.of(resolution)
            yield resolution.table, oldest - resolution.unit_s

    def _remove(self, table: str, before: float) -> int:
        with transaction(self._database):
            return self._database.execute(
                f"DELETE FROM {table} WHERE id IN"
                f" (SELECT id FROM {table} WHERE at < ? ORDER BY at LIMIT ?)",
                (before, PRUNE_STEP),
            ).rowcount

    def _remove_oldest(self) -> bool:
        """Remove the oldest rows there are, if the file is too large."""
        used = self._number("page_count") - self._number("freelist_count")
        if used * self._number("page_size") <= self._retention.max_bytes:
            return False
        ages = [
            (row[0], table)
            for table in (resolution.table for resolution in RESOLUTIONS)
            for row in self._database.execute(f"SELECT min(at) FROM {table}")
            if row[0] is not None
        ]
        if not ages:
            # A state alone may be larger than the cap.
            return False
        return self._remove(min(ages)[1], float("inf")) > 0

    def _shrink(self) -> None:
        if self._number("freelist_count") > SPARE_PAGES:
            # As a script: this takes all steps of the statement, one for each page.
            self._database.executescript(f"PRAGMA incremental_vacuum({FREED_PAGES});")

    def _number(self, pragma: str) -> int:
        return int(self._database.execute(f"PRAGMA {pragma}").fetchone()[0])
