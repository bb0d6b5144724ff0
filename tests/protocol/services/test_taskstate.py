"""The transition tables of both sides of a task."""

from __future__ import annotations

import pytest

from pilotfleet.protocol.services.taskstate import (
    FINAL,
    SUBMITTER_TRANSITIONS,
    WORKER_TRANSITIONS,
    Input,
    Role,
    Status,
    next_status,
    report_input,
)

TABLES = {Role.RECEIVED: WORKER_TRANSITIONS, Role.SUBMITTED: SUBMITTER_TRANSITIONS}
OPEN = [status for status in Status if status not in FINAL]


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("event", Input)
def test_a_pair_outside_the_table_is_refused(
    role: Role, status: Status, event: Input
) -> None:
    assert next_status(role, status, event) is TABLES[role].get((status, event))


def test_nothing_leaves_an_end_on_the_worker_side() -> None:
    assert not [status for status, _ in WORKER_TRANSITIONS if status in FINAL]


def test_only_what_the_submitter_guessed_can_be_overruled() -> None:
    left = {status for status, _ in SUBMITTER_TRANSITIONS if status in FINAL}
    assert left == {Status.EXPIRED}


@pytest.mark.parametrize("status", [*OPEN, Status.EXPIRED])
def test_results_end_a_submitted_task_whatever_reports_were_lost(
    status: Status,
) -> None:
    assert next_status(Role.SUBMITTED, status, Input.SUCCEED) is Status.SUCCEEDED
    assert next_status(Role.SUBMITTED, status, Input.FAIL) is Status.FAILED


@pytest.mark.parametrize("status", OPEN)
def test_every_open_task_can_be_cancelled_from_both_sides(status: Status) -> None:
    for role in Role:
        assert next_status(role, status, Input.CANCEL) is Status.CANCELLED


@pytest.mark.parametrize("status", OPEN)
def test_a_deadline_ends_every_open_task_on_both_sides(status: Status) -> None:
    for role in Role:
        assert next_status(role, status, Input.EXPIRE) is Status.EXPIRED


@pytest.mark.parametrize("start", [Status.NEW])
@pytest.mark.parametrize("role", Role)
def test_every_status_can_be_reached(role: Role, start: Status) -> None:
    reached = {start}
    while (
        more := {
            after for (before, _), after in TABLES[role].items() if before in reached
        }
        - reached
    ):
        reached |= more
    assert reached == set(Status)


def test_a_reported_success_waits_for_the_results() -> None:
    assert report_input("SUCCEEDED") is None
    assert report_input("COMPLETED") is None
    assert report_input("nonsense") is None
    assert report_input("DECLINED") is Input.DECLINE
    assert report_input("FAILED") is Input.FAIL


def test_a_task_given_back_can_be_started_again() -> None:
    status = next_status(Role.RECEIVED, Status.EXECUTING, Input.RELEASE)
    assert status is Status.ACCEPTED
    assert next_status(Role.RECEIVED, status, Input.EXECUTE) is Status.EXECUTING
