"""The schedule under any order of events, against a model of the hub's daemon.

The model's daemon keeps attempts until they are collected, and its caller keeps lines
and results; the schedule may be killed at any moment and begun anew from these.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from pilotfleet.fleet.attempts import task_key, wire_key
from pilotfleet.fleet.retry import RetryPolicy
from pilotfleet.fleet.roster import WorkerInfo
from pilotfleet.fleet.schedule import (
    Cancel,
    Collect,
    Finished,
    Inspect,
    Schedule,
    ScheduleConfig,
    Submit,
    TaskResult,
    Update,
)
from pilotfleet.fleet.taskfile import TaskLine

WORKERS = {
    name: WorkerInfo(name, name, frozenset(tags))
    for name, tags in {"w1": "a", "w2": "b", "w3": "ab", "w4": ""}.items()
}
ENDS: list[dict[str, Any]] = [
    {"status": "SUCCEEDED", "result": "done"},
    {"status": "FAILED", "reason": "exit status 1"},
    {"status": "FAILED", "is_retryable": True},
    {"status": "DECLINED"},
    {"status": "EXPIRED"},
]
PICK = st.integers(0, 1 << 16)


class ScheduleMachine(RuleBasedStateMachine):
    """What a daemon may do to the attempts it is given, and when it says so."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.concurrency = 1
        self.lines: dict[str, TaskLine] = {}
        self.added_at: dict[str, float] = {}
        """When the present schedule was given a line."""
        self.results: list[TaskResult] = []
        """On the caller's disk."""
        self.finished: list[TaskResult] = []
        """Handed out, and not on the caller's disk yet."""
        self.address: dict[str, str] = {}
        """Where each attempt was submitted to; the daemon never forgets an id."""
        self.open: dict[str, str] = {}
        """Attempts that have not ended, with their status."""
        self.ended: dict[str, Update] = {}
        self.untold: list[str] = []
        """Ended attempts whose end the schedule has not been told."""
        self.asked: list[str] = []
        """Ended attempts whose end the schedule has asked for."""
        self.told: set[str] = set()
        self.uncounted: set[str] = set()
        """Attempts that the schedule gave up, or that cannot be reached."""
        self.collected: set[str] = set()
        self.won: set[str] = set()
        """Keys of tasks that had succeeded when the schedule began."""

    @initialize(concurrency=st.integers(1, 3), seed=PICK, limited=st.booleans())
    def begin(self, concurrency: int, seed: int, *, limited: bool) -> None:
        self.concurrency = concurrency
        self.config = ScheduleConfig(
            concurrency=concurrency,
            deadline_s=300.0 if limited else None,
            attempt_limit_s=40.0 if limited else None,
            unmatched_s=20.0,
            policy=RetryPolicy(max_attempts=4, retry_failed=seed % 2),
        )
        self.rng = random.Random(seed)
        self.schedule = Schedule(self.config, run_id="run", rng=self.rng)

    @rule(
        tags=st.sampled_from(["", "a", "b", "ab", "c"]),
        priority=st.integers(-1, 1),
        deadline=st.sampled_from(["", "", "8s", "1m"]),
    )
    def add(self, tags: str, priority: int, deadline: str) -> None:
        name = str(len(self.lines) + 1)
        line = TaskLine(name, "text", tuple(tags), priority, deadline)
        self.lines[name] = line
        self.give(line)

    @precondition(lambda self: self.finished)
    @rule()
    def take(self) -> None:
        """Put the oldest result on the disk, and say so."""
        result = self.finished.pop(0)
        self.results.append(result)
        self.schedule.taken(result.id)
        self.act()

    @precondition(lambda self: self.open or self.finished)
    @rule(seed=PICK, unheard=st.booleans(), discovers=st.booleans())
    def restart(self, seed: int, *, unheard: bool, discovers: bool) -> None:
        """Kill the schedule and its caller, and begin anew."""
        if unheard and self.finished:
            # On the disk, but killed before the schedule heard of it.
            self.results.append(self.finished.pop(0))
        self.finished.clear()
        self.asked.clear()
        self.untold.clear()
        self.uncounted = set(self.open)
        self.schedule = Schedule(self.config, run_id="run", rng=self.rng)
        kept = [wire for wire in self.address if wire not in self.collected]
        for wire_id in random.Random(seed).sample(kept, len(kept)):
            status = self.open.get(wire_id)
            if status is None:
                status = self.ended[wire_id].status
            self.schedule.adopt(wire_id, self.address[wire_id], status or "NEW")
        self.won = {
            wire_key(wire)
            for wire in kept
            if wire in self.ended and self.ended[wire].status == "SUCCEEDED"
        }
        if discovers:
            self.schedule.set_workers(WORKERS.values(), self.now)
        done = {result.id for result in self.results}
        for name, line in self.lines.items():
            if name not in done:
                self.give(line)
        self.schedule.give_up_past()
        self.act()

    def give(self, line: TaskLine) -> None:
        self.added_at[line.id] = self.now
        self.schedule.add(line, self.now)
        self.act()

    @rule(name=st.sampled_from(sorted(WORKERS)))
    def lose(self, name: str) -> None:
        self.schedule.lost(name, "dead", self.now)
        self.act()
        had = [wire for wire in self.open if self.address[wire] == name]
        assert not {wire for wire in had if wire not in self.uncounted}

    @rule(names=st.sets(st.sampled_from(sorted(WORKERS))))
    def discover(self, names: set[str]) -> None:
        self.schedule.set_workers([WORKERS[name] for name in names], self.now)
        self.act()

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.schedule.handle_timer(self.now)
        self.act()

    @precondition(lambda self: self.open)
    @rule(pick=PICK, status=st.sampled_from(["ACCEPTED", "EXECUTING"]))
    def report(self, pick: int, status: str) -> None:
        wire_id = self.pick(self.open, pick)
        if self.open[wire_id] == "EXECUTING" and status == "ACCEPTED":
            self.uncounted.add(wire_id)
        self.open[wire_id] = status
        self.say(Update(wire_id, status))

    @precondition(lambda self: self.open)
    @rule(pick=PICK)
    def lose_sight(self, pick: int) -> None:
        wire_id = self.pick(self.open, pick)
        self.uncounted.add(wire_id)
        self.say(Update(wire_id, self.open[wire_id], is_reachable=False))

    @precondition(lambda self: self.open)
    @rule(pick=PICK, end=st.sampled_from(ENDS), is_told=st.booleans())
    def end(self, pick: int, end: dict[str, Any], *, is_told: bool) -> None:
        self.finish(self.pick(self.open, pick), end)
        if is_told:
            self.tell(len(self.untold) - 1)

    @rule()
    def have_a_good_time(self) -> None:
        """Let everybody be there and do what there is, as is usual."""
        self.discover(set(WORKERS))
        for wire_id in list(self.open):
            if wire_id in self.open:
                self.finish(wire_id, ENDS[0])
                self.tell(len(self.untold) - 1)

    @precondition(lambda self: self.asked)
    @rule()
    def answer(self) -> None:
        """Say how an attempt ended that the schedule asked for."""
        wire_id = self.asked.pop(0)
        self.told.add(wire_id)
        self.say(self.ended[wire_id])

    @precondition(lambda self: self.untold)
    @rule(pick=PICK)
    def tell_late(self, pick: int) -> None:
        self.tell(pick % len(self.untold))

    @precondition(lambda self: self.told)
    @rule(pick=PICK)
    def tell_again(self, pick: int) -> None:
        self.say(self.ended[self.pick(dict.fromkeys(sorted(self.told)), pick)])

    @precondition(lambda self: "" in self.open.values())
    @rule(pick=PICK)
    def refuse(self, pick: int) -> None:
        """Fail the call that submitted an attempt: the daemon knows nothing of it."""
        silent = {wire: "" for wire, status in self.open.items() if not status}
        wire_id = self.pick(silent, pick)
        del self.open[wire_id], self.address[wire_id]
        self.schedule.submit_failed(wire_id, "busy", self.now)
        self.act()

    @invariant()
    def no_task_ends_twice(self) -> None:
        counts = Counter(result.id for result in [*self.results, *self.finished])
        assert set(counts.values()) <= {1}

    @invariant()
    def no_worker_has_more_than_its_share(self) -> None:
        known = self.told | self.uncounted
        waiting = [*self.open, *self.untold]
        load = Counter(self.address[wire] for wire in waiting if wire not in known)
        assert all(count <= self.concurrency for count in load.values())

    @invariant()
    def only_what_has_ended_is_collected(self) -> None:
        assert self.collected <= self.ended.keys()

    @invariant()
    def nothing_is_collected_before_its_result_is_safe(self) -> None:
        done = {task_key(result.id) for result in self.results}
        assert {wire_key(wire) for wire in self.collected} <= done

    @invariant()
    def nobody_is_late(self) -> None:
        """See that a task whose deadline has passed is done."""
        done = {result.id for result in [*self.results, *self.finished]}
        for name, added_at in self.added_at.items():
            deadline_s = self.lines[name].deadline_s
            if deadline_s is not None and self.now >= added_at + deadline_s:
                assert name in done

    @invariant()
    def the_most_urgent_goes_first(self) -> None:
        """See that nobody waits while a less urgent task of its kind got its worker."""
        if not hasattr(self, "schedule"):
            return
        for pool in self.schedule._roster._pools.values():
            if pool.waiting:
                assert self.schedule._roster.choose(pool.tags) is None

    def teardown(self) -> None:
        """Let everybody be well, and see that nothing was lost."""
        if not hasattr(self, "schedule"):
            return
        for _ in range(200):
            self.discover(set(WORKERS))
            for wire_id in list(self.open):
                self.finish(wire_id, ENDS[0])
            while self.untold:
                self.tell(0)
            while self.asked:
                self.answer()
            while self.finished:
                self.take()
            self.wait(30.0)
            if not (self.schedule.open_count or self.open or self.untold):
                break
        while self.finished:
            self.take()
        self.no_task_ends_twice()
        assert len(self.results) == len(self.lines)
        assert self.schedule.open_count == 0
        assert not self.schedule.has_past
        assert self.collected == self.ended.keys()

    # The daemon

    @staticmethod
    def pick(items: dict[str, Any], pick: int) -> str:
        return list(items)[pick % len(items)]

    def finish(self, wire_id: str, end: dict[str, Any]) -> None:
        del self.open[wire_id]
        self.ended[wire_id] = Update(wire_id, **end)
        self.untold.append(wire_id)

    def tell(self, index: int) -> None:
        wire_id = self.untold.pop(index)
        self.told.add(wire_id)
        self.say(self.ended[wire_id])

    def say(self, update: Update) -> None:
        self.schedule.update(update, self.now)
        self.act()

    def act(self) -> None:
        while (action := self.schedule.next_action()) is not None:
            match action:
                case Submit(wire_id, address, _):
                    assert wire_id not in self.address
                    assert wire_key(wire_id) not in self.won, "it had succeeded"
                    self.address[wire_id] = address
                    self.open[wire_id] = ""
                case Cancel(wire_id):
                    self.uncounted.add(wire_id)
                    if wire_id in self.open:
                        self.finish(wire_id, {"status": "CANCELLED"})
                case Inspect(wire_id):
                    assert wire_id in self.ended
                    self.asked.append(wire_id)
                case Collect(wire_id):
                    self.collected.add(wire_id)
                case Finished(result):
                    self.finished.append(result)


TestSchedule = ScheduleMachine.TestCase
TestSchedule.settings = settings(max_examples=100, stateful_step_count=60)
