"""Outcomes on their way to the daemon, several at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import Closed, NotFound, NotSupported, error_to_fields
from pilotfleet.fleet.worker.handin import MAX_CHARS, MAX_OUTCOMES, HandIn

if TYPE_CHECKING:
    from pilotfleet.client.daemon import DaemonClient


class Daemon:
    """Stands for the daemon: notes what it is given, and knows some tasks."""

    def __init__(self, *, has_groups: bool = True) -> None:
        self.calls: list[list[str]] = []
        self._has_groups = has_groups

    async def call(self, op: str, **params: Any) -> dict[str, Any]:
        if op == "task.finish":
            self.calls.append([params["task_id"]])
            self._check(params)
            return {}
        if not self._has_groups:
            raise NotSupported("the daemon has no such operation")
        self.calls.append([outcome["task_id"] for outcome in params["outcomes"]])
        refused = {}
        for place, outcome in enumerate(params["outcomes"]):
            try:
                self._check(outcome)
            except NotFound as error:
                refused[str(place)] = error_to_fields(error)
        return {"refused": refused}

    def _check(self, outcome: dict[str, Any]) -> None:
        if outcome["task_id"] == "unknown":
            raise NotFound("task not found: unknown")


def hand_in(daemon: Daemon) -> HandIn:
    client: Any = daemon
    typed: DaemonClient = client
    return HandIn(typed)


def outcome(task_id: str, result: str = "") -> dict[str, Any]:
    fields = {"agent": "bob", "task_id": task_id, "ok": True}
    return {**fields, "result": result, "error": ""}


async def finish_all(desk: HandIn, outcomes: list[dict[str, Any]]) -> list[Any]:
    finished = (desk.finish(each) for each in outcomes)
    return await asyncio.gather(*finished, return_exceptions=True)


@pytest.mark.parametrize("has_groups", [True, False])
async def test_each_outcome_has_its_own_answer(has_groups: bool) -> None:
    daemon = Daemon(has_groups=has_groups)
    given = [outcome("a"), outcome("unknown"), outcome("b")]
    answers = await finish_all(hand_in(daemon), given)
    assert [type(answer) for answer in answers] == [type(None), NotFound, type(None)]
    together = [["a", "unknown", "b"]]
    assert daemon.calls == (together if has_groups else [["a"], ["unknown"], ["b"]])


async def test_a_call_holds_so_many_outcomes() -> None:
    daemon = Daemon()
    many = [outcome(str(number)) for number in range(MAX_OUTCOMES + 2)]
    await finish_all(hand_in(daemon), many)
    assert sorted(map(len, daemon.calls)) == [2, MAX_OUTCOMES]


async def test_long_results_go_in_calls_of_their_own() -> None:
    daemon = Daemon()
    long = "x" * (MAX_CHARS // 2 + 1)
    await finish_all(hand_in(daemon), [outcome("a", long), outcome("b", long)])
    assert sorted(daemon.calls) == [["a"], ["b"]]


async def test_what_nobody_waits_for_any_more_disturbs_nobody() -> None:
    daemon = Daemon()
    desk = hand_in(daemon)
    left = asyncio.ensure_future(desk.finish(outcome("a")))
    stayed = asyncio.ensure_future(desk.finish(outcome("b")))
    await asyncio.sleep(0)
    left.cancel()
    await stayed
    assert daemon.calls == [["a", "b"]]
    await desk.close()


@pytest.mark.parametrize("count", [1, 3])
async def test_outcomes_that_are_given_up_are_said_to_be(count: int) -> None:
    class Silent(Daemon):
        async def call(self, op: str, **params: Any) -> dict[str, Any]:
            asked.set()
            await asyncio.Event().wait()
            return {}

    asked = asyncio.Event()
    desk = hand_in(Silent())
    given = [outcome(str(number)) for number in range(count)]
    answers = asyncio.ensure_future(finish_all(desk, given))
    await asked.wait()
    await desk.close()
    assert [type(answer) for answer in await answers] == [Closed] * count
