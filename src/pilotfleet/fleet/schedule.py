"""Which task goes to which worker, and what becomes of it. Performs no I/O.

A task is tried until an attempt succeeds, fails for good, or the policy gives up.
Each attempt has its own id on the wire, so whatever a worker says late still finds
its task, and the first outcome wins: exactly one result leaves for each task.

The daemon keeps every attempt until it is *collected*, and that is not before the
result of its task was :meth:`taken <Schedule.taken>`. So a schedule that begins anew
with the same run id finds all attempts of unfinished tasks at the daemon
(:meth:`Schedule.adopt`) and goes on where the last one was: nothing that has finished
or is under way is submitted again.

The shell feeds tasks, discovery and updates in, and drains :meth:`next_action`.
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import AlreadyExists
from pilotfleet.fleet.actions import (
    Action,
    Cancel,
    Collect,
    Finished,
    Inspect,
    Submit,
    TaskResult,
    Update,
)
from pilotfleet.fleet.attempts import (
    Attempt,
    PastAttempts,
    Task,
    run_prefix,
    task_key,
    wire_key,
)
from pilotfleet.fleet.retry import AttemptEnd, Judge, RetryPolicy
from pilotfleet.fleet.roster import MAX_POOLS, Roster, Tags, Worker, WorkerInfo
from pilotfleet.fleet.timers import Timer, Timers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pilotfleet.fleet.attempts import Past
    from pilotfleet.fleet.taskfile import TaskLine
    from pilotfleet.fleet.waiting import WaitingTasks

__all__ = [
    "Action",
    "Cancel",
    "Collect",
    "Finished",
    "Inspect",
    "Schedule",
    "ScheduleConfig",
    "Submit",
    "TaskResult",
    "Update",
]

MAX_RETIRED: Final = 100_000
"""Finished attempts that are still recognised when they are heard of again."""
UNREACHABLE: Final = "the worker cannot be reached"
PROGRAM_GONE: Final = "the worker program went away"
NO_WORKER: Final = "no worker took the task before its deadline"
MISSED: Final = "the task missed its deadline"

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
    """Tasks whose result was not taken; more are not read from the source, and of
    these alone the most urgent goes first. A daemon keeps 10,000 open for an agent."""
    deadline_s: float | None = None
    """A task that takes longer, waiting included, fails; a line may ask for less."""
    attempt_limit_s: float | None = None
    """An attempt that takes longer counts as lost."""
    unmatched_s: float = 30.0
    """A task whose tags no worker carries for so long fails. Less gives up on workers
    that only restart; more hides a misspelt tag for longer."""
    policy: RetryPolicy = field(default_factory=RetryPolicy)


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
        self._prefix = run_prefix(run_id)
        self._rng = rng or random.Random()
        self._judge = Judge(self._config.policy)
        self._roster = Roster(concurrency=self._config.concurrency)
        self._tasks: dict[int, Task] = {}
        """Tasks that are not finished, by number."""
        self._by_key: dict[str, Task] = {}
        self._untaken: dict[str, list[str]] = {}
        """What the daemon keeps of finished tasks whose results were not taken."""
        self._task_count = 0
        self._retried = 0
        self._attempts: dict[str, Attempt] = {}
        self._retired: OrderedDict[str, None] = OrderedDict()
        self._past = PastAttempts()
        self._timers = Timers(self._entry_count, self._is_wanted)
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
        return len(self._tasks) + len(self._untaken) < self._config.max_open

    @property
    def has_past(self) -> bool:
        """True while there are attempts whose tasks nobody has added."""
        return len(self._past) > 0

    @property
    def worker_count(self) -> int:
        """Workers known."""
        return len(self._roster)

    @property
    def prefix(self) -> str:
        """What the ids of all attempts of this run begin with."""
        return self._prefix

    def status(self) -> dict[str, int]:
        """Return what there is to do, and who does it; looks at all of it."""
        busy, resting = self._roster.counts()
        return {
            "workers": len(self._roster),
            "busy": busy,
            "resting": resting,
            "open": len(self._tasks),
            "waiting": sum(task.is_waiting for task in self._tasks.values()),
            "retried": self._retried,
        }

    def adopt(self, wire_id: str, address: str, status: str) -> None:
        """Take over an attempt of an earlier life of this run, before its task."""
        if wire_id.startswith(self._prefix):
            self._past.add(wire_id, address, status)

    def give_up_past(self) -> None:
        """Let go of the attempts whose tasks nobody has added: they are done."""
        self._let_go(self._past.give_up())

    def add(self, line: TaskLine, now: float) -> None:
        """Take on a task. An id stands for one task in all the life of a run.

        Raises:
            InvalidArgument: The line is not one that may be given.
            AlreadyExists: The id's result has not been taken.
        """
        line.check()
        key = task_key(line.id)
        if key in self._by_key or key in self._untaken:
            raise AlreadyExists(
                f"task {line.id!r} is under way already",
                hint="give each task of a run its own id",
            )
        self._task_count += 1
        task = Task(line, key, self._task_count, now)
        self._tasks[task.number] = self._by_key[key] = task
        limits = [line.deadline_s, self._config.deadline_s]
        limit = min((limit for limit in limits if limit is not None), default=None)
        if limit is not None:
            task.deadline = now + limit
            self._timers.add(task.deadline, Timer.DEADLINE, task.number)
        past = self._past.take(key)
        if past is not None:
            self._resume(task, past, now)
        if task.is_waiting:
            self._queue(task, now)

    def taken(self, task_id: str) -> None:
        """Note that a result is safe: the daemon may forget the attempts."""
        for wire_id in self._untaken.pop(task_key(task_id), ()):
            self._actions.append(Collect(wire_id))

    def cancel(self, task_id: str, now: float) -> None:
        """Let go of a task: no result leaves, and its id may come again."""
        key = task_key(task_id)
        self.taken(task_id)
        task = self._by_key.pop(key, None)
        if task is None:
            self._let_go(self._past.give_up(key))
            return
        del self._tasks[task.number]
        self._past.forbid(key, task.attempts)
        self._withdraw(task, now)
        for wire_id in task.ended:
            self._actions.append(Collect(wire_id))

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
            self._heard_again(update)
            return
        if end is AttemptEnd.FAILED and update.is_retryable:
            end = AttemptEnd.KILLED
        if end is not None:
            self._retire(attempt)
            attempt.task.ended.append(update.wire_id)
            if end is AttemptEnd.LOST and not update.is_delivered:
                attempt.excuse()
            self._end(attempt, end, update.result, update.reason, now)
        elif not update.is_reachable:
            # Try elsewhere, but take its result if it comes after all.
            if attempt.counts:
                attempt.excuse()
                self._end(attempt, AttemptEnd.LOST, "", UNREACHABLE, now)
        elif update.status == "EXECUTING":
            attempt.was_executing = True
        elif update.status == "ACCEPTED" and attempt.was_executing:
            # The worker program went away, and nobody knows when one comes back.
            self._drop(attempt, PROGRAM_GONE, now)

    def submit_failed(
        self, wire_id: str, reason: str, now: float, *, is_for_now: bool = False
    ) -> None:
        """Note that the daemon refused to take an attempt, at present or for good."""
        attempt = self._attempts.get(wire_id)
        if attempt is not None:
            self._retire(attempt)
            if is_for_now:
                attempt.excuse()
            # Our own daemon said no, and the worker knows nothing of it.
            self._release(attempt, now)
            self._end(attempt, AttemptEnd.LOST, "", reason, now)

    def lost(self, agent: str, reason: str, now: float) -> None:
        """Note that a worker is dead: others do at once what it had.

        By address or by name; nothing happens if it is none of ours.
        """
        worker = self._roster.find(agent)
        if worker is None:
            return
        if not worker.rests_until:
            worker.conduct.rests += 1
            self._rest(worker, now)
        for wire_id in list(worker.open):
            attempt = self._attempts.get(wire_id)
            if attempt is not None:
                self._drop(attempt, reason, now, at_once=True)

    def is_live(self, wire_id: str) -> bool:
        """Return whether an attempt's outcome is still wanted."""
        return wire_id in self._attempts

    def is_ours(self, wire_id: str) -> bool:
        """Return whether an update concerns this run."""
        return (
            wire_id in self._attempts
            or wire_id in self._retired
            or wire_id in self._past
        )

    def next_timer(self) -> float | None:
        """Return when :meth:`handle_timer` wants to be called."""
        return self._timers.first()

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        for timer, key in self._timers.due(now):
            match timer:
                case Timer.DEADLINE:
                    self._deadline(key, now)
                case Timer.LIMIT:
                    self._limit(key, now)
                case Timer.RETRY:
                    self._retry(key, now)
                case Timer.REST:
                    self._freed(self._roster.wake(key, now), now)
                case Timer.UNMATCHED:
                    self._assign(key, now)

    def next_action(self) -> Action | None:
        """Return what the shell has to do next."""
        return self._actions.popleft() if self._actions else None

    def _entry_count(self) -> int:
        return len(self._tasks) + len(self._attempts) + len(self._roster)

    def _is_wanted(self, timer: Timer, key: Any) -> bool:
        """Return whether a timer still means something."""
        match timer:
            case Timer.DEADLINE | Timer.RETRY:
                return key in self._tasks
            case Timer.LIMIT:
                return key in self._attempts
        return True

    def _resume(self, task: Task, past: Past, now: float) -> None:
        """Go on with what an earlier life of this run has begun."""
        task.attempts = past.last
        self._retried += past.last > 1
        task.is_waiting = not past.attempts
        by_number = sorted(past.attempts, key=lambda wire_id: (len(wire_id), wire_id))
        for wire_id in by_number:
            address, status = past.attempts[wire_id]
            worker = self._roster.expect(address)
            attempt = self._start(task, wire_id, worker, now)
            if status in _ENDS:
                attempt.is_asked = True
                self._release(attempt, now)
                self._actions.append(Inspect(wire_id))

    def _let_go(self, past: Iterable[tuple[str, str]]) -> None:
        """Have the daemon end and forget attempts of an earlier life of this run."""
        for wire_id, status in past:
            self._remember(wire_id)
            is_over = status in _ENDS
            self._actions.append(Collect(wire_id) if is_over else Cancel(wire_id))

    def _queue(self, task: Task, now: float) -> None:
        self._roster.waiting(task.tags).push(task.rank)
        self._assign(task.tags, now)

    def _assign(self, tags: Tags, now: float) -> None:
        """Give waiting tasks to workers while there are both."""
        waiting = self._roster.waiting(tags)
        while waiting:
            task = self._tasks[waiting.first()[1]]
            worker = self._roster.choose(tags, task.tried)
            if worker is None:
                break
            waiting.pop()
            self._begin(task, worker, now)
        if waiting or tags in self._unmatched:
            self._check_match(tags, waiting, now)

    def _check_match(self, tags: Tags, waiting: WaitingTasks, now: float) -> None:
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
            self._timers.add(until, Timer.UNMATCHED, tags)
        if until <= now:
            error = _no_worker_with(tags)
            while waiting:
                task = self._tasks[waiting.pop()[1]]
                self._finish(task, "FAILED", "", "", error, now, retryable=True)

    def _begin(self, task: Task, worker: Worker, now: float) -> None:
        task.attempts += 1
        task.is_waiting = False
        self._retried += task.attempts == 2
        wire_id = f"{self._prefix}{task.key}-{task.attempts}"
        attempt = self._start(task, wire_id, worker, now)
        line = task.line
        self._actions.append(
            Submit(wire_id, attempt.address, line.task, line.priority, task.deadline)
        )

    def _start(self, task: Task, wire_id: str, worker: Worker, now: float) -> Attempt:
        """Note that an attempt is under way."""
        attempt = Attempt(task, wire_id, worker.info)
        self._attempts[wire_id] = task.live[wire_id] = attempt
        self._roster.begin(worker, wire_id)
        if self._config.attempt_limit_s is not None:
            self._timers.add(now + self._config.attempt_limit_s, Timer.LIMIT, wire_id)
        return attempt

    def _end(
        self,
        attempt: Attempt,
        end: AttemptEnd,
        result: str,
        reason: str,
        now: float,
        *,
        at_once: bool = False,
    ) -> None:
        """Decide what an attempt's end means for its task and its worker."""
        task = attempt.task
        task.failed += end is AttemptEnd.FAILED
        if end is not AttemptEnd.SUCCEEDED:
            task.tried.add(attempt.address)
        self._free(attempt, end, now)
        if task.number not in self._tasks:
            return
        # Another attempt is under way, or will be soon.
        is_busy = task.is_waiting or any(a.is_promising for a in task.live.values())
        may_retry = self._config.policy.allows_another(
            end,
            attempts=task.attempts,
            failed=task.failed,
            unreached=task.unreached,
        )
        if end is AttemptEnd.SUCCEEDED:
            self._finish(task, "SUCCEEDED", attempt.name, result, "", now)
        elif is_busy and (may_retry or end is not AttemptEnd.FAILED):
            return
        elif may_retry:
            self._try_again(task, now, at_once=at_once)
        else:
            name, again = attempt.name, end is not AttemptEnd.FAILED
            self._finish(task, "FAILED", name, result, reason, now, retryable=again)

    def _try_again(self, task: Task, now: float, *, at_once: bool) -> None:
        task.is_waiting = True
        if at_once:
            self._queue(task, now)
        else:
            pause = self._config.policy.pause_s(task.attempts, self._rng)
            self._timers.add(now + pause, Timer.RETRY, task.number)

    def _free(self, attempt: Attempt, end: AttemptEnd, now: float) -> None:
        """Give the attempt's place to somebody else, unless its worker has to rest."""
        worker = self._leave(attempt)
        if worker is None:
            return
        # What ends badly while the worker rests belongs to the same misfortune.
        is_new = end is AttemptEnd.SUCCEEDED or not worker.rests_until
        if is_new and self._judge.must_rest(
            worker.conduct,
            end,
            blamed=len(attempt.task.tried),
            workers=len(self._roster),
        ):
            self._rest(worker, now)
        self._freed(worker, now)

    def _release(self, attempt: Attempt, now: float) -> None:
        """Give the attempt's place to somebody else; nobody is to blame."""
        self._freed(self._leave(attempt), now)

    def _leave(self, attempt: Attempt) -> Worker | None:
        if not attempt.counts:
            return None
        attempt.counts = False
        return self._roster.end(attempt.address, attempt.wire_id)

    def _rest(self, worker: Worker, now: float) -> None:
        until = now + self._config.policy.rest_s(worker.conduct.rests, self._rng)
        self._roster.rest(worker, until)
        self._timers.add(until, Timer.REST, worker.info.address)

    def _freed(self, worker: Worker | None, now: float) -> None:
        if worker is not None and not worker.rests_until:
            for tags in self._roster.waiting_pools(worker):
                self._assign(tags, now)

    def _drop(
        self, attempt: Attempt, reason: str, now: float, *, at_once: bool = False
    ) -> None:
        """Try elsewhere and want nothing more of this attempt."""
        self._retire(attempt)
        self._actions.append(Cancel(attempt.wire_id))
        self._end(attempt, AttemptEnd.LOST, "", reason, now, at_once=at_once)

    def _finish(
        self,
        task: Task,
        status: str,
        agent: str,
        result: str,
        error: str,
        now: float,
        *,
        retryable: bool = False,
    ) -> None:
        del self._tasks[task.number], self._by_key[task.key]
        self._untaken[task.key] = task.ended
        self._withdraw(task, now)
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
                    retryable=retryable,
                )
            )
        )

    def _withdraw(self, task: Task, now: float) -> None:
        """Have nobody work on a task any more."""
        if task.is_waiting:
            self._roster.waiting(task.tags).discard(task.rank)
        for attempt in list(task.live.values()):
            self._retire(attempt)
            self._actions.append(Cancel(attempt.wire_id))
            self._release(attempt, now)

    def _retire(self, attempt: Attempt) -> None:
        self._attempts.pop(attempt.wire_id, None)
        attempt.task.live.pop(attempt.wire_id, None)
        self._remember(attempt.wire_id)

    def _remember(self, wire_id: str) -> None:
        self._retired[wire_id] = None
        if len(self._retired) > MAX_RETIRED:
            self._retired.popitem(last=False)

    def _heard_again(self, update: Update) -> None:
        """Apply an update of an attempt that is retired, or whose task is to come."""
        wire_id = update.wire_id
        if wire_id in self._past:
            self._past.update(wire_id, update.status)
        elif update.status in _ENDS and wire_id in self._retired:
            key = wire_key(wire_id)
            task = self._by_key.get(key)
            kept = task.ended if task is not None else self._untaken.get(key)
            if kept is None:
                self._actions.append(Collect(wire_id))
            elif wire_id not in kept:
                kept.append(wire_id)

    def _deadline(self, number: int, now: float) -> None:
        task = self._tasks.get(number)
        if task is None:
            return
        last = next(reversed(task.live.values()), None)
        agent = last.name if last else ""
        error = MISSED if task.attempts else NO_WORKER
        self._finish(task, "FAILED", agent, "", error, now)

    def _limit(self, wire_id: str, now: float) -> None:
        attempt = self._attempts.get(wire_id)
        if attempt is not None and attempt.counts:
            limit = self._config.attempt_limit_s
            self._drop(attempt, f"the worker took longer than {limit:g} s", now)

    def _retry(self, number: int, now: float) -> None:
        task = self._tasks.get(number)
        if task is not None:
            # Its number is that of its first turn: it comes before younger ones.
            self._queue(task, now)


def _no_worker_with(tags: Tags) -> str:
    if not tags:
        return "there is no worker"
    names = ", ".join(sorted(tags))
    return f"no worker has the {'tag' if len(tags) == 1 else 'tags'} {names}"
