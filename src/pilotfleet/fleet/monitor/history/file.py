"""The history's file and what is done with it; lives in one thread, and blocks.

One transaction holds all that belongs together: the samples, and the state and the
positions that they lead to. So a program that is killed at any moment finds figures,
state and position of the same moment, and the broker's log gives it the rest once.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from pilotfleet.errors import DecodeError, StorageError
from pilotfleet.fleet.monitor.history.prune import Pruner
from pilotfleet.fleet.monitor.history.recent import (
    merge_recent,
    read_recent,
    write_recent,
)
from pilotfleet.fleet.monitor.history.rows import fold_all, upsert
from pilotfleet.fleet.monitor.history.schema import (
    RESOLUTIONS,
    SECONDS,
    SUBJECT,
    open_history,
    transaction,
    translated,
)
from pilotfleet.fleet.monitor.samples import NOTHING_RECENT, Recent
from pilotfleet.fleet.monitor.times import TimeHistogram

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pilotfleet.fleet.monitor.history.prune import Retention
    from pilotfleet.fleet.monitor.history.rows import Row
    from pilotfleet.fleet.monitor.history.schema import Resolution
    from pilotfleet.fleet.monitor.samples import Sample

__all__ = ["HistoryFile", "Saved"]

MAX_AHEAD_S: Final = 86_400.0
"""A sample of a later time is of a wrong clock: it would outlive all others."""
MAX_WAITING: Final = 20_000
"""Samples in memory for each fleet while the disk refuses."""
MAX_SUBJECTS: Final = 1_000
"""Of each fleet; a new tag beyond takes the place of the one silent the longest."""
MAX_HISTOGRAMS: Final = 4_000
"""Kept decoded: those of the open minutes and hours."""

_positions: Final = msgspec.json.Decoder(dict[str, tuple[str, int]])


class Saved(NamedTuple):
    """What a fleet's view goes on with after a restart."""

    state: bytes
    positions: dict[str, tuple[str, int]]
    """By broker: the log, and the last event of it that is counted."""
    saved_at: float
    recent: Recent
    """For the pages of agents."""


@dataclass(slots=True)
class _Waiting:
    """What of one fleet is not on the disk yet."""

    state: bytes = b""
    positions: dict[str, tuple[str, int]] = field(default_factory=dict)
    samples: deque[Sample] = field(default_factory=deque)
    recent: Recent = NOTHING_RECENT


class HistoryFile:
    """The tables. For one thread; its methods raise what SQLite raises."""

    def __init__(self, path: Path, retention: Retention) -> None:
        """Open or make the file.

        Raises:
            StorageError: As :func:`open_history` does.
        """
        self._path = path
        self._retention = retention
        self._database = open_history(path)
        self._upserts = {each: upsert(each) for each in RESOLUTIONS}
        self._waiting: dict[str, _Waiting] = {}
        try:
            self._subjects = self._read_subjects()
            # No row of a later time exists, so that most need not be looked up.
            self._newest = {each: self._newest_of(each) for each in RESOLUTIONS}
        except sqlite3.Error as error:
            self._database.close()
            raise translated(error, path) from error
        # By table and subject: the row that grows now, and the times in it.
        self._open: dict[tuple[Resolution, int], tuple[int, TimeHistogram]] = {}
        self._pruner = Pruner(self._database, retention)
        self.refused = 0
        """Samples of an impossible time."""
        self.lost = 0
        """Samples given up because the disk refused for too long."""

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @property
    def waiting(self) -> int:
        """Samples that are not on the disk yet. May be asked from any thread."""
        # A copy, made in one step: another thread may be adding a fleet meanwhile.
        return sum(len(each.samples) for each in list(self._waiting.values()))

    # Writing

    def store(
        self,
        fleet: str,
        samples: Sequence[Sample],
        state: bytes,
        positions: Mapping[str, tuple[str, int]],
        recent: Recent,
        now: float,
    ) -> None:
        """Write all that waits in one transaction; when that fails, it goes on waiting.

        Afterwards removes some of what is too old or too much.
        """
        waiting = self._waiting.setdefault(fleet, _Waiting())
        waiting.state, waiting.positions = state, dict(positions)
        sound = [each for each in samples if 0 <= each.second <= now + MAX_AHEAD_S]
        self.refused += len(samples) - len(sound)
        waiting.samples.extend(sound)
        waiting.recent = merge_recent(waiting.recent, recent)
        self.lost += _shorten(waiting.samples)
        # A clock of ours that is wrong must not make all history look too old.
        newest = min(now, max((each.second for each in sound), default=now))
        self._commit(now, newest)
        if sound:
            self._prune(newest)

    def store_alerts(self, state: bytes) -> None:
        """Replace what the alerts go on with after a restart."""
        with transaction(self._database):
            self._database.execute("REPLACE INTO alerts VALUES (1, ?)", (state,))

    def _prune(self, newest: float) -> None:
        try:
            has_removed = self._pruner.prune(newest)
        except sqlite3.OperationalError:
            # A full disk may refuse this, too. All that was to be written is written;
            # if not even that were possible, the next call would tell.
            return
        if has_removed:
            # It may be a row whose times are in memory.
            self._open.clear()

    def _commit(self, now: float, newest: float) -> None:
        subjects = {key: dict(tags) for key, tags in self._subjects.items()}
        try:
            with transaction(self._database):
                for fleet, waiting in self._waiting.items():
                    self._write(fleet, waiting, now, newest)
        except BaseException as error:
            # What memory knows of the tables may be more than what is in them.
            self._open.clear()
            self._subjects = subjects
            if not isinstance(error, sqlite3.Error):
                # A value that SQLite cannot hold would be refused for ever.
                self._waiting.clear()
            raise
        self._waiting.clear()

    def _write(self, fleet: str, waiting: _Waiting, now: float, newest: float) -> None:
        database = self._database
        for resolution, rows in fold_all(waiting.samples).items():
            oldest = newest - self._retention.of(resolution)
            values = [
                self._values(resolution, fleet, tag, at, row)
                for (tag, at), row in rows.items()
                if at >= oldest
            ]
            database.executemany(self._upserts[resolution], values)
            self._newest[resolution] = max(
                self._newest[resolution], *(at for _, at in rows), -1
            )
        write_recent(database, fleet, waiting.recent)
        database.execute(
            "INSERT INTO fleets (name, state, positions, saved_at) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (name) DO UPDATE SET state = excluded.state,"
            " positions = excluded.positions, saved_at = excluded.saved_at",
            (fleet, waiting.state, msgspec.json.encode(waiting.positions), now),
        )

    def _values(
        self, resolution: Resolution, fleet: str, tag: str, at: int, row: Row
    ) -> tuple[object, ...]:
        subject = self._subject(fleet, tag)
        times = self._all_times(resolution, subject, at, row) if row.times else None
        return row.values(subject, at, times)

    def _all_times(
        self, resolution: Resolution, subject: int, at: int, row: Row
    ) -> bytes:
        """Return the times of a row together with those that it has already."""
        is_first = at > self._newest[resolution]
        if is_first and resolution is SECONDS and len(row.times) == 1:
            return row.times[0].encode()
        key = (resolution, subject)
        known = self._open.get(key)
        if known is None or known[0] != at:
            if len(self._open) >= MAX_HISTOGRAMS:
                self._open.clear()
            there = None if is_first else self._read_times(resolution, subject, at)
            self._open[key] = known = (at, there or TimeHistogram())
        for times in row.times:
            known[1].merge(times)
        return known[1].encode()

    def _newest_of(self, resolution: Resolution) -> int:
        query = f"SELECT ifnull(max(at), -1) FROM {resolution.table}"
        return int(self._database.execute(query).fetchone()[0])

    def _read_times(
        self, resolution: Resolution, subject: int, at: int
    ) -> TimeHistogram | None:
        row = self._database.execute(
            f"SELECT times FROM {resolution.table} WHERE id = ?",
            (subject * SUBJECT + at,),
        ).fetchone()
        if row is None or row[0] is None:
            return None
        try:
            return TimeHistogram.decode(row[0])
        except DecodeError:
            # The counts of the row are still right; its times begin anew.
            return None

    # Subjects

    def _read_subjects(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for number, fleet, tag in self._database.execute("SELECT * FROM subjects"):
            found.setdefault(fleet, {})[tag] = number
        return found

    def _subject(self, fleet: str, tag: str) -> int:
        tags = self._subjects.setdefault(fleet, {})
        number = tags.get(tag)
        if number is not None:
            return number
        if len(tags) >= MAX_SUBJECTS:
            self._forget_subject(tags)
        cursor = self._database.execute(
            "INSERT INTO subjects (fleet, tag) VALUES (?, ?)", (fleet, tag)
        )
        assert cursor.lastrowid is not None
        tags[tag] = cursor.lastrowid
        return cursor.lastrowid

    def _forget_subject(self, tags: dict[str, int]) -> None:
        """Remove the tag of which nothing was heard for the longest time."""
        query = "SELECT ifnull(max(id), 0) % ? FROM hours WHERE id >= ? AND id < ?"
        _, tag = min(
            (self._database.execute(query, (SUBJECT, *_rows(number))).fetchone(), tag)
            for tag, number in tags.items()
            if tag
        )
        number = tags.pop(tag)
        for resolution in RESOLUTIONS:
            self._open.pop((resolution, number), None)
            self._database.execute(
                f"DELETE FROM {resolution.table} WHERE id >= ? AND id < ?",
                _rows(number),
            )
        self._database.execute("DELETE FROM subjects WHERE id = ?", (number,))

    # Reading

    def load(self, fleet: str) -> Saved | None:
        """Return what was stored last, or None."""
        row = self._database.execute(
            "SELECT state, positions, saved_at FROM fleets WHERE name = ?", (fleet,)
        ).fetchone()
        if row is None:
            return None
        try:
            # SQLite keeps any type in any column.
            return Saved(
                bytes(row[0]),
                _positions.decode(row[1]),
                float(row[2]),
                read_recent(self._database, fleet),
            )
        except (msgspec.MsgspecError, TypeError, ValueError) as error:
            raise StorageError(
                f"history {self._path} is damaged: what is kept of {fleet!r}: {error}",
                hint="put a copy of it back, or move it away",
            ) from error

    def load_alerts(self) -> bytes | None:
        """Return what :meth:`store_alerts` wrote last, or None."""
        row = self._database.execute("SELECT state FROM alerts").fetchone()
        if row is None:
            return None
        if not isinstance(row[0], bytes):
            raise StorageError(
                f"history {self._path} is damaged: the alerts are no bytes",
                hint="put a copy of it back, or move it away",
            )
        return row[0]

    def select(
        self, fleet: str, tag: str, query: str, values: dict[str, Any]
    ) -> list[tuple[Any, ...]]:
        """Return the rows of a query; ``:subject`` in it is where a subject's begin."""
        number = self._subjects.get(fleet, {}).get(tag)
        if number is None:
            return []
        values = {**values, "subject": number * SUBJECT}
        return self._database.execute(query, values).fetchall()


def _rows(subject: int) -> tuple[int, int]:
    """Return the number of the first row of a subject, and of the next one's."""
    return subject * SUBJECT, (subject + 1) * SUBJECT


def _shorten(waiting: deque[Any]) -> int:
    """Throw the oldest away; return how many."""
    excess = max(0, len(waiting) - MAX_WAITING)
    for _ in range(excess):
        waiting.popleft()
    return excess
