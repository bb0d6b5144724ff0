"""Attempts on their way to the daemon, and cancellations that come meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from pilotfleet.errors import Busy, InvalidArgument, PilotError, error_to_fields
from pilotfleet.fleet.actions import Submit
from pilotfleet.fleet.dispatch import MAX_SUBMITTED, Dispatch

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Daemon:
    """A daemon that answers a call when the test says so."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any], asyncio.Future[Any]]] = []

    async def call(self, op: str, **params: Any) -> dict[str, Any]:
        answer = asyncio.get_running_loop().create_future()
        self.calls.append((op, params, answer))
        return cast("dict[str, Any]", await answer)

    @property
    def said(self) -> list[tuple[str, list[str]]]:
        """What each call was about."""
        return [
            (op, [task["task_id"] for task in params.get("tasks", [params])])
            for op, params, _ in self.calls
        ]


class Desk:
    """A dispatch with a daemon, and what came of it."""

    def __init__(self, slots: int = 9) -> None:
        self.daemon = Daemon()
        self.slots = asyncio.Semaphore(slots)
        self.refused: list[tuple[str, str]] = []
        self.running: set[asyncio.Future[None]] = set()
        self.dispatch = Dispatch(
            cast("Any", self.daemon),
            self.slots,
            as_agent={"agent": "hub"},
            deliver_within_s=60.0,
            clock=lambda: 100.0,
            start=self._start,
            refused=lambda wire_id, error: self.refused.append((wire_id, str(error))),
        )

    def _start(self, coro: Coroutine[Any, Any, None]) -> None:
        self.running.add(asyncio.ensure_future(coro))

    def submit(self, *wire_ids: str) -> None:
        for wire_id in wire_ids:
            self.dispatch.submit(Submit(wire_id, "0:0000.0000.0007", "text"))

    def cancel(self, *wire_ids: str) -> None:
        for wire_id in wire_ids:
            self.dispatch.cancel(wire_id)

    async def answer(self, call: int, answer: dict[str, Any] | PilotError) -> None:
        future = self.daemon.calls[call][2]
        if isinstance(answer, PilotError):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        await self.turns()

    async def turns(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


@pytest.fixture
async def desk() -> Any:
    desk = Desk()
    yield desk
    for each in desk.running:
        each.cancel()
    await asyncio.gather(*desk.running, return_exceptions=True)


async def test_what_one_turn_wants_goes_in_groups(desk: Desk) -> None:
    names = [f"t{number}" for number in range(MAX_SUBMITTED + 1)]
    desk.submit(*names)
    await desk.turns()
    assert desk.daemon.said == [
        ("task.submit-all", names[:MAX_SUBMITTED]),
        ("task.submit", names[MAX_SUBMITTED:]),
    ]


async def test_what_is_cancelled_in_its_turn_never_leaves(desk: Desk) -> None:
    desk.submit("a", "b", "c")
    desk.cancel("b")
    await desk.turns()
    assert desk.daemon.said == [("task.submit-all", ["a", "c"])]
    await desk.answer(0, {"refused": {}})
    desk.cancel("a")
    await desk.turns()
    assert desk.daemon.said[1:] == [("task.cancel", ["a"])]


async def test_what_is_cancelled_between_two_turns_never_leaves(desk: Desk) -> None:
    desk.submit("a", "b")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    desk.cancel("a", "b")
    await desk.turns()
    assert desk.daemon.said == []


@pytest.mark.parametrize("wire_ids", [("a",), ("a", "b")])
async def test_what_is_cancelled_while_it_waits_for_a_slot_never_leaves(
    desk: Desk, wire_ids: tuple[str, ...]
) -> None:
    for _ in range(9):
        await desk.slots.acquire()
    desk.submit(*wire_ids)
    await desk.turns()
    desk.cancel(*wire_ids)
    for _ in range(9):
        desk.slots.release()
    await desk.turns()
    assert desk.daemon.said == []


@pytest.mark.parametrize("wire_ids", [("a",), ("a", "b")])
async def test_a_cancellation_waits_for_the_answer_to_the_submission(
    desk: Desk, wire_ids: tuple[str, ...]
) -> None:
    desk.submit(*wire_ids)
    await desk.turns()
    desk.cancel("a")
    await desk.turns()
    assert len(desk.daemon.calls) == 1
    await desk.answer(0, {"refused": {}})
    assert desk.daemon.said[1:] == [("task.cancel", ["a"])]


async def test_a_group_that_fails_is_given_one_by_one_without_what_is_cancelled(
    desk: Desk,
) -> None:
    desk.submit("a", "b", "c")
    await desk.turns()
    desk.cancel("a")
    await desk.answer(0, InvalidArgument("no text"))
    # The daemon may have taken it before it failed.
    assert desk.daemon.said[1:] == [("task.submit", ["b"]), ("task.cancel", ["a"])]
    await desk.answer(1, Busy("full"))
    assert desk.refused == [("b", "full")]
    desk.cancel("c")
    await desk.answer(3, {})
    assert desk.daemon.said[3:] == [("task.submit", ["c"]), ("task.cancel", ["c"])]


async def test_who_is_refused_is_said_unless_nobody_wants_it(desk: Desk) -> None:
    desk.submit("a", "b", "c")
    await desk.turns()
    desk.cancel("b")
    full = error_to_fields(Busy("full"))
    await desk.answer(0, {"refused": {"a": full, "b": full}})
    assert desk.refused == [("a", "full")]
    assert len(desk.daemon.calls) == 1
