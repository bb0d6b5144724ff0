"""The schedule under any order of events, against a model of the hub's daemon."""

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

from pilotfleet.fleet.retry import RetryPolicy
from pilotfleet.fleet.roster import WorkerInfo
from pilotfleet.fleet.schedule import (
    Cancel,
    Collect,
    Finished,
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
        self.added = 0
        self.results: list[TaskResult] = []
        self.address: dict[str, str] = {}
        """Where each attempt was submitted to."""
        self.open: dict[str, str] = {}
        """Attempts that have not ended, with their status."""
        self.ended: dict[str, Update] = {}
        self.untold: list[str] = []
        """Ended attempts whose end the schedule has not been told."""
        self.told: set[str] = set()
        self.uncounted: set[str] = set()
        """Attempts that the schedule gave up, or that cannot be reached."""
        self.collected: set[str] = set()

    @initialize(concurrency=st.integers(1, 3), seed=PICK, limited=st.booleans())
    def begin(self, concurrency: int, seed: int, *, limited: bool) -> None:
        self.concurrency = concurrency
        config = ScheduleConfig(
            concurrency=concurrency,
            deadline_s=300.0 if limited else None,
            attempt_limit_s=40.0 if limited else None,
            unmatched_s=20.0,
            policy=RetryPolicy(max_attempts=4, retry_failed=seed % 2),
        )
        self.schedule = Schedule(config, run_id="run", rng=random.Random(seed))

    @rule(tags=st.sampled_from(["", "a", "b", "ab", "c"]))
    def add(self, tags: str) -> None:
        self.added += 1
        self.schedule.add(TaskLine(str(self.added), "text", tuple(tags)), self.now)
        self.act()

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
        del self.open[wire_id]
        self.schedule.submit_failed(wire_id, "busy", self.now)
        self.act()

    @invariant()
    def no_task_ends_twice(self) -> None:
        counts = Counter(result.id for result in self.results)
        assert set(counts.values()) <= {1}

    @invariant()
    def no_worker_has_more_than_its_share(self) -> None:
        known = self.told | self.uncounted
        waiting = [*self.open, *self.untold]
        load = Counter(self.address[wire] for wire in waiting if wire not in known)
        assert all(count <= self.concurrency for count in load.values())

    @invariant()
    def only_what_has_ended_is_collected(self) -> None:
        assert self.collected <= self.told

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
            self.wait(30.0)
            if not (self.schedule.open_count or self.open or self.untold):
                break
        self.no_task_ends_twice()
        assert len(self.results) == self.added
        assert self.schedule.open_count == 0
        assert self.collected == self.told == self.ended.keys()

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
                    self.address[wire_id] = address
                    self.open[wire_id] = ""
                case Cancel(wire_id):
                    self.uncounted.add(wire_id)
                    if wire_id in self.open:
                        self.finish(wire_id, {"status": "CANCELLED"})
                case Collect(wire_id):
                    self.collected.add(wire_id)
                case Finished(result):
                    self.results.append(result)


TestSchedule = ScheduleMachine.TestCase
TestSchedule.settings = settings(max_examples=100, stateful_step_count=60)
