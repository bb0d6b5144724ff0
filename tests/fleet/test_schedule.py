"""The schedule without a daemon: every task ends once, whatever workers do."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.fleet import schedule as schedules
from pilotfleet.fleet.retry import RetryPolicy
from pilotfleet.fleet.roster import WorkerInfo
from pilotfleet.fleet.schedule import (
    NO_WORKER,
    Action,
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


class Bench:
    """A schedule, a clock, and what the schedule asked for."""

    def __init__(self, *workers: str, **config: Any) -> None:
        self.schedule = Schedule(
            ScheduleConfig(**config), run_id="run", rng=random.Random(1)
        )
        self.now = 0.0
        self.submits: list[Submit] = []
        self.cancels: list[str] = []
        self.collects: list[str] = []
        self.results: list[TaskResult] = []
        self.see(*workers)

    def see(self, *workers: str) -> None:
        infos = [WorkerInfo(name, name, frozenset({"w"})) for name in workers]
        self.schedule.set_workers(infos, self.now)
        self.drain()

    def add(self, task_id: str, *tags: str) -> None:
        self.schedule.add(TaskLine(task_id, f"text of {task_id}", tags), self.now)
        self.drain()

    def say(self, wire_id: str, status: str, **fields: Any) -> None:
        self.schedule.update(Update(wire_id, status, **fields), self.now)
        self.drain()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.schedule.handle_timer(self.now)
        self.drain()

    def drain(self) -> None:
        while (action := self.schedule.next_action()) is not None:
            self.take(action)

    def take(self, action: Action) -> None:
        match action:
            case Submit():
                self.submits.append(action)
            case Cancel(wire_id):
                self.cancels.append(wire_id)
            case Collect(wire_id):
                self.collects.append(wire_id)
            case Finished(result):
                self.results.append(result)

    @property
    def last(self) -> Submit:
        return self.submits[-1]


def test_a_task_goes_to_a_worker_and_its_result_comes_back() -> None:
    bench = Bench("w1")
    bench.add("a", "w")
    [submit] = bench.submits
    assert submit.address == "w1"
    assert submit.task == "text of a"
    bench.now = 1.5
    bench.say(submit.wire_id, "SUCCEEDED", result="done")
    assert bench.results == [TaskResult("a", "SUCCEEDED", "w1", "done", 1, 1500.0)]
    assert bench.collects == [submit.wire_id]
    assert bench.schedule.open_count == 0


def test_wire_ids_are_allowed_on_the_wire_and_new_with_each_run() -> None:
    ids = set()
    for run in ("one", "two"):
        schedule = Schedule(run_id=run * 100)
        schedule.set_workers([WorkerInfo("w", "w", frozenset())], 0.0)
        schedule.add(TaskLine("é \ud800" * 99, "x"), 0.0)
        action = schedule.next_action()
        assert isinstance(action, Submit)
        assert len(action.wire_id) <= 64
        assert action.wire_id.replace("-", "").isalnum()
        ids.add(action.wire_id)
    assert len(ids) == 2


def test_tasks_wait_for_a_worker_with_their_tags() -> None:
    bench = Bench()
    bench.add("a", "w")
    bench.add("b", "other")
    assert not bench.submits
    bench.see("w1")
    assert [submit.task for submit in bench.submits] == ["text of a"]


def test_a_worker_has_no_more_open_than_allowed() -> None:
    bench = Bench("w1", "w2", concurrency=2)
    for number in range(10):
        bench.add(f"t{number}")
    assert Counter(s.address for s in bench.submits) == {"w1": 2, "w2": 2}
    bench.say(bench.submits[0].wire_id, "SUCCEEDED")
    assert len(bench.submits) == 5
    assert bench.last.address == bench.submits[0].address


def test_room_is_bounded() -> None:
    bench = Bench(max_open=2)
    bench.add("a")
    assert bench.schedule.has_room
    bench.add("b")
    assert not bench.schedule.has_room


def test_two_tasks_may_have_the_same_id() -> None:
    bench = Bench("w1", "w2")
    bench.add("a")
    bench.add("a")
    assert len({submit.wire_id for submit in bench.submits}) == 2
    for submit in bench.submits:
        bench.say(submit.wire_id, "SUCCEEDED", result=submit.address)
    assert sorted(result.result for result in bench.results) == ["w1", "w2"]


@pytest.mark.parametrize("status", ["DECLINED", "CANCELLED", "EXPIRED"])
def test_a_lost_task_is_tried_on_another_worker(status: str) -> None:
    bench = Bench("w1", "w2")
    bench.add("a")
    first = bench.last
    bench.say(first.wire_id, status)
    assert bench.collects == [first.wire_id]
    bench.wait(0.2)
    assert bench.last.address != first.address
    bench.say(bench.last.wire_id, "SUCCEEDED", result="done")
    assert bench.results[0].attempts == 2


def test_a_failed_command_is_final() -> None:
    bench = Bench("w1", "w2")
    bench.add("a")
    bench.say(bench.last.wire_id, "FAILED", reason="exit status 3")
    [result] = bench.results
    assert (result.status, result.error, result.attempts) == (
        "FAILED",
        "exit status 3",
        1,
    )


def test_a_failed_command_is_repeated_when_that_is_wanted() -> None:
    bench = Bench("w1", "w2", policy=RetryPolicy(retry_failed=1))
    bench.add("a")
    bench.say(bench.last.wire_id, "FAILED")
    bench.wait(1.0)
    bench.say(bench.last.wire_id, "FAILED")
    assert [result.attempts for result in bench.results] == [2]


def test_a_killed_command_is_repeated_up_to_the_limit() -> None:
    bench = Bench("w1", "w2", "w3", policy=RetryPolicy(max_attempts=3))
    bench.add("a")
    for _ in range(3):
        bench.say(bench.last.wire_id, "FAILED", is_retryable=True, reason="killed")
        bench.wait(100.0)
    assert len({submit.address for submit in bench.submits}) == 3
    assert [(r.status, r.attempts, r.error) for r in bench.results] == [
        ("FAILED", 3, "killed")
    ]


def test_the_only_worker_is_tried_again_after_its_rest() -> None:
    bench = Bench("w1")
    bench.add("a")
    bench.say(bench.last.wire_id, "EXPIRED")
    bench.wait(0.3)
    assert len(bench.submits) == 1, "it rests"
    bench.wait(1.0)
    assert len(bench.submits) == 2


def test_a_worker_program_that_goes_away_loses_its_task() -> None:
    bench = Bench("w1", "w2")
    bench.add("a")
    first = bench.last
    bench.say(first.wire_id, "ACCEPTED")
    bench.say(first.wire_id, "EXECUTING")
    assert not bench.cancels
    bench.say(first.wire_id, "ACCEPTED")
    assert bench.cancels == [first.wire_id]
    bench.wait(1.0)
    assert bench.last.address != first.address


def test_an_unreachable_worker_may_still_win() -> None:
    bench = Bench("w1", "w2")
    bench.add("a")
    first = bench.last
    bench.say(first.wire_id, "EXECUTING")
    bench.say(first.wire_id, "EXECUTING", is_reachable=False)
    bench.say(first.wire_id, "EXECUTING", is_reachable=False)
    bench.wait(1.0)
    second = bench.last
    assert second.address != first.address
    bench.say(first.wire_id, "SUCCEEDED", result="late")
    assert bench.cancels == [second.wire_id]
    assert [result.result for result in bench.results] == ["late"]
    bench.say(second.wire_id, "SUCCEEDED", result="later")
    assert len(bench.results) == 1
    assert bench.collects == [first.wire_id, second.wire_id]


def test_a_retry_that_is_lost_is_repeated_while_the_first_is_silent() -> None:
    bench = Bench("w1", "w2", "w3")
    bench.add("a")
    bench.say(bench.last.wire_id, "EXECUTING")
    bench.say(bench.last.wire_id, "EXECUTING", is_reachable=False)
    bench.wait(1.0)
    bench.say(bench.last.wire_id, "EXPIRED")
    bench.wait(1.0)
    assert len(bench.submits) == 3
    bench.say(bench.last.wire_id, "SUCCEEDED")
    assert bench.results[0].attempts == 3


def test_two_losses_of_one_task_start_one_retry() -> None:
    bench = Bench("w1", "w2", "w3")
    bench.add("a")
    first = bench.last
    bench.say(first.wire_id, "EXECUTING")
    bench.say(first.wire_id, "EXECUTING", is_reachable=False)
    bench.say(first.wire_id, "EXPIRED")
    bench.wait(1.0)
    assert len(bench.submits) == 2


def test_a_deadline_ends_a_running_task_and_frees_its_worker() -> None:
    bench = Bench("w1", deadline_s=10.0)
    bench.add("a")
    bench.wait(10.0)
    [result] = bench.results
    assert (result.agent, result.error) == ("w1", "the task missed its deadline")
    assert bench.cancels == [bench.last.wire_id]
    bench.add("c")
    assert bench.last.task == "text of c"


def test_a_deadline_ends_a_task_that_nobody_took() -> None:
    bench = Bench(deadline_s=10.0)
    bench.add("a")
    bench.wait(10.0)
    assert [(r.agent, r.error, r.attempts) for r in bench.results] == [
        ("", NO_WORKER, 0)
    ]


def test_an_attempt_limit_moves_a_task_on() -> None:
    bench = Bench("w1", "w2", attempt_limit_s=5.0)
    bench.add("a")
    bench.wait(5.0)
    assert bench.cancels == [bench.submits[0].wire_id]
    bench.wait(1.0)
    assert len({submit.address for submit in bench.submits}) == 2


def test_a_refused_submission_is_tried_elsewhere() -> None:
    bench = Bench("w1", "w2")
    bench.add("a")
    first = bench.last
    bench.schedule.submit_failed(first.wire_id, "busy", bench.now)
    bench.schedule.submit_failed(first.wire_id, "busy", bench.now)
    bench.wait(1.0)
    assert len(bench.submits) == 2
    assert bench.last.address != first.address


def test_a_task_whose_tags_nobody_carries_fails_and_names_them() -> None:
    bench = Bench("w1", unmatched_s=30.0)
    bench.add("a", "wrkr", "gpu")
    bench.wait(29.0)
    assert not bench.results
    bench.wait(1.0)
    [result] = bench.results
    assert (result.status, result.error) == (
        "FAILED",
        "no worker has the tags gpu, wrkr",
    )


def test_tags_that_appear_in_time_save_their_tasks() -> None:
    bench = Bench(unmatched_s=30.0)
    bench.add("a", "w")
    bench.wait(29.0)
    bench.see("w1")
    bench.wait(5.0)
    bench.say(bench.last.wire_id, "SUCCEEDED")
    assert [result.status for result in bench.results] == ["SUCCEEDED"]


def test_a_kind_of_worker_that_is_only_busy_is_waited_for() -> None:
    bench = Bench("w1", unmatched_s=30.0)
    bench.add("a", "w")
    bench.add("b", "w")
    bench.wait(1000.0)
    assert not bench.results


def test_updates_of_others_are_left_alone() -> None:
    bench = Bench("w1")
    bench.say("somebody-elses", "SUCCEEDED")
    assert not bench.schedule.is_ours("somebody-elses")
    assert not bench.collects


def test_timers_of_ended_attempts_do_not_pile_up() -> None:
    bench = Bench("w1", attempt_limit_s=1e6, deadline_s=1e6)
    for number in range(3 * schedules.MIN_TIMERS):
        bench.add(f"t{number}")
        bench.say(bench.last.wire_id, "SUCCEEDED")
    assert len(bench.schedule._timers) <= schedules.MIN_TIMERS + 32
    bench.add("last")
    bench.wait(1e6)
    assert bench.results[-1].id == "last", "its own timer is still there"


EVENTS = st.sampled_from(
    [
        "SUCCEEDED",
        "FAILED",
        "KILLED",
        "EXPIRED",
        "EXECUTING",
        "LOST",
        "ACCEPTED",
        "CALL",
    ]
)


@given(
    tasks=st.integers(1, 12),
    workers=st.integers(1, 4),
    events=st.lists(st.tuples(EVENTS, st.integers(0, 99)), max_size=80),
)
def test_every_task_ends_exactly_once(
    tasks: int, workers: int, events: list[tuple[str, int]]
) -> None:
    names = [f"w{number}" for number in range(workers)]
    bench = Bench(*names, concurrency=2, attempt_limit_s=50.0, unmatched_s=1e9)
    for number in range(tasks):
        bench.add(f"t{number}")
    for event, number in events:
        if number % 5 == 0:
            bench.see(*names[: number % (workers + 1)])
        if bench.submits:
            play(bench, event, bench.submits[number % len(bench.submits)].wire_id)
        bench.wait(0.5)
        open_by_worker = Counter(
            attempt.address
            for attempt in bench.schedule._attempts.values()
            if attempt.counts
        )
        assert all(count <= 2 for count in open_by_worker.values())
    bench.see(*names)
    for _ in range(100):
        for submit in bench.submits:
            bench.say(submit.wire_id, "SUCCEEDED")
        bench.wait(20.0)
    assert sorted(result.id for result in bench.results) == sorted(
        f"t{number}" for number in range(tasks)
    )
    assert bench.schedule.open_count == 0


def play(bench: Bench, event: str, wire_id: str) -> None:
    match event:
        case "KILLED":
            bench.say(wire_id, "FAILED", is_retryable=True)
        case "LOST":
            bench.say(wire_id, "EXECUTING", is_reachable=False)
        case "CALL":
            bench.schedule.submit_failed(wire_id, "busy", bench.now)
            bench.drain()
        case _:
            bench.say(wire_id, event)
