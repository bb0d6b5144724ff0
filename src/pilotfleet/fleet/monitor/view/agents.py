"""Which agents there are, and how they are, by their health events.

An agent is known from its first health event on. One timer of each waits in a bucket
of its second; a health event leaves the timer where it is, for it is looked at only
when it is due and moved on then. So an event costs the same with 10 agents and with
100,000, and so does a second.
"""

from __future__ import annotations

import re
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import msgspec

from pilotfleet.fleet.monitor.figures import AgentCounts, AgentState

# msgspec looks at it when the program runs.
from pilotfleet.fleet.monitor.samples import DirectoryAgent  # noqa: TC001
from pilotfleet.fleet.monitor.view.intake import believed_interval
from pilotfleet.protocol.services.fleetevents import STOPPED

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.fleet.monitor.samples import EventRecord, TaskRecord
    from pilotfleet.fleet.monitor.view.directorybook import DirectoryBook
    from pilotfleet.fleet.monitor.view.intake import Health

__all__ = ["AgentBook", "AgentEntry", "SavedAgent"]

LATE_AFTER: Final = 2
LOST_AFTER: Final = 5
"""Missed health events."""
GRACE_S: Final = 1.0
"""What an event may be late by itself."""
RECENT: Final = 20
"""Tasks, and events, that are kept of one agent,"""
RECENT_OF_ALL: Final = 20_000
"""unless all together have so many."""

_DIGITS: Final = re.compile(r"[0-9]+")
_SECONDS_PER_HOUR: Final = 3_600


class AgentEntry:
    """What is known of an agent."""

    __slots__ = (
        *("completed", "due", "events", "failed", "info", "interval_s", "last_seen"),
        *("lost_at", "name", "new_events", "new_tasks", "sort_name", "state"),
        *("status", "tasks", "uptime_s"),
    )

    def __init__(self, name: str) -> None:
        self.name = name
        # worker-2 before worker-10.
        self.sort_name = _DIGITS.sub(lambda match: match[0].zfill(9), name)
        self.state = AgentState.ALIVE
        self.status = ""
        self.last_seen = 0.0
        self.lost_at = 0.0
        """When it became lost, while it is."""
        self.interval_s = 0.0
        self.completed = 0
        self.failed = 0
        self.uptime_s = 0.0
        self.due: int | None = None
        """The second whose bucket has its timer."""
        self.info: DirectoryAgent | None = None
        self.tasks: list[TaskRecord] = []
        self.events: list[EventRecord] = []
        self.new_tasks = self.new_events = 0
        """How many of these were not handed on yet, to be stored."""

    @property
    def tags(self) -> tuple[str, ...]:
        """As the directory says."""
        return self.info.tags if self.info is not None else ()

    def deadline(self, heard_since: float, forget_s: float) -> float | None:
        """Return after when it is something else, if nothing is heard.

        What it said before ``heard_since`` could not be heard.
        """
        match self.state:
            case AgentState.ALIVE:
                return self.silent_at(LATE_AFTER, heard_since)
            case AgentState.LATE:
                return self.silent_at(LOST_AFTER, heard_since)
            case AgentState.LOST:
                # Who was lost before a time of deafness may have come back in it.
                again = self.silent_at(LOST_AFTER, heard_since)
                return max(self.lost_at + forget_s, again)
            case AgentState.LEFT:
                return None

    def silent_at(self, missed: int, heard_since: float) -> float:
        """Return when so many health events are missed."""
        last = max(self.last_seen, heard_since)
        return last + missed * self.interval_s + GRACE_S

    def state_at(self, now: float, heard_since: float) -> AgentState:
        """Return its state, if it did not say goodbye."""
        silence_s = now - max(self.last_seen, heard_since) - GRACE_S
        if silence_s > LOST_AFTER * self.interval_s:
            return AgentState.LOST
        if silence_s > LATE_AFTER * self.interval_s:
            return AgentState.LATE
        return AgentState.ALIVE


class SavedAgent(msgspec.Struct, frozen=True, array_like=True):
    """An agent as it is kept over a restart."""

    name: str
    state: AgentState
    status: str
    last_seen: float
    interval_s: float
    completed: int
    failed: int
    uptime_s: float
    info: DirectoryAgent | None
    """Its last word, if the directory does not have it any more."""
    lost_at: float = 0.0


class AgentBook:
    """All agents of a fleet that were heard."""

    def __init__(
        self,
        *,
        interval_s: float,
        max_agents: int,
        forget_s: float,
        on_change: Callable[[AgentEntry, AgentState | None, AgentState | None], None],
    ) -> None:
        """Begin without any.

        Args:
            interval_s: Between health events of who does not say it.
            max_agents: Beyond these, who was lost for longest gives way.
            forget_s: Who is lost for so long is forgotten.
            on_change: Told of each change of a state; None before the first and
                after the last.
        """
        self._interval_s = interval_s
        self._max_agents = max_agents
        self._forget_s = forget_s
        self._on_change = on_change
        self._entries: dict[str, AgentEntry] = {}
        self._counts = dict.fromkeys(AgentState, 0)
        self._gone: dict[str, None] = {}
        """Who is lost or left, longest first."""
        self._due: dict[int, set[AgentEntry]] = {}
        self._second = 0
        self.heard_since = 0.0
        """Silence before that time says nothing: nobody listened."""
        self._by_name: list[AgentEntry] | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: str) -> AgentEntry | None:
        """Return an agent, if it was heard."""
        return self._entries.get(name)

    def by_name(self) -> list[AgentEntry]:
        """Return all, in the order of their names; not to be changed."""
        if self._by_name is None:
            entries = self._entries.values()
            self._by_name = sorted(entries, key=attrgetter("sort_name", "name"))
        return self._by_name

    @property
    def counts(self) -> AgentCounts:
        """How many are in each state."""
        counts = self._counts
        return AgentCounts(
            alive=counts[AgentState.ALIVE],
            late=counts[AgentState.LATE],
            lost=counts[AgentState.LOST],
            left=counts[AgentState.LEFT],
        )

    @property
    def recent(self) -> int:
        """How many tasks, and events, of each agent may be kept."""
        return max(1, min(RECENT, RECENT_OF_ALL // max(1, len(self._entries))))

    def take(
        self, health: Health, info: DirectoryAgent | None, *, at: float, now: float
    ) -> tuple[AgentEntry | None, bool]:
        """Take a health event that was published ``at``.

        Returns:
            The agent, if there is room for it, and whether anything is new of it but
            the time.
        """
        entry = self._entries.get(health.agent)
        is_first = entry is None
        if entry is None:
            if not self._has_room():
                return None, False
            entry = AgentEntry(health.agent)
            entry.info = info
            self._entries[entry.name] = entry
            self._by_name = None
        elif at < entry.last_seen:
            # Of another broker, whose log is still being read.
            return entry, False
        is_news = (
            is_first
            or entry.status != health.status
            or entry.completed != health.tasks_completed
            or entry.failed != health.tasks_failed
        )
        self._fill(entry, health, at)
        state = entry.state_at(now, self.heard_since)
        if entry.status == STOPPED:
            state = AgentState.LEFT
        self._change(entry, state, is_first=is_first)
        self._schedule(entry)
        return entry, is_news

    def advance(self, now: float) -> None:
        """Let time go on: who is silent for too long is late, lost, forgotten."""
        second = int(now)
        if second - self._second > len(self._due):
            seconds = sorted(key for key in self._due if key <= second)
        else:
            seconds = list(range(self._second, second + 1))
        for key in seconds:
            for entry in self._due.pop(key, ()):
                entry.due = None
                if entry.state in _EXPECTED:
                    self._change(entry, self._after_silence(entry, now))
                if self._is_forgotten(entry, now):
                    self._remove(entry)
                else:
                    self._schedule(entry)
        self._second = second

    def save(self, directory: DirectoryBook) -> list[SavedAgent]:
        """Return all as they are kept over a restart; who is gone in its order."""
        gone = [self._entries[name] for name in self._gone]
        here = [entry for entry in self._entries.values() if entry.state in _EXPECTED]
        return [
            SavedAgent(
                *(entry.name, entry.state, entry.status, entry.last_seen),
                *(entry.interval_s, entry.completed, entry.failed, entry.uptime_s),
                None if entry.info is directory.get(entry.name) else entry.info,
                entry.lost_at,
            )
            for entry in (*gone, *here)
        ]

    def restore(
        self, saved: SavedAgent, info: DirectoryAgent | None, at: float
    ) -> None:
        """Take back what was saved; nothing was heard after ``at``."""
        if not self._has_room() or saved.name in self._entries:
            return
        entry = AgentEntry(saved.name)
        entry.info = info or saved.info
        entry.status = saved.status
        entry.last_seen = min(saved.last_seen, at)
        entry.interval_s = saved.interval_s
        entry.completed, entry.failed = saved.completed, saved.failed
        entry.uptime_s = saved.uptime_s
        self._entries[entry.name] = entry
        self._by_name = None
        self._change(entry, saved.state, is_first=True)
        entry.lost_at = min(saved.lost_at or at, at)
        self._schedule(entry)

    # Private

    def _after_silence(self, entry: AgentEntry, now: float) -> AgentState:
        state = entry.state_at(now, self.heard_since)
        # Late before a time in which nobody listened, it is late still.
        return entry.state if state is AgentState.ALIVE else state

    def _has_room(self) -> bool:
        if len(self._entries) < self._max_agents:
            return True
        if not self._gone:
            return False
        self._remove(self._entries[next(iter(self._gone))])
        return True

    def _is_forgotten(self, entry: AgentEntry, now: float) -> bool:
        if entry.state is not AgentState.LOST:
            return False
        deadline = entry.deadline(self.heard_since, self._forget_s)
        return deadline is not None and now > deadline

    def _remove(self, entry: AgentEntry) -> None:
        """Forget one who is gone."""
        del self._entries[entry.name]
        del self._gone[entry.name]
        if entry.due is not None:
            self._due[entry.due].discard(entry)
        self._counts[entry.state] -= 1
        self._by_name = None
        self._on_change(entry, entry.state, None)

    def _fill(self, entry: AgentEntry, health: Health, at: float) -> None:
        entry.last_seen = at
        entry.interval_s = believed_interval(health.interval_s or self._interval_s)
        entry.status = health.status
        entry.completed = health.tasks_completed
        entry.failed = health.tasks_failed
        entry.uptime_s = health.uptime_hours * _SECONDS_PER_HOUR

    def _change(
        self, entry: AgentEntry, state: AgentState, *, is_first: bool = False
    ) -> None:
        if state is AgentState.LOST:
            entry.lost_at = entry.silent_at(LOST_AFTER, self.heard_since)
        before = None if is_first else entry.state
        if before is state:
            return
        entry.state = state
        if before is not None:
            self._counts[before] -= 1
        self._counts[state] += 1
        # Anew also from lost to left: the order is that of the last change.
        self._gone.pop(entry.name, None)
        if state not in _EXPECTED:
            self._gone[entry.name] = None
        self._on_change(entry, before, state)

    def _schedule(self, entry: AgentEntry) -> None:
        deadline = entry.deadline(self.heard_since, self._forget_s)
        if deadline is None:
            return
        second = max(int(deadline), self._second)
        if entry.due is not None:
            if entry.due <= second:
                return
            self._due[entry.due].discard(entry)
        entry.due = second
        self._due.setdefault(second, set()).add(entry)


_EXPECTED: Final = frozenset([AgentState.ALIVE, AgentState.LATE])
"""Who is expected to be heard at some time."""
