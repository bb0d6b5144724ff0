"""Tasks that are let go, and failures that are nobody's fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfleet.fleet.actions import Cancel, Collect, Finished, Submit, Update
from pilotfleet.fleet.retry import RetryPolicy
from pilotfleet.fleet.roster import WorkerInfo
from pilotfleet.fleet.schedule import Schedule, ScheduleConfig
from pilotfleet.fleet.taskfile import TaskLine

if TYPE_CHECKING:
    from pilotfleet.fleet.actions import Action, TaskResult

LINE = TaskLine("1", "text")


def schedule(workers: int = 1, **config: object) -> Schedule:
    made = Schedule(ScheduleConfig(**config), run_id="r")  # type: ignore[arg-type]
    infos = [WorkerInfo(f"0:{n}", f"w-{n}", frozenset()) for n in range(workers)]
    made.set_workers(infos, 0.0)
    return made


def actions(made: Schedule) -> list[Action]:
    found = []
    while (action := made.next_action()) is not None:
        found.append(action)
    return found


def submitted(made: Schedule) -> str:
    (action,) = actions(made)
    assert isinstance(action, Submit)
    return action.wire_id


def result(made: Schedule) -> TaskResult:
    (found,) = [each for each in actions(made) if isinstance(each, Finished)]
    return found.result


def test_a_task_that_is_let_go_has_no_result_and_may_come_again() -> None:
    made = schedule()
    made.add(LINE, 0.0)
    first = submitted(made)
    made.cancel("1", 1.0)
    assert actions(made) == [Cancel(first)]
    assert made.open_count == 0
    made.update(Update(first, "CANCELLED"), 2.0)
    assert actions(made) == [Collect(first)]
    made.add(LINE, 3.0)
    # The daemon still knows the first one.
    assert submitted(made) == first.removesuffix("1") + "2"


def test_what_waits_or_is_done_or_unknown_can_be_let_go_as_well() -> None:
    made = schedule(workers=0)
    made.cancel("nobody's", 0.0)
    made.add(LINE, 0.0)
    made.cancel("1", 0.0)
    assert (made.open_count, actions(made)) == (0, [])
    made.set_workers([WorkerInfo("0:1", "w", frozenset())], 0.0)
    assert actions(made) == []
    made.add(TaskLine("2", "text"), 0.0)
    wire_id = submitted(made)
    made.update(Update(wire_id, "SUCCEEDED"), 0.0)
    assert result(made).id == "2"
    made.cancel("2", 0.0)
    assert actions(made) == [Collect(wire_id)]


def test_what_an_earlier_life_began_can_be_let_go_before_it_is_asked_for() -> None:
    first = schedule()
    first.add(LINE, 0.0)
    wire_id = submitted(first)
    made = schedule()
    made.adopt(wire_id, "0:0", "EXECUTING")
    made.cancel("1", 0.0)
    assert actions(made) == [Cancel(wire_id)]
    assert not made.has_past
    made.add(LINE, 1.0)
    assert submitted(made) == wire_id.removesuffix("1") + "2"


def test_a_failure_says_whether_the_task_is_to_blame() -> None:
    made = schedule(policy=RetryPolicy(max_attempts=1))
    made.add(LINE, 0.0)
    made.update(Update(submitted(made), "FAILED", reason="no"), 0.0)
    assert result(made).retryable is False
    made.add(TaskLine("2", "text"), 0.0)
    made.update(Update(submitted(made), "EXPIRED"), 0.0)
    assert result(made).retryable is True


def test_nobody_with_the_tags_is_not_the_tasks_fault() -> None:
    made = schedule(unmatched_s=5.0)
    made.add(TaskLine("1", "text", ("gpu",)), 0.0)
    made.handle_timer(5.0)
    assert result(made).retryable is True
