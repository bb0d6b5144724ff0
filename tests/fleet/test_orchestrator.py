"""The orchestrator against real daemons, and programs that work by hand."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.errors import Closed, PilotError
from pilotfleet.fleet.orchestrator import Orchestrator, OrchestratorConfig
from pilotfleet.fleet.retry import RetryPolicy
from pilotfleet.fleet.schedule import ScheduleConfig, TaskResult
from pilotfleet.fleet.taskfile import TaskLine
from pilotfleet.fleet.worker.job import Outcome
from pilotfleet.protocol.services.taskstate import Role
from pilotfleet.services.tasks.service import MAX_DIALS
from tests.fleet.worker.support import Desk, serving
from tests.node.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from tests.services.tasks.support import Node, TaskWorld

SOON = RetryPolicy(first_pause_s=0.01, first_rest_s=0.01, longest_rest_s=0.05)


class Run:
    """A run under way."""

    def __init__(self, client: DaemonClient, **config: Any) -> None:
        schedule: dict[str, Any] = {"policy": SOON} | config.pop("schedule", {})
        run_id = config.pop("run_id", None)
        settings: dict[str, Any] = {"tags": ("worker",), "refresh_s": 0.05} | config
        self.orchestrator = Orchestrator(
            client,
            OrchestratorConfig(schedule=ScheduleConfig(**schedule), **settings),
            run_id=run_id,
        )
        self.results: list[TaskResult] = []

    def start(self, lines: Iterable[TaskLine]) -> asyncio.Task[None]:
        """Begin to run tasks."""
        return asyncio.ensure_future(self._collect(stream(lines)))

    async def _collect(self, lines: AsyncIterator[TaskLine]) -> None:
        results = self.orchestrator.run(lines)
        async with contextlib.aclosing(results):
            async for result in results:
                self.results.append(result)


async def stream(lines: Iterable[TaskLine]) -> AsyncIterator[TaskLine]:
    for line in lines:
        yield line


@pytest.fixture
async def boss(nodes: TaskWorld) -> Node:
    return await nodes.node("boss")


@pytest.fixture
async def client(boss: Node) -> AsyncIterator[DaemonClient]:
    async with await connect(boss) as client:
        yield client


async def connect(node: Node) -> DaemonClient:
    assert node.host.config.socket is not None
    return await DaemonClient.connect(node.host.config.socket)


async def tag(node: Node, **tags: str) -> None:
    """Set the tags of agents: ``bob="worker fast"``."""
    for name, text in tags.items():
        agent = node.host.agents[name]
        await agent.registry("set_tags", node_id=agent.node_id, tags=text.split())


async def uncollected(node: Node) -> int:
    records = await node.tasks.store.uncollected(node.agent.name, 1000)
    return len(records)


async def test_tasks_go_out_and_results_come_in_and_are_collected(
    nodes: TaskWorld, boss: Node, client: DaemonClient
) -> None:
    bob = await nodes.node("bob", "eve")
    await tag(bob, bob="worker", eve="worker")
    run, desk = Run(client), Desk()
    async with serving(bob, desk, "bob", "eve"):
        running = run.start(TaskLine(f"t{n}", f"text {n}") for n in range(10))
        while not running.done():
            await eventually(lambda: desk.open or running.done(), what="a task")
            for text in list(desk.open):
                desk.finish(text, f"result of {text}")
            await asyncio.sleep(0)
        await running
    assert {r.id: r.result for r in run.results} == {
        f"t{n}": f"result of text {n}" for n in range(10)
    }
    assert {r.agent for r in run.results} == {"bob", "eve"}
    assert run.orchestrator.worker_count == 2
    assert await uncollected(boss) == 0


async def test_result_longer_than_a_push_is_fetched(
    nodes: TaskWorld, boss: Node, client: DaemonClient
) -> None:
    bob = await nodes.node("bob")
    await tag(bob, bob="worker")
    run, desk, result = Run(client), Desk(), "0123456789é" * 50_000
    async with serving(bob, desk):
        running = run.start([TaskLine("a", "long")])
        await desk.has(1)
        desk.finish("long", result)
        await running
    assert run.results[0].result == result
    assert await uncollected(boss) == 0


async def test_tags_of_a_task_choose_among_the_workers(
    nodes: TaskWorld, client: DaemonClient
) -> None:
    bob = await nodes.node("bob", "eve", "mallory")
    await tag(bob, bob="worker", eve="worker fast", mallory="fast")
    run = Run(client, schedule={"concurrency": 9, "unmatched_s": 0.2})
    desk = Desk()
    async with serving(bob, desk, "bob", "eve", "mallory", concurrency=9):
        lines = [TaskLine(f"f{n}", f"fast {n}", ("fast",)) for n in range(4)]
        running = run.start([*lines, TaskLine("g", "gpu", ("fast", "gpu"))])
        await desk.has(4)
        for text in list(desk.open):
            desk.finish(text)
        await running
    by_id = {result.id: result for result in run.results}
    assert {by_id[f"f{n}"].agent for n in range(4)} == {"eve"}
    assert by_id["g"].error == "no worker has the tags fast, gpu"


async def test_worker_that_comes_later_is_found(
    nodes: TaskWorld, client: DaemonClient
) -> None:
    run, desk = Run(client), Desk()
    running = run.start([TaskLine("a", "text")])
    bob = await nodes.node("bob")
    await tag(bob, bob="worker")
    async with serving(bob, desk):
        await desk.has(1)
        desk.finish("text")
        await running
    assert run.results[0].agent == "bob"


async def test_lost_task_is_done_by_another_worker(
    nodes: TaskWorld, boss: Node, client: DaemonClient
) -> None:
    bob = await nodes.node("bob", "eve")
    await tag(bob, bob="worker", eve="worker")
    run, desk = Run(client), Desk()
    async with serving(bob, desk, "bob", "eve"):
        running = run.start([TaskLine("a", "text")])
        await desk.has(1)
        desk.end("text", Outcome(ok=False, error="killed", retryable=True))
        await desk.has(1)
        desk.finish("text")
        await running
    [result] = run.results
    assert (result.status, result.attempts) == ("SUCCEEDED", 2)
    assert await uncollected(boss) == 0


async def test_worker_node_that_dies_loses_its_task_to_another(
    nodes: TaskWorld, boss: Node, client: DaemonClient
) -> None:
    bob, eve = await nodes.node("bob"), await nodes.node("eve")
    await tag(bob, bob="worker")
    run, desk, other = Run(client), Desk(), Desk()
    async with serving(bob, desk), serving(eve, other, "eve"):
        running = run.start([TaskLine("a", "text")])
        await desk.has(1)
        await tag(eve, eve="worker")
        await bob.close()
        await other.has(1)
        other.finish("text")
        await running
    assert (run.results[0].agent, run.results[0].attempts) == ("eve", 2)
    assert await uncollected(boss) == 0, "the cancelled attempt is collected as well"


async def test_run_that_begins_while_a_worker_is_dead_is_told_as_well(
    nodes: TaskWorld, boss: Node, client: DaemonClient
) -> None:
    bob, eve = await nodes.node("bob"), await nodes.node("eve")
    await tag(bob, bob="worker")
    first, desk, other = Run(client, run_id="r"), Desk(), Desk()
    async with serving(bob, desk), serving(eve, other, "eve"):
        running = first.start([TaskLine("a", "text")])
        await desk.has(1)
        await bob.close()
        waiting = first.orchestrator.status
        await eventually(lambda: waiting()["waiting"] == 1, what="the news")
        running.cancel()
        await asyncio.wait([running])
        await tag(eve, eve="worker")
        async with await connect(boss) as anew:
            again = Run(anew, run_id="r")
            running = again.start([TaskLine("a", "text")])
            await other.has(1)
            other.finish("text")
            await running
    assert (again.results[0].agent, again.results[0].status) == ("eve", "SUCCEEDED")


async def test_deadline_cancels_what_the_worker_does(
    nodes: TaskWorld, boss: Node, client: DaemonClient
) -> None:
    bob = await nodes.node("bob")
    await tag(bob, bob="worker")
    run, desk = Run(client, schedule={"deadline_s": 0.3}), Desk()
    async with serving(bob, desk):
        running = run.start([TaskLine("a", "endless")])
        await desk.has(1)
        await running
        await desk.has(0)
    assert run.results[0].error == "the task missed its deadline"
    assert await uncollected(boss) == 0


async def test_open_tasks_are_bounded_and_the_source_waits(
    nodes: TaskWorld, client: DaemonClient
) -> None:
    bob = await nodes.node("bob")
    await tag(bob, bob="worker")
    taken: list[int] = []

    def lines() -> Iterable[TaskLine]:
        for number in range(20):
            taken.append(number)
            yield TaskLine(str(number), f"text {number}")

    run, desk = Run(client, schedule={"max_open": 3}), Desk()
    async with serving(bob, desk):
        running = run.start(lines())
        for done in range(20):
            await desk.has(1)
            assert len(taken) <= done + 4
            desk.finish(next(iter(desk.open)))
            await eventually(lambda n=done: len(run.results) > n, what="a result")  # type: ignore[misc]
        await running
    assert len(run.results) == 20


async def test_attempts_carry_priority_and_deadline(
    nodes: TaskWorld, boss: Node, client: DaemonClient
) -> None:
    bob = await nodes.node("bob")
    await tag(bob, bob="worker")
    run, desk = Run(client), Desk()
    async with serving(bob, desk):
        running = run.start([TaskLine("a", "text", (), 7, "1h")])
        await desk.has(1)
        [row] = (await client.call("task.open"))["tasks"]
        shown = await client.call("task.show", task_id=row["task_id"])
        assert shown["submitted"]["priority"] == 7
        assert shown["submitted"]["deadline"]
        desk.finish("text")
        await running


async def test_killed_run_goes_on_where_it_was(
    nodes: TaskWorld, boss: Node, client: DaemonClient
) -> None:
    """Be killed with one task done and not taken, one failed, and two under way."""
    bob = await nodes.node("bob")
    await tag(bob, bob="worker")
    config: dict[str, Any] = {"run_id": "r", "schedule": {"concurrency": 9}}
    lines = [TaskLine(name, f"text {name}") for name in "abcd"]
    desk = Desk()
    async with serving(bob, desk, concurrency=9):
        run = Run(client, **config)
        run.results = Taken()
        running = run.start(lines)
        await desk.has(4)
        desk.finish("text a", "é" * 100_000)
        await eventually(running.done, what="the death of the caller")
        assert isinstance(running.exception(), Closed)
        desk.end("text b", Outcome(ok=False, error="exit status 3"))
        await eventually(lambda: ended(boss) == 2, what="the end of b")
        desk.finish("text c", "c")
        async with await connect(boss) as second:
            again = Run(second, **config)
            running = again.start(lines)
            await eventually(lambda: len(again.results) == 3, what="what was done")
            desk.finish("text d", "d")
            await running
    assert sorted(desk.seen) == [line.task for line in lines], "each ran once"
    by_id = {result.id: (result.status, result.result) for result in again.results}
    assert by_id == {
        "a": ("SUCCEEDED", "é" * 100_000),
        "b": ("FAILED", ""),
        "c": ("SUCCEEDED", "c"),
        "d": ("SUCCEEDED", "d"),
    }
    assert {result.error for result in again.results} == {"", "exit status 3"}
    assert await uncollected(boss) == 0


class Taken(list[TaskResult]):
    """A place for results that breaks when one is put there."""

    def append(self, result: TaskResult) -> None:
        raise Closed(f"no room for {result.id}")


def ended(node: Node) -> int:
    """Return how many of four submitted tasks the node does not hold open any more."""
    return 4 - len(node.tasks.table.of(node.agent.name, Role.SUBMITTED))


async def test_restart_of_the_daemon_as_well_loses_and_repeats_nothing(
    nodes: TaskWorld, boss: Node, client: DaemonClient
) -> None:
    bob = await nodes.node("bob")
    await tag(bob, bob="worker")
    desk = Desk()
    async with serving(bob, desk, concurrency=9):
        config: dict[str, Any] = {"run_id": "r", "schedule": {"concurrency": 9}}
        lines = [TaskLine(str(n), f"text {n}") for n in range(5)]
        running = Run(client, **config).start(lines)
        await desk.has(5)
        await boss.close()
        await asyncio.gather(running, return_exceptions=True)
        desk.finish("text 0")
        boss = await nodes.node("boss")
        async with await connect(boss) as second:
            again = Run(second, **config)
            running = again.start(lines)
            for text in list(desk.open):
                desk.finish(text)
            await running
    assert len(desk.seen) == len(again.results) == 5
    assert {result.status for result in again.results} == {"SUCCEEDED"}
    assert await uncollected(boss) == 0


async def test_attempts_of_tasks_that_are_done_are_cancelled_when_it_is_quiet(
    nodes: TaskWorld, boss: Node, client: DaemonClient
) -> None:
    bob = await nodes.node("bob")
    await tag(bob, bob="worker")
    desk, endless = Desk(), asyncio.Event()

    async def source() -> AsyncIterator[TaskLine]:
        yield TaskLine("b", "text b")
        await endless.wait()

    async with serving(bob, desk, concurrency=9):
        running = Run(client, run_id="r").start([TaskLine("a", "text a")])
        await desk.has(1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        async with await connect(boss) as second:
            again = Run(second, run_id="r", quiet_s=0.01)
            working = asyncio.ensure_future(again._collect(source()))
            await eventually(lambda: list(desk.open) == ["text b"], what="b alone")
            desk.finish("text b")
            await eventually(lambda: again.results, what="the result")
            assert not working.done()
            endless.set()
            await working
    assert [result.id for result in again.results] == ["b"]
    assert await uncollected(boss) == 0


async def test_result_stays_with_the_daemon_until_it_is_said_to_be_taken(
    nodes: TaskWorld, boss: Node, client: DaemonClient
) -> None:
    bob = await nodes.node("bob")
    await tag(bob, bob="worker")
    run, desk = Run(client, awaits_taken=True), Desk()
    endless = asyncio.Event()

    async def source() -> AsyncIterator[TaskLine]:
        yield TaskLine("a", "a")
        yield TaskLine("b", "b")
        await endless.wait()

    async with serving(bob, desk):
        working = asyncio.ensure_future(run._collect(source()))
        for text in "ab":
            await eventually(lambda t=text: t in desk.open, what=text)  # type: ignore[misc]
            desk.finish(text)
        await eventually(lambda: len(run.results) == 2, what="the results")
        assert await uncollected(boss) == 2
        run.orchestrator.taken("a")
        run.orchestrator.taken("b")
        endless.set()
        await working
    assert await uncollected(boss) == 0


async def test_worker_said_to_be_lost_has_its_task_done_elsewhere_at_once(
    nodes: TaskWorld, client: DaemonClient
) -> None:
    bob, eve = await nodes.node("bob"), await nodes.node("eve")
    await tag(bob, bob="worker")
    await tag(eve, eve="worker")
    run, desk, other = Run(client), Desk(), Desk()
    async with serving(bob, desk), serving(eve, other, "eve"):
        running = run.start([TaskLine("a", "text")])
        await eventually(lambda: desk.open or other.open, what="the first attempt")
        is_bob = bool(desk.open)
        victim, rest = (bob, other) if is_bob else (eve, desk)
        run.orchestrator.lost(str(victim.agent.address), "its process was killed")
        await rest.has(1)
        assert run.orchestrator.status() == {
            "workers": 2,
            "busy": 1,
            "resting": run.orchestrator.status()["resting"],
            "open": 1,
            "waiting": 0,
            "retried": 1,
        }
        rest.finish("text")
        await running
    assert run.results[0].attempts == 2


async def test_a_hub_that_is_slow_to_deliver_costs_no_attempt(
    nodes: TaskWorld, boss: Node, client: DaemonClient
) -> None:
    names = [f"w{number}" for number in range(20)]
    crew, slots = await nodes.node(*names), boss.tasks.dial_slots
    await tag(crew, **dict.fromkeys(names, "worker"))
    run, desk = Run(client, schedule={"concurrency": 2}, deliver_within_s=5.0), Desk()
    while not slots.locked():
        await slots.acquire()
    async with serving(crew, desk, *names, concurrency=2):
        running = run.start(TaskLine(f"t{n}", f"text {n}") for n in range(40))
        given = partial(boss.tasks.table.of, "boss", Role.SUBMITTED)
        is_held = boss.tasks.submitted.is_held
        await eventually(lambda: sum(map(is_held, given())) == 40, what="the queue")
        boss.wall.ahead = 60.0
        for record in given():
            boss.tasks.submitted.check_limits(record)
        boss.wall.ahead = 0.0
        for _ in range(MAX_DIALS):
            slots.release()
        while not running.done():
            await eventually(lambda: desk.open or running.done(), what="a task")
            for text in list(desk.open):
                desk.finish(text)
            await asyncio.sleep(0)
        await running
    assert len(run.results) == 40
    assert {(r.status, r.attempts) for r in run.results} == {("SUCCEEDED", 1)}


async def test_select_decides_who_is_a_worker(
    nodes: TaskWorld, client: DaemonClient
) -> None:
    bob = await nodes.node("bob", "eve")
    await tag(bob, bob="worker", eve="worker spare")
    run = Run(client, select=lambda info: "spare" not in info.tags)
    desk = Desk()
    async with serving(bob, desk, "bob", "eve"):
        running = run.start(TaskLine(str(n), str(n)) for n in range(4))
        for number in range(4):
            await eventually(lambda n=str(number): n in desk.open, what=str(number))  # type: ignore[misc]
            desk.finish(str(number))
        await running
    assert {result.agent for result in run.results} == {"bob"}
    assert run.orchestrator.worker_count == 1


async def test_run_without_tasks_ends(client: DaemonClient) -> None:
    run = Run(client)
    await run.start([])
    assert run.results == []


async def test_daemon_that_goes_away_ends_the_run(
    nodes: TaskWorld, boss: Node, client: DaemonClient
) -> None:
    running = Run(client, schedule={"unmatched_s": 1e6}).start([TaskLine("a", "text")])
    await eventually(lambda: boss.tasks.watchers._watchers, what="the watch")
    await boss.close()
    with pytest.raises(PilotError, match="closed the connection"):
        await running


async def test_source_that_fails_ends_the_run(
    nodes: TaskWorld, client: DaemonClient
) -> None:
    def lines() -> Iterable[TaskLine]:
        yield TaskLine("a", "text")
        raise Closed("no more")

    with pytest.raises(Closed, match="no more"):
        await Run(client).start(lines())


async def test_caller_may_stop_early(nodes: TaskWorld, client: DaemonClient) -> None:
    bob = await nodes.node("bob")
    await tag(bob, bob="worker")
    run, desk = Run(client), Desk()
    async with serving(bob, desk):
        running = run.start([TaskLine("a", "text")])
        await desk.has(1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert running.cancelled()
        assert list(desk.open) == ["text"], "what is under way is left to the worker"
    assert not client.is_closed


async def test_a_task_that_is_no_text_spoils_no_other(
    nodes: TaskWorld, client: DaemonClient
) -> None:
    bob = await nodes.node("bob")
    await tag(bob, bob="worker")
    run, desk = Run(client, schedule={"concurrency": 3}), Desk()
    async with serving(bob, desk, concurrency=3):
        lines = [TaskLine("a", "one"), TaskLine("b", "\ud800"), TaskLine("c", "two")]
        running = run.start(lines)
        await desk.has(2)
        desk.finish("one", "\udfff")
        desk.finish("two")
        while not running.done():
            await eventually(lambda: desk.open or running.done(), what="the end")
            for text in list(desk.open):
                desk.finish(text)
        await running
    assert {r.id: r.status for r in run.results} == {
        "a": "SUCCEEDED",
        "b": "FAILED",
        "c": "SUCCEEDED",
    }
    assert {r.attempts for r in run.results if r.id == "c"} == {1}
