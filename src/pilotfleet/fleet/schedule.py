"""Which task goes to which worker, and what becomes of it. Performs no I/O.

A task is tried until an attempt succeeds, fails for good, or the policy gives up.
Each attempt has its own id on the wire, so whatever a worker says late still finds
its task, and the first outcome wins: exactly one result leaves for each task.

The shell feeds tasks, discovery and updates in, and drains :meth:`next_action`::

    Submit    give an attempt to a worker
    Cancel    tell a worker that an attempt is not wanted any more
    Collect   the outcome of an attempt has been taken
    Finished  a task is done
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pilotfleet.fleet.retry import AttemptEnd, RetryPolicy
from pilotfleet.fleet.roster import MAX_POOLS, Roster, Tags, Worker, WorkerInfo

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pilotfleet.fleet.taskfile import TaskLine

__all__ = [
    "Action",
    "Cancel",
    "Collect",
    "Finished",
    "Schedule",
    "ScheduleConfig",
    "Submit",
    "TaskResult",
    "Update",
]

MAX_RETIRED: Final = 100_000
"""Finished attempts that are still recognised when they are heard of again."""
MIN_TIMERS: Final = 1_024
STALE_TIMERS_PER_ENTRY: Final = 4
"""Timers of what has ended are tolerated up to this; then the heap is rebuilt."""
UNREACHABLE: Final = "the worker cannot be reached"
NO_WORKER: Final = "no worker took the task before its deadline"

_ENDS: Final = {
    "SUCCEEDED": AttemptEnd.SUCCEEDED,
    "FAILED": AttemptEnd.FAILED,
    "DECLINED": AttemptEnd.LOST,
    "CANCELLED": AttemptEnd.LOST,
    "EXPIRED": AttemptEnd.LOST,
}


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """Settings of a schedule."""

    concurrency: int = 1
    """Tasks that one worker has open. Two or more hide the way there and back."""
    max_open: int = 4_096
    """Tasks known and not finished; more are not read from the source."""
    deadline_s: float | None = None
    """A task that takes longer, waiting included, fails."""
    attempt_limit_s: float | None = None
    """An attempt that takes longer counts as lost."""
    unmatched_s: float = 30.0
    """A task whose tags no worker carries for so long fails. Less gives up on workers
    that only restart; more hides a misspelt tag for longer."""
    policy: RetryPolicy = field(default_factory=RetryPolicy)


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What became of a task."""

    id: str
    status: str
    """``SUCCEEDED`` or ``FAILED``."""
    agent: str
    """Name of the worker; empty when none had it."""
    result: str
    attempts: int
    wall_ms: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class Submit:
    """Give an attempt to a worker."""

    wire_id: str
    address: str
    task: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """An attempt is not wanted any more."""

    wire_id: str


@dataclass(frozen=True, slots=True)
class Collect:
    """The outcome of an attempt has been taken."""

    wire_id: str


@dataclass(frozen=True, slots=True)
class Finished:
    """A task is done."""

    result: TaskResult


Action: TypeAlias = Submit | Cancel | Collect | Finished


@dataclass(frozen=True, slots=True)
class Update:
    """What the daemon says about an attempt."""

    wire_id: str
    status: str
    result: str = ""
    reason: str = ""
    is_retryable: bool = False
    is_reachable: bool = True


class _Task:
    """A task that is not finished."""

    __slots__ = (
        "attempts",
        "failed",
        "is_waiting",
        "line",
        "live",
        "number",
        "started",
        "tags",
        "tried",
    )

    def __init__(self, line: TaskLine, number: int, now: float) -> None:
        self.line = line
        self.number = number
        """Ours: the ids of two tasks may be the same."""
        self.tags: Tags = frozenset(line.tags)
        self.started = now
        self.attempts = 0
        self.failed = 0
        self.is_waiting = True
        """True while its next attempt is still to begin."""
        self.live: dict[str, _Attempt] = {}
        """Attempts that may still end well."""
        self.tried: set[str] = set()
        """Workers that lost it."""


class _Timer(Enum):
    """What is done when a time has come."""

    DEADLINE = "deadline"
    LIMIT = "limit"
    RETRY = "retry"
    REST = "rest"
    UNMATCHED = "unmatched"


class _Attempt:
    """One try of a task on a worker."""

    __slots__ = ("address", "counts", "name", "task", "was_executing", "wire_id")

    def __init__(self, task: _Task, wire_id: str, worker: WorkerInfo) -> None:
        self.task = task
        self.wire_id = wire_id
        self.address = worker.address
        self.name = worker.name
        self.was_executing = False
        self.counts = True
        """True while it occupies its worker."""


class Schedule:
    """Tasks, attempts and workers of one run."""

    def __init__(
        self,
        config: ScheduleConfig | None = None,
        *,
        run_id: str,
        rng: random.Random | None = None,
    ) -> None:
        self._config = config or ScheduleConfig()
        # Unlike that of any other run, and in the letters that a task id may have.
        self._prefix = hashlib.blake2b(run_id.encode(), digest_size=16).hexdigest()
        self._rng = rng or random.Random()
        self._roster = Roster(concurrency=self._config.concurrency)
        self._tasks: dict[int, _Task] = {}
        self._task_count = 0
        self._attempts: dict[str, _Attempt] = {}
        self._retired: OrderedDict[str, None] = OrderedDict()
        self._timers: list[tuple[float, int, _Timer, Any]] = []
        self._timer_count = 0
        self._has_discovered = False
        self._unmatched: dict[Tags, float] = {}
        """Until when tasks wait for a worker with tags that none carries."""
        self._actions: deque[Action] = deque()

    @property
    def open_count(self) -> int:
        """Tasks that are not finished."""
        return len(self._tasks)

    @property
    def has_room(self) -> bool:
        """True while another task may be added."""
        return len(self._tasks) < self._config.max_open

    @property
    def worker_count(self) -> int:
        """Workers known."""
        return len(self._roster)

    def add(self, line: TaskLine, now: float) -> None:
        """Take on a task."""
        self._task_count += 1
        task = _Task(line, self._task_count, now)
        self._tasks[task.number] = task
        if self._config.deadline_s is not None:
            self._at(now + self._config.deadline_s, _Timer.DEADLINE, task.number)
        self._roster.waiting(task.tags).append(task.number)
        self._assign(task.tags, now)

    def set_workers(self, infos: Iterable[WorkerInfo], now: float) -> None:
        """Take over what discovery shows now."""
        self._roster.update(infos, now)
        self._has_discovered = True
        for tags in [*self._unmatched, *self._roster.waiting_pools()]:
            self._assign(tags, now)

    def update(self, update: Update, now: float) -> None:
        """Apply what the daemon says about an attempt."""
        end = _ENDS.get(update.status)
        attempt = self._attempts.get(update.wire_id)
        if attempt is None:
            if end is not None and update.wire_id in self._retired:
                self._actions.append(Collect(update.wire_id))
            return
        if end is AttemptEnd.FAILED and update.is_retryable:
            end = AttemptEnd.LOST
        if end is not None:
            self._retire(attempt)
            self._actions.append(Collect(update.wire_id))
            self._end(attempt, end, update.result, update.reason, now)
        elif not update.is_reachable:
            # Try elsewhere, but take its result if it comes after all.
            if attempt.counts:
                self._end(attempt, AttemptEnd.LOST, "", UNREACHABLE, now)
        elif update.status == "EXECUTING":
            attempt.was_executing = True
        elif update.status == "ACCEPTED" and attempt.was_executing:
            # The worker program went away, and nobody knows when one comes back.
            self._drop(attempt, "the worker program went away", now)

    def submit_failed(self, wire_id: str, reason: str, now: float) -> None:
        """Note that the daemon refused to take an attempt."""
        attempt = self._attempts.get(wire_id)
        if attempt is not None:
            self._retire(attempt)
            self._end(attempt, AttemptEnd.LOST, "", reason, now)

    def is_ours(self, wire_id: str) -> bool:
        """Return whether an update concerns this run."""
        return wire_id in self._attempts or wire_id in self._retired

    def next_timer(self) -> float | None:
        """Return when :meth:`handle_timer` wants to be called."""
        return self._timers[0][0] if self._timers else None

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        while self._timers and self._timers[0][0] <= now:
            _, _, timer, key = heapq.heappop(self._timers)
            match timer:
                case _Timer.DEADLINE:
                    self._deadline(key, now)
                case _Timer.LIMIT:
                    self._limit(key, now)
                case _Timer.RETRY:
                    self._retry(key, now)
                case _Timer.REST:
                    self._freed(self._roster.wake(key, now), now)
                case _Timer.UNMATCHED:
                    self._assign(key, now)

    def next_action(self) -> Action | None:
        """Return what the shell has to do next."""
        return self._actions.popleft() if self._actions else None

    def _at(self, when: float, timer: _Timer, key: object) -> None:
        entries = len(self._tasks) + len(self._attempts) + len(self._roster)
        if len(self._timers) > MIN_TIMERS + STALE_TIMERS_PER_ENTRY * entries:
            self._timers = [entry for entry in self._timers if self._is_due(*entry[2:])]
            heapq.heapify(self._timers)
        # The count keeps equal times from comparing keys.
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, timer, key))

    def _is_due(self, timer: _Timer, key: Any) -> bool:
        """Return whether a timer still means something."""
        match timer:
            case _Timer.DEADLINE | _Timer.RETRY:
                return key in self._tasks
            case _Timer.LIMIT:
                return key in self._attempts
        return True

    def _assign(self, tags: Tags, now: float) -> None:
        """Give waiting tasks to workers while there are both."""
        waiting = self._roster.waiting(tags)
        while waiting:
            task = self._tasks.get(waiting[0])
            if task is None:
                waiting.popleft()
                continue
            worker = self._roster.choose(tags, task.tried)
            if worker is None:
                break
            waiting.popleft()
            self._begin(task, worker, now)
        if waiting or tags in self._unmatched:
            self._check_match(tags, waiting, now)

    def _check_match(self, tags: Tags, waiting: deque[int], now: float) -> None:
        """Fail tasks that wait for a kind of worker that does not exist."""
        if self._roster.is_carried(tags):
            self._unmatched.pop(tags, None)
            return
        if not self._has_discovered:
            return
        until = self._unmatched.get(tags)
        if until is None:
            if len(self._unmatched) >= MAX_POOLS:
                del self._unmatched[next(iter(self._unmatched))]
            until = self._unmatched[tags] = now + self._config.unmatched_s
            self._at(until, _Timer.UNMATCHED, tags)
        if until <= now:
            error = _no_worker_with(tags)
            while waiting:
                task = self._tasks.get(waiting.popleft())
                if task is not None:
                    self._finish(task, "FAILED", "", "", error, now)

    def _begin(self, task: _Task, worker: Worker, now: float) -> None:
        task.attempts += 1
        task.is_waiting = False
        wire_id = self._wire_id(task)
        attempt = _Attempt(task, wire_id, worker.info)
        self._attempts[wire_id] = attempt
        task.live[wire_id] = attempt
        self._roster.begin(worker)
        if self._config.attempt_limit_s is not None:
            self._at(now + self._config.attempt_limit_s, _Timer.LIMIT, wire_id)
        self._actions.append(Submit(wire_id, attempt.address, task.line.task))

    def _wire_id(self, task: _Task) -> str:
        return f"{self._prefix}-{task.number}-{task.attempts}"

    def _end(
        self, attempt: _Attempt, end: AttemptEnd, result: str, reason: str, now: float
    ) -> None:
        """Decide what an attempt's end means for its task and its worker."""
        task = attempt.task
        task.failed += end is AttemptEnd.FAILED
        task.tried.add(attempt.address)
        self._free(attempt, end, now)
        if task.number not in self._tasks:
            return
        # Another attempt is under way, or will be soon.
        is_busy = task.is_waiting or any(live.counts for live in task.live.values())
        may_retry = self._config.policy.allows_another(
            end, attempts=task.attempts, failed=task.failed
        )
        if end is AttemptEnd.SUCCEEDED:
            self._finish(task, "SUCCEEDED", attempt.name, result, "", now)
        elif is_busy and (may_retry or end is AttemptEnd.LOST):
            return
        elif may_retry:
            task.is_waiting = True
            pause = self._config.policy.pause_s(task.attempts, self._rng)
            self._at(now + pause, _Timer.RETRY, task.number)
        else:
            self._finish(task, "FAILED", attempt.name, result, reason, now)

    def _free(self, attempt: _Attempt, end: AttemptEnd, now: float) -> None:
        """Give the attempt's place on its worker to somebody else."""
        if not attempt.counts:
            return
        attempt.counts = False
        worker = self._roster.end(attempt.address)
        if worker is None:
            return
        if end is AttemptEnd.LOST:
            worker.losses += 1
            until = now + self._config.policy.rest_s(worker.losses, self._rng)
            self._roster.rest(worker, until)
            self._at(until, _Timer.REST, attempt.address)
        else:
            worker.losses = 0
            self._freed(worker, now)

    def _freed(self, worker: Worker | None, now: float) -> None:
        if worker is not None:
            for tags in self._roster.waiting_pools(worker):
                self._assign(tags, now)

    def _drop(self, attempt: _Attempt, reason: str, now: float) -> None:
        """Try elsewhere and want nothing more of this attempt."""
        self._retire(attempt)
        self._actions.append(Cancel(attempt.wire_id))
        self._end(attempt, AttemptEnd.LOST, "", reason, now)

    def _finish(
        self,
        task: _Task,
        status: str,
        agent: str,
        result: str,
        error: str,
        now: float,
    ) -> None:
        del self._tasks[task.number]
        for attempt in list(task.live.values()):
            self._retire(attempt)
            self._actions.append(Cancel(attempt.wire_id))
            self._free(attempt, AttemptEnd.FAILED, now)
        self._actions.append(
            Finished(
                TaskResult(
                    id=task.line.id,
                    status=status,
                    agent=agent,
                    result=result,
                    attempts=task.attempts,
                    wall_ms=round((now - task.started) * 1000, 3),
                    error=error,
                )
            )
        )

    def _retire(self, attempt: _Attempt) -> None:
        self._attempts.pop(attempt.wire_id, None)
        attempt.task.live.pop(attempt.wire_id, None)
        self._retired[attempt.wire_id] = None
        if len(self._retired) > MAX_RETIRED:
            self._retired.popitem(last=False)

    def _deadline(self, number: int, now: float) -> None:
        task = self._tasks.get(number)
        if task is None:
            return
        last = next(reversed(task.live.values()), None)
        agent = last.name if last else ""
        error = "the task missed its deadline" if task.attempts else NO_WORKER
        self._finish(task, "FAILED", agent, "", error, now)

    def _limit(self, wire_id: str, now: float) -> None:
        attempt = self._attempts.get(wire_id)
        if attempt is not None and attempt.counts:
            limit = self._config.attempt_limit_s
            self._drop(attempt, f"the worker took longer than {limit:g} s", now)

    def _retry(self, number: int, now: float) -> None:
        task = self._tasks.get(number)
        if task is not None:
            # Before those that never had a turn: its turn has come once already.
            self._roster.waiting(task.tags).appendleft(number)
            self._assign(task.tags, now)


def _no_worker_with(tags: Tags) -> str:
    if not tags:
        return "there is no worker"
    names = ", ".join(sorted(tags))
    return f"no worker has the {'tag' if len(tags) == 1 else 'tags'} {names}"
