"""Tasks and their attempts as a schedule knows them. Performs no I/O.

Every attempt has an id of its own on the wire: ``<run>-<task>-<attempt>``, of 16
hexadecimal digits of a hash of the run's id, 20 of the task's id, and a number. The
same run with the same task finds its attempts again, whoever was restarted meanwhile.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pilotfleet.fleet.roster import Tags, WorkerInfo
    from pilotfleet.fleet.taskfile import TaskLine
    from pilotfleet.fleet.waiting import Rank

__all__ = ["Attempt", "PastAttempts", "Task", "run_prefix", "task_key", "wire_key"]

MAX_FORBIDDEN: Final = 100_000
"""Tasks that may come again, and whose numbers of attempts are kept meanwhile."""
_WIRE_ID: Final = re.compile(r"[0-9a-f]{16}-([0-9a-f]{20})-([0-9]{1,9})")


def run_prefix(run_id: str) -> str:
    """Return what the ids of all attempts of a run begin with."""
    return f"{_digest(run_id, 8)}-"


def task_key(task_id: str) -> str:
    """Return what stands for a task in the ids of its attempts."""
    return _digest(task_id, 10)


def wire_key(wire_id: str) -> str:
    """Return the task's key in the id of an attempt."""
    return wire_id[17:37]


class Task:
    """A task that is not finished."""

    __slots__ = (
        "attempts",
        "deadline",
        "ended",
        "failed",
        "is_waiting",
        "key",
        "line",
        "live",
        "number",
        "rank",
        "started",
        "tags",
        "tried",
        "unreached",
    )

    def __init__(self, line: TaskLine, key: str, number: int, now: float) -> None:
        self.line = line
        self.key = key
        self.number = number
        self.rank: Rank = (-line.priority, number)
        self.tags: Tags = frozenset(line.tags)
        self.started = now
        self.deadline: float | None = None
        """When it has failed."""
        self.attempts = 0
        self.failed = 0
        self.is_waiting = True
        """True while its next attempt is still to begin."""
        self.live: dict[str, Attempt] = {}
        """Attempts that may still end well."""
        self.tried: set[str] = set()
        """Workers on which it did not end well."""
        self.unreached = 0
        """Attempts that no worker has had: they say nothing of the task."""
        self.ended: list[str] = []
        """Attempts that the daemon keeps until the task's result is taken."""


class Attempt:
    """One try of a task on a worker."""

    __slots__ = (
        "address",
        "counts",
        "is_asked",
        "is_excused",
        "name",
        "task",
        "was_executing",
        "wire_id",
    )

    def __init__(self, task: Task, wire_id: str, worker: WorkerInfo) -> None:
        self.task = task
        self.wire_id = wire_id
        self.address = worker.address
        self.name = worker.name
        self.was_executing = False
        self.counts = True
        """True while it occupies its worker."""
        self.is_asked = False
        """True while the daemon is asked how it ended, in an earlier life of ours."""
        self.is_excused = False

    @property
    def is_promising(self) -> bool:
        """True while nothing else has to be tried because of it."""
        return self.counts or self.is_asked

    def excuse(self) -> None:
        """Do not count it: no worker has had the task."""
        if not self.is_excused:
            self.is_excused = True
            self.task.unreached += 1


class Past:
    """What is left of earlier attempts at one task."""

    __slots__ = ("attempts", "last")

    def __init__(self) -> None:
        self.last = 0
        """The highest number of an attempt."""
        self.attempts: dict[str, tuple[str, str]] = {}
        """Address of the worker and status, by the attempt's id."""


class PastAttempts:
    """Attempts of an earlier life of this run, until somebody adds their tasks."""

    def __init__(self) -> None:
        self._by_task: dict[str, Past] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, wire_id: str) -> bool:
        past = self._by_task.get(wire_key(wire_id))
        return past is not None and wire_id in past.attempts

    def add(self, wire_id: str, address: str, status: str) -> None:
        """Note an attempt; ids of another form are none of ours."""
        match = _WIRE_ID.fullmatch(wire_id)
        if match is None:
            return
        past = self._by_task.setdefault(match[1], Past())
        past.last = max(past.last, int(match[2]))
        self._count += wire_id not in past.attempts
        past.attempts[wire_id] = (address, status)

    def forbid(self, key: str, last: int) -> None:
        """Note that a task's attempts up to a number were used, and are over."""
        if len(self._by_task) < MAX_FORBIDDEN:
            past = self._by_task.setdefault(key, Past())
            past.last = max(past.last, last)

    def update(self, wire_id: str, status: str) -> None:
        """Note how far an attempt is by now."""
        address, _ = self._by_task[wire_key(wire_id)].attempts[wire_id]
        self.add(wire_id, address, status)

    def take(self, key: str) -> Past | None:
        """Remove and return what is known of a task."""
        past = self._by_task.pop(key, None)
        if past is not None:
            self._count -= len(past.attempts)
        return past

    def give_up(self, key: str | None = None) -> Iterator[tuple[str, str]]:
        """Remove the attempts of one task, or all; yield id and status of each.

        Their numbers stay: they must not be used again.
        """
        for each in self._by_task if key is None else self._by_task.keys() & {key}:
            attempts = self._by_task[each].attempts
            self._count -= len(attempts)
            for wire_id, (_, status) in attempts.items():
                yield wire_id, status
            attempts.clear()


def _digest(text: str, size: int) -> str:
    # What came in as JSON may hold half a surrogate pair.
    data = text.encode(errors="surrogatepass")
    return hashlib.blake2b(data, digest_size=size).hexdigest()
