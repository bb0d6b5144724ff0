"""The schedule without a daemon: every task ends once, whatever workers do."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import AlreadyExists, InvalidArgument
from pilotfleet.fleet.retry import RetryPolicy
from pilotfleet.fleet.roster import WorkerInfo
from pilotfleet.fleet.schedule import (
    NO_WORKER,
    Action,
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
from pilotfleet.fleet.timers import MIN_TIMERS


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
        self.inspects: list[str] = []
        self.results: list[TaskResult] = []
        if workers:
            self.see(*workers)

    def see(self, *workers: str) -> None:
        infos = [WorkerInfo(name, name, frozenset({"w"})) for name in workers]
        self.schedule.set_workers(infos, self.now)
        self.drain()

    def add(self, task_id: str, *tags: str, **fields: Any) -> None:
        line = TaskLine(task_id, f"text of {task_id}", tags, **fields)
        self.schedule.add(line, self.now)
        self.drain()

    def take_result(self, task_id: str) -> None:
        self.schedule.taken(task_id)
        self.drain()

    def lose(self, address: str) -> None:
        self.schedule.lost(address, "its process was killed", self.now)
        self.drain()

    def restart(
        self, open_attempts: dict[str, tuple[str, str]], *workers: str
    ) -> Bench:
        """Begin anew, with what the daemon knows of attempts: address and status."""
        bench = Bench(*workers)
        for wire_id, (address, status) in open_attempts.items():
            bench.schedule.adopt(wire_id, address, status)
        return bench

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
            case Inspect(wire_id):
                self.inspects.append(wire_id)
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
    assert not bench.collects, "the daemon keeps it until the result is safe"
    assert bench.schedule.open_count == 0
    bench.take_result("a")
    assert bench.collects == [submit.wire_id]


def test_wire_ids_are_new_with_each_run_and_each_attempt() -> None:
    ids = set()
    for run in ("one", "two"):
        schedule = Schedule(run_id=run * 100)
        schedule.set_workers([WorkerInfo("w", "w", frozenset())], 0.0)
        schedule.add(TaskLine("é \ud800" * 99, "x"), 0.0)
        action = schedule.next_action()
        assert isinstance(action, Submit)
        assert action.wire_id.startswith(schedule.prefix)
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


def test_room_is_bounded_by_what_was_not_taken() -> None:
    bench = Bench("w1", max_open=2)
    bench.add("a")
    assert bench.schedule.has_room
    bench.add("b")
    assert not bench.schedule.has_room
    bench.say(bench.last.wire_id, "SUCCEEDED")
    assert not bench.schedule.has_room
    bench.take_result("a")
    assert bench.schedule.has_room


def test_an_id_stands_for_one_task_until_its_result_is_taken() -> None:
    bench = Bench("w1")
    bench.add("a")
    with pytest.raises(AlreadyExists, match="'a' is under way"):
        bench.add("a")
    bench.say(bench.last.wire_id, "SUCCEEDED")
    with pytest.raises(AlreadyExists):
        bench.add("a")


@pytest.mark.parametrize(
    "fields", [{"priority": 101}, {"deadline": "soon"}, {"deadline": "0s"}]
)
def test_a_line_with_bad_values_is_refused(fields: dict[str, Any]) -> None:
    bench = Bench("w1")
    with pytest.raises(InvalidArgument):
        bench.add("a", **fields)
    assert bench.schedule.open_count == 0


def test_the_highest_priority_goes_first_then_the_oldest() -> None:
    bench = Bench()
    for task_id, priority in (("a", 0), ("b", -5), ("c", 7), ("d", 0), ("e", 7)):
        bench.add(task_id, priority=priority)
    bench.see("w1")
    for _ in range(5):
        bench.say(bench.last.wire_id, "SUCCEEDED")
    assert [result.id for result in bench.results] == ["c", "e", "a", "d", "b"]
    assert [submit.priority for submit in bench.submits] == [7, 7, 0, 0, -5]


def test_priority_counts_across_tags() -> None:
    bench = Bench("w1")
    bench.add("busy")
    bench.add("low", "w")
    bench.add("high", priority=1)
    bench.say(bench.last.wire_id, "SUCCEEDED")
    assert bench.last.task == "text of high"


def test_a_task_that_is_tried_again_keeps_its_place() -> None:
    bench = Bench("w1")
    bench.add("old")
    first = bench.last
    for number in range(3):
        bench.add(f"young{number}")
    bench.add("high", priority=1)
    bench.say(first.wire_id, "FAILED", is_retryable=True)
    assert bench.last.task == "text of high"
    bench.wait(0.2)
    bench.say(bench.last.wire_id, "SUCCEEDED")
    assert bench.last.task == "text of old"


@pytest.mark.parametrize("status", ["DECLINED", "CANCELLED", "EXPIRED"])
def test_a_lost_task_is_tried_on_another_worker(status: str) -> None:
    bench = Bench("w1", "w2")
    bench.add("a")
    first = bench.last
    bench.say(first.wire_id, status)
    bench.wait(0.2)
    assert bench.last.address != first.address
    bench.say(bench.last.wire_id, "SUCCEEDED", result="done")
    assert bench.results[0].attempts == 2
    assert not bench.collects, "the number of an attempt is used once only"
    bench.take_result("a")
    assert bench.collects == [first.wire_id, bench.last.wire_id]
    assert bench.schedule.status()["retried"] == 1


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


def test_workers_out_of_reach_cost_a_task_none_of_its_attempts() -> None:
    names = [f"w{number}" for number in range(9)]
    bench = Bench(*names, policy=RetryPolicy(max_attempts=3))
    bench.add("a")
    for _ in names[1:]:
        bench.say(bench.last.wire_id, "NEW", is_reachable=False)
        bench.wait(100.0)
    assert len(bench.submits) == len(names)
    assert not bench.results
    bench.say(bench.last.wire_id, "SUCCEEDED")
    assert [result.status for result in bench.results] == ["SUCCEEDED"]


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
    bench.take_result("a")
    assert bench.collects == [first.wire_id, second.wire_id]


def test_what_no_worker_has_had_costs_no_attempt() -> None:
    policy = RetryPolicy(max_attempts=2, max_excused=6, longest_rest_s=1.0)
    bench = Bench("w1", "w2", "w3", policy=policy)
    bench.add("a")
    for number in range(6):
        wire_id = bench.last.wire_id
        if number % 2:
            bench.say(wire_id, "NEW", is_reachable=False)
        bench.say(wire_id, "EXPIRED", is_delivered=False)
        bench.wait(20.0)
        assert bench.last.wire_id != wire_id
    # From here on it counts: there is a bound to patience.
    bench.say(bench.last.wire_id, "EXPIRED", is_delivered=False)
    bench.wait(20.0)
    bench.say(bench.last.wire_id, "EXPIRED", is_delivered=False)
    assert [result.status for result in bench.results] == ["FAILED"]


def test_a_daemon_that_is_busy_costs_no_attempt() -> None:
    bench = Bench("w1", policy=RetryPolicy(max_attempts=2))
    bench.add("a")
    for _ in range(6):
        bench.schedule.submit_failed(
            bench.last.wire_id, "busy", bench.now, is_for_now=True
        )
        bench.drain()
        bench.wait(20.0)
    assert not bench.results
    for _ in range(2):
        bench.schedule.submit_failed(bench.last.wire_id, "no text", bench.now)
        bench.drain()
        bench.wait(20.0)
    assert [result.error for result in bench.results] == ["no text"]


def test_an_end_that_is_heard_after_the_result_was_taken_is_collected() -> None:
    bench = Bench("w1", "w2", attempt_limit_s=5.0)
    bench.add("a")
    first = bench.last
    bench.wait(6.0)
    bench.wait(1.0)
    bench.say(bench.last.wire_id, "SUCCEEDED")
    bench.take_result("a")
    assert bench.collects == [bench.last.wire_id]
    bench.say(first.wire_id, "CANCELLED")
    assert bench.collects[1:] == [first.wire_id]


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


def test_a_line_may_have_a_deadline_of_its_own() -> None:
    bench = Bench("w1", deadline_s=10.0)
    bench.now = 100.0
    bench.add("short", deadline="2s")
    bench.add("long", deadline="1h")
    assert bench.submits[0].deadline == 102.0
    bench.wait(2.0)
    assert [result.id for result in bench.results] == ["short"]
    assert bench.last.deadline == 110.0, "the run's deadline bounds that of a line"
    bench.wait(8.0)
    assert bench.results[-1].error == "the task missed its deadline"
    assert bench.schedule.status() == {
        "workers": 1,
        "busy": 0,
        "resting": 0,
        "open": 0,
        "waiting": 0,
        "retried": 0,
    }


def test_tasks_that_miss_their_deadline_leave_the_queue() -> None:
    bench = Bench()
    for number in range(500):
        bench.add(f"t{number}", deadline="1s")
        bench.wait(1.0)
    bench.add("last")
    bench.see("w1")
    assert bench.last.task == "text of last"
    assert len(bench.results) == 500


def test_a_lost_worker_has_its_tasks_done_by_others_at_once() -> None:
    bench = Bench("w1", "w2", concurrency=2)
    for task_id in "abcd":
        bench.add(task_id)
    had = [submit for submit in bench.submits if submit.address == "w1"]
    bench.see("w1", "w2", "w3")
    bench.lose("w1")
    assert bench.cancels == [submit.wire_id for submit in had]
    assert [submit.address for submit in bench.submits[4:]] == ["w3", "w3"]
    assert bench.schedule.status()["resting"] == 1
    bench.lose("w1")
    bench.lose("nobody")
    assert len(bench.submits) == 6
    bench.add("e")
    assert len(bench.submits) == 6, "it gets nothing while it rests"
    bench.wait(1.0)
    assert bench.last.address == "w1"


def test_a_worker_that_loses_many_tasks_at_once_rests_for_one_misfortune() -> None:
    bench = Bench("w1", concurrency=8)
    for number in range(8):
        bench.add(f"t{number}")
    for submit in bench.submits[:]:
        bench.say(submit.wire_id, "EXECUTING", is_reachable=False)
    bench.wait(1.0)
    assert bench.schedule.status()["resting"] == 0


def test_a_task_that_kills_every_worker_blames_none_but_the_first() -> None:
    bench = Bench("w1", "w2", "w3", "w4", "w5", "w6")
    bench.add("poison")
    for _ in range(5):
        bench.say(bench.last.wire_id, "EXECUTING")
        bench.say(bench.last.wire_id, "ACCEPTED")
        assert bench.schedule.status()["resting"] <= 1
        bench.wait(0.2)
        bench.wait(10.0)
    assert len({submit.address for submit in bench.submits}) == 5
    assert [result.status for result in bench.results] == ["FAILED"]


def test_a_worker_that_fails_again_and_again_rests_longer_and_longer() -> None:
    bench = Bench("good", "bad")
    rests = []
    for number in range(60):
        bench.add(f"t{number}")
        good = bench.last.address == "good"
        bench.say(bench.last.wire_id, "SUCCEEDED" if good else "FAILED")
        if not good and bench.schedule.status()["resting"]:
            began = bench.now
            while bench.schedule.status()["resting"]:
                bench.wait(0.05)
            rests.append(bench.now - began)
    failed = [result for result in bench.results if result.status == "FAILED"]
    assert len(rests) >= 3
    assert len(failed) == len(rests) + 2, "three in a row are the first reason to rest"
    assert rests[0] <= 1.05
    assert rests[2] >= 2.0


def test_where_all_tasks_fail_nobody_rests() -> None:
    bench = Bench("w1", "w2", "w3")
    for number in range(100):
        bench.add(f"t{number}")
        bench.say(bench.last.wire_id, "FAILED")
    assert bench.schedule.status()["resting"] == 0
    assert len(bench.results) == 100


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
    assert bench.schedule.status()["resting"] == 0, "no worker is to blame"


def test_what_is_under_way_is_adopted_after_a_restart() -> None:
    bench = Bench("w1", "w2")
    bench.add("a")
    wire_id = bench.last.wire_id
    again = bench.restart({wire_id: ("w1", "EXECUTING")}, "w1", "w2")
    assert again.schedule.is_ours(wire_id)
    assert again.schedule.has_past
    again.add("a")
    again.add("b")
    again.add("c")
    assert [submit.address for submit in again.submits] == ["w2"], "w1 has its share"
    again.say(wire_id, "SUCCEEDED", result="done")
    assert [result.result for result in again.results] == ["done"]
    assert again.results[0].attempts == 1
    again.take_result("a")
    assert again.collects == [wire_id]


def test_how_an_attempt_ended_before_the_restart_is_asked_for() -> None:
    bench = Bench("w1")
    bench.add("a")
    wire_id = bench.last.wire_id
    again = bench.restart({wire_id: ("w1", "ACCEPTED")}, "w1")
    again.say(wire_id, "SUCCEEDED", result="too early")
    again.add("a")
    assert again.inspects == [wire_id]
    assert not again.submits
    again.add("b")
    assert again.last.task == "text of b", "who is done is free"
    again.say(wire_id, "SUCCEEDED", result="done")
    assert [result.result for result in again.results] == ["done"]


def test_numbers_of_attempts_go_on_after_a_restart() -> None:
    bench = Bench("w1", "w2")
    bench.add("a")
    first = bench.last.wire_id
    bench.say(first, "EXPIRED")
    bench.wait(1.0)
    second = bench.last.wire_id
    known = {second: ("w2", "FAILED"), first: ("w1", "EXPIRED")}
    again = bench.restart(known, "w1", "w2", "w3")
    again.add("a")
    assert again.inspects == [first, second]
    again.say(first, "EXPIRED")
    again.say(second, "FAILED", is_retryable=True)
    again.wait(1.0)
    assert again.last.wire_id == f"{first[:-1]}3"
    assert again.last.address == "w3"
    assert again.schedule.status()["retried"] == 1
    assert again.schedule.status()["resting"] == 0, "that was long ago"


def test_nothing_is_tried_again_while_an_answer_is_to_come() -> None:
    bench = Bench("w1", "w2")
    bench.add("a")
    first = bench.last.wire_id
    bench.say(first, "EXPIRED")
    bench.wait(1.0)
    second = bench.last.wire_id
    known = {first: ("w1", "EXPIRED"), second: ("w2", "SUCCEEDED")}
    again = bench.restart(known, "w1", "w2", "w3")
    again.add("a")
    again.say(first, "EXPIRED")
    again.wait(100.0)
    assert not again.submits
    again.say(second, "SUCCEEDED", result="done")
    assert [result.result for result in again.results] == ["done"]


def test_a_failure_before_the_restart_is_final() -> None:
    bench = Bench("w1")
    bench.add("a")
    again = bench.restart({bench.last.wire_id: ("w1", "FAILED")}, "w1")
    again.add("a")
    again.say(bench.last.wire_id, "FAILED", reason="exit status 3")
    assert [result.error for result in again.results] == ["exit status 3"]


def test_an_adopted_worker_may_be_gone() -> None:
    bench = Bench("w1")
    bench.add("a")
    wire_id = bench.last.wire_id
    again = bench.restart({wire_id: ("w1", "NEW")}, "w2")
    again.add("a")
    assert not again.submits
    again.say(wire_id, "NEW", is_reachable=False)
    again.wait(1.0)
    assert again.last.address == "w2"
    assert again.last.wire_id != wire_id


def test_attempts_whose_tasks_do_not_come_are_given_up() -> None:
    bench = Bench("w1")
    for task_id in "ab":
        bench.add(task_id)
        bench.say(bench.last.wire_id, "SUCCEEDED")
    done, open_ = (submit.wire_id for submit in bench.submits)
    known = {done: ("w1", "SUCCEEDED"), open_: ("w1", "EXECUTING")}
    again = bench.restart(known, "w1")
    again.schedule.give_up_past()
    again.drain()
    assert again.collects == [done]
    assert again.cancels == [open_]
    assert not again.schedule.has_past
    again.say(open_, "CANCELLED")
    assert again.collects == [done, open_]
    again.add("b")
    assert again.last.wire_id == f"{open_[:-1]}2", "a number is never used again"


def test_attempts_of_other_runs_are_not_adopted() -> None:
    bench = Bench("w1")
    bench.schedule.adopt("0" * 16 + "-" + "0" * 20 + "-1", "w1", "NEW")
    assert not bench.schedule.has_past


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
    for number in range(3 * MIN_TIMERS):
        bench.add(f"t{number}")
        bench.say(bench.last.wire_id, "SUCCEEDED")
    assert len(bench.schedule._timers) <= MIN_TIMERS + 32
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
