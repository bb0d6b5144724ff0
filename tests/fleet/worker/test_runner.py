"""The worker against a real daemon: what it is offered, runs and gives back."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import NotFound
from pilotfleet.fleet.worker.job import MAX_RESULT_BYTES, Outcome
from tests.fleet.worker.support import Desk, serving
from tests.node.support import eventually

if TYPE_CHECKING:
    from tests.services.tasks.support import Node, Program, TaskWorld


class Pair:
    """A node that gives tasks, and one that works."""

    def __init__(self, boss: Node, bob: Node, program: Program) -> None:
        self.boss = boss
        self.bob = bob
        self.program = program

    async def submit(self, text: str, *, agent: str = "bob") -> str:
        """Give a task to an agent of the working node; return its id."""
        target = str(self.bob.host.agents[agent].address)
        answer = await self.program.call("submit", target=target, task=text)
        assert answer["accepted"], answer
        return str(answer["task_id"])

    async def ended(self, task_id: str, status: str = "SUCCEEDED") -> dict[str, Any]:
        """Wait for the end of a task; return what the submitter is told."""
        return await self.program.expect("update", task_id=task_id, status=status)


@pytest.fixture
async def pair(nodes: TaskWorld) -> Pair:
    boss, bob = await nodes.node("boss"), await nodes.node("bob", "eve")
    program = await boss.program()
    await program.call("watch")
    return Pair(boss, bob, program)


@pytest.fixture
def desk() -> Desk:
    return Desk()


# Outcomes


async def test_offered_task_runs_and_its_result_returns(pair: Pair, desk: Desk) -> None:
    async with serving(pair.bob, desk):
        task_id = await pair.submit("hello")
        await desk.has(1)
        desk.end("hello", Outcome(ok=True, result="wörld", wall_ms=1234))
        update = await pair.ended(task_id)
        assert (update["results"], update["cpu_ms"]) == ("wörld", 1234)


@pytest.mark.parametrize("retryable", [False, True])
async def test_failure_is_told_with_its_reason(
    pair: Pair, desk: Desk, *, retryable: bool
) -> None:
    async with serving(pair.bob, desk):
        task_id = await pair.submit("hello")
        await desk.has(1)
        desk.end("hello", Outcome(ok=False, error="exit status 3", retryable=retryable))
        update = await pair.ended(task_id, "FAILED")
        assert update["error"] == "exit status 3"
        assert update.get("retryable", False) is retryable


async def test_function_that_raises_fails_its_task_alone(
    pair: Pair, desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(pair.bob, desk, concurrency=2):
        bad, good = await pair.submit("bad"), await pair.submit("good")
        await desk.has(2)
        desk.end("bad", ZeroDivisionError("no"))
        update = await pair.ended(bad, "FAILED")
        assert update["error"] == "ZeroDivisionError: no"
        desk.finish("good")
        await pair.ended(good)
    assert "a task of bob failed" in caplog.text


@pytest.mark.parametrize("size", [300_000, MAX_RESULT_BYTES])
async def test_long_result_arrives_whole(pair: Pair, desk: Desk, size: int) -> None:
    result = ("0123456789é" * (size // 12 + 1)).encode()[:size].decode(errors="ignore")
    async with serving(pair.bob, desk):
        task_id = await pair.submit("long")
        await desk.has(1)
        desk.finish("long", result)
        update = await pair.ended(task_id)
        assert "results" not in update
        assert await fetched(pair.program, task_id) == result


async def fetched(program: Program, task_id: str) -> str:
    """Fetch a result piece by piece."""
    pieces: list[str] = []
    offset: int | None = 0
    while offset is not None:
        answer = await program.call("result", task_id=task_id, offset=offset)
        pieces.append(answer["content"])
        offset = answer.get("next_offset")
    return "".join(pieces)


async def test_result_that_the_daemon_refuses_ends_the_task(
    pair: Pair, desk: Desk
) -> None:
    async with serving(pair.bob, desk):
        task_id = await pair.submit("too long")
        await desk.has(1)
        desk.finish("too long", "x" * (MAX_RESULT_BYTES + 1))
        update = await pair.ended(task_id, "FAILED")
        assert "could not be handed in" in update["error"]
        assert update["retryable"]


# How much at once


async def test_concurrency_bounds_the_tasks_of_an_agent(pair: Pair, desk: Desk) -> None:
    async with serving(pair.bob, desk, "bob", "eve", concurrency=2):
        for number in range(4):
            await pair.submit(f"b{number}")
        await pair.submit("e", agent="eve")
        await desk.has(3)
        queue = await (await pair.bob.program()).call("queue")
        assert queue["count"] == 2
        assert sorted(desk.open) == ["b0", "b1", "e"]
        desk.finish("b1")
        await eventually(lambda: "b2" in desk.open, what="the next task")
        assert sorted(desk.open) == ["b0", "b2", "e"]


async def test_places_bound_the_tasks_of_all_agents(pair: Pair, desk: Desk) -> None:
    async with serving(pair.bob, desk, "bob", "eve", max_processes=1) as served:
        first = await pair.submit("first")
        await desk.has(1)
        await pair.submit("second", agent="eve")
        await eventually(lambda: served.worker._waiting, what="a task that waits")
        assert list(desk.open) == ["first"]
        desk.finish("first")
        await pair.ended(first)
        await eventually(lambda: list(desk.open) == ["second"], what="its turn")


async def test_many_tasks_of_many_agents_are_all_done(pair: Pair, desk: Desk) -> None:
    async with serving(pair.bob, desk, "bob", "eve", concurrency=3, max_processes=2):
        ids = [
            await pair.submit(f"{agent}{number}", agent=agent)
            for number in range(20)
            for agent in ("bob", "eve")
        ]
        while len(desk.seen) < len(ids) or desk.open:
            await eventually(lambda: desk.open, what="a task")
            assert len(desk.open) <= 2
            desk.finish(next(iter(desk.open)))
            await asyncio.sleep(0)
        for task_id in ids:
            await pair.ended(task_id)
    assert len(set(desk.seen)) == len(desk.seen) == len(ids)


# Ends from outside


async def test_cancelled_task_is_stopped(pair: Pair, desk: Desk) -> None:
    async with serving(pair.bob, desk):
        task_id = await pair.submit("unwanted")
        await desk.has(1)
        await pair.program.call("cancel", task_id=task_id)
        await desk.has(0)
        other = await pair.submit("wanted")
        await desk.has(1)
        desk.finish("wanted")
        await pair.ended(other)


async def test_task_cancelled_before_its_turn_never_begins(
    pair: Pair, desk: Desk
) -> None:
    async with serving(pair.bob, desk, concurrency=2, max_processes=1) as served:
        first, second = await pair.submit("first"), await pair.submit("second")
        await eventually(lambda: served.worker._waiting, what="a task that waits")
        await pair.program.call("cancel", task_id=second)
        await eventually(lambda: not served.worker._waiting, what="its end")
        desk.finish("first")
        await pair.ended(first)
    assert desk.seen == ["first"]


async def test_stopped_worker_finishes_what_runs_and_gives_the_rest_back(
    pair: Pair, desk: Desk
) -> None:
    async with serving(pair.bob, desk, concurrency=2, max_processes=1) as served:
        first = await pair.submit("first")
        await desk.has(1)
        second, third = await pair.submit("second"), await pair.submit("third")
        await eventually(lambda: served.worker._waiting, what="a task that waits")
        local = await pair.bob.program()
        served.stop.set()
        await local.until(second, "received", "ACCEPTED")
        assert await local.status(third, "received") == "ACCEPTED"
        assert not served.task.done(), "the first one still runs"
        desk.finish("first")
        await served.task
        await pair.ended(first)
    assert desk.seen == ["first"]
    async with serving(pair.bob, desk):
        for text, task_id in (("second", second), ("third", third)):
            await desk.has(1)
            desk.finish(text)
            await pair.ended(task_id)


async def test_stopped_worker_waits_no_longer_than_it_may(
    pair: Pair, desk: Desk
) -> None:
    async with serving(pair.bob, desk, drain_s=0.05) as served:
        task_id = await pair.submit("endless")
        await desk.has(1)
        await served.end()
        assert not desk.open
    local = await pair.bob.program()
    await local.until(task_id, "received", "ACCEPTED")


async def test_stop_does_not_wait_for_a_daemon_that_went_away(
    pair: Pair, desk: Desk
) -> None:
    async with serving(pair.bob, desk, drain_s=1000.0) as served:
        await pair.submit("endless")
        await desk.has(1)
        served.stop.set()
        await eventually(lambda: served.worker._book.is_draining, what="draining")
        await pair.bob.close()
        async with asyncio.timeout(10):
            await served.task
        assert not desk.open


# The daemon comes and goes


async def test_worker_comes_back_after_a_restart_of_its_daemon(
    nodes: TaskWorld, pair: Pair, desk: Desk
) -> None:
    async with serving(pair.bob, desk) as served:
        task_id = await pair.submit("again")
        await desk.has(1)
        await pair.bob.close()
        await desk.has(0)
        pair.bob = await nodes.node("bob", "eve")
        await served.connected(times=2)
        await desk.has(1)
        desk.finish("again")
        await pair.ended(task_id)
        assert desk.seen == ["again", "again"]


async def test_worker_waits_for_a_daemon_that_is_still_to_come(
    nodes: TaskWorld, tmp_path: Any, desk: Desk
) -> None:
    async with serving(tmp_path / "late" / "s", desk, "late") as served:
        await eventually(
            lambda: served.worker._pause_s > 0.02, what="an attempt in vain"
        )
        await nodes.node("late")
        await served.connected()
        assert served.worker._pause_s == 0.02, "the next wait is a short one again"


async def test_worker_that_waits_for_its_daemon_can_be_stopped(
    tmp_path: Any, desk: Desk
) -> None:
    async with serving(tmp_path / "nobody", desk) as served:
        await served.end()


async def test_agent_that_is_not_hosted_is_an_error(pair: Pair, desk: Desk) -> None:
    with pytest.raises(NotFound, match="no agent 'nobody'"):
        async with serving(pair.bob, desk, "bob", "nobody"):
            pass


# Events


async def test_health_and_ends_of_tasks_are_published(pair: Pair, desk: Desk) -> None:
    published: list[tuple[str, dict[str, Any]]] = []

    async def publish(_: Any, agent: Any, params: dict[str, Any]) -> dict[str, Any]:
        event = json.loads(params["data"])
        # One connection to the broker is enough for all agents of a program.
        assert agent.name == "bob"
        published.append((params["topic"], event))
        return {}

    pair.bob.host.extensions["publish"] = publish
    async with serving(pair.bob, desk, "bob", "eve", health_interval_s=0.02) as served:
        await eventually(lambda: len(published) >= 4, what="two rounds of health")
        assert [event["agent"] for _, event in published[:2]] == ["bob", "eve"]
        task_id = await pair.submit("hello", agent="eve")
        await desk.has(1)
        await eventually(lambda: published[-1][1].get("status") == "busy", what="busy")
        desk.finish("hello")
        await pair.ended(task_id)
        await eventually(
            lambda: "fleet.task" in [topic for topic, _ in published], what="the event"
        )
        told = next(event for topic, event in published if topic == "fleet.task")
        [end] = told["tasks"]
        assert (end["agent"], end["task_id"]) == ("eve", task_id)
        assert end["status"] == "SUCCEEDED"
        await served.end()


async def test_broker_that_is_away_stops_no_work(pair: Pair, desk: Desk) -> None:
    # The nodes of this test have no event service at all.
    async with serving(pair.bob, desk, health_interval_s=0.01):
        for number in range(3):
            task_id = await pair.submit(f"t{number}")
            await desk.has(1)
            desk.finish(f"t{number}")
            await pair.ended(task_id)
