"""A sub-orchestrator between real daemons."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import NotFound
from pilotfleet.fleet.patterns.handover import unwrap_result, wrap_task
from pilotfleet.fleet.patterns.hierarchy import TOP_TAG
from pilotfleet.fleet.taskfile import TaskLine
from pilotfleet.fleet.worker.delegate import Delegate, DelegateConfig
from pilotfleet.fleet.worker.job import Outcome
from pilotfleet.fleet.worker.runner import Worker, WorkerConfig
from tests.fleet.test_orchestrator import Run, connect, tag
from tests.fleet.worker.support import Desk, serving
from tests.node.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pilotfleet.client.daemon import DaemonClient
    from tests.services.tasks.support import Node, TaskWorld


@pytest.fixture
async def top(nodes: TaskWorld) -> AsyncIterator[DaemonClient]:
    """Yield a connection to the agent above."""
    async with await connect(await nodes.node("boss")) as client:
        yield client


@pytest.fixture
async def middle(nodes: TaskWorld) -> Node:
    """Return the node of the sub-orchestrator."""
    node = await nodes.node("sub")
    await tag(node, sub=TOP_TAG)
    return node


@pytest.fixture
async def below(nodes: TaskWorld) -> Node:
    """Return a node with a worker of each of two clusters."""
    node = await nodes.node("amy", "bob")
    await tag(node, amy="worker c1 fast", bob="worker c2")
    return node


@contextlib.asynccontextmanager
async def delegating(node: Node, level: int = 1) -> AsyncIterator[Delegate]:
    """Run the sub-orchestrator of cluster ``c1``."""
    socket = node.host.config.socket
    assert socket is not None
    config = DelegateConfig("sub", socket, cluster="c1", tree="boss", level=level)
    served = WorkerConfig(
        ["sub"], socket, concurrency=20, max_processes=20, health_interval_s=0.0
    )
    async with Delegate(config) as delegate:
        work = asyncio.ensure_future(Worker(served, delegate.run).run(asyncio.Event()))
        try:
            yield delegate
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)


def run_of(top: DaemonClient) -> Run:
    return Run(top, tags=(TOP_TAG,), schedule={"concurrency": 20})


def lines(*texts: str, tags: tuple[str, ...] = ()) -> list[TaskLine]:
    return [wrap_task(TaskLine(text, text, tags)) for text in texts]


def tree(**parents: str) -> bytes:
    return json.dumps({"epoch": 1, "parents": parents}).encode()


async def test_results_come_up_with_the_worker_that_made_them(
    top: DaemonClient, middle: Node, below: Node
) -> None:
    desk, run = Desk(), run_of(top)
    async with serving(below, desk, "amy", "bob"), delegating(middle):
        working = run.start(lines("one", "two", tags=("fast", "worker")))
        await desk.has(1)
        desk.finish("one", "first")
        await desk.has(1)
        desk.finish("two", "second")
        await working
    results = [unwrap_result(result) for result in run.results]
    assert [(each.agent, each.result) for each in results] == [
        ("amy", "first"),
        ("amy", "second"),
    ]
    assert [each.attempts for each in results] == [1, 1]


async def test_a_cluster_that_is_taken_over_works_for_its_new_parent(
    top: DaemonClient, middle: Node, below: Node
) -> None:
    desk, run = Desk(), run_of(top)
    async with serving(below, desk, "amy", "bob"), delegating(middle) as delegate:
        for payload in (
            b"none of ours",
            b'{"parents": {"c1": "\xff"}}',
            b'{"parents": ' + b'{"a":' * 90_000,
            b'{"parents": {"c1": 7}, "lost": {}}',
            b'{"parents": {"c1": "sub"}, "lost": {"amy": 1e9}}',
            b'{"parents": {"c1": "sub"}, "lost": {"amy": 9' + b"9" * 9_000 + b"}}",
        ):
            await delegate.take_tree(payload)
        await delegate.take_tree(tree(c1="sub", c2="sub"))
        assert list(delegate.clusters) == ["c1", "c2"]
        working = run.start(lines("one", "two"))
        await desk.has(2)
        await delegate.take_tree(tree(c1="sub", c2="other"))
        assert list(delegate.clusters) == ["c1"]
        # What is under way in a cluster that goes home again still counts.
        desk.finish("one")
        desk.finish("two")
        await working
    agents = {unwrap_result(result).agent for result in run.results}
    assert agents == {"amy", "bob"}


async def test_failures_come_up_as_they_are(
    top: DaemonClient, middle: Node, below: Node
) -> None:
    desk, run = Desk(), run_of(top)
    async with serving(below, desk, "amy"), delegating(middle):
        working = run.start(lines("bad"))
        await desk.has(1)
        desk.end("bad", Outcome(ok=False, error="it said no"))
        await working
    result = unwrap_result(run.results[0])
    assert (result.status, result.error) == ("FAILED", "it said no")
    assert result.retryable is False
    assert desk.seen == ["bad"]


async def test_a_header_that_is_none_fails_the_task(
    top: DaemonClient, middle: Node, below: Node
) -> None:
    run = run_of(top)
    async with delegating(middle):
        await run.start([TaskLine("x", "\x1enot json\ntext")])
        await run.start([TaskLine("y", '\x1e{"priority":1000}\ntext')])
    assert [result.status for result in run.results] == ["FAILED", "FAILED"]
    assert "header of a task" in run.results[0].error
    assert "priority 1000" in run.results[1].error


async def test_a_task_that_is_given_up_above_ends_below(
    top: DaemonClient, middle: Node, below: Node
) -> None:
    desk, run = Desk(), run_of(top)
    async with serving(below, desk, "amy"), delegating(middle):
        working = run.start(lines("long"))
        await desk.has(1)
        run.orchestrator.cancel("long")
        await desk.has(0)
        await working
    assert run.results == []


async def test_what_is_under_way_is_taken_up_after_a_restart(
    top: DaemonClient, middle: Node, below: Node
) -> None:
    desk, run = Desk(), run_of(top)
    async with serving(below, desk, "amy"):
        async with delegating(middle):
            working = run.start(lines("long"))
            await desk.has(1)
        async with delegating(middle):
            await eventually(lambda: not run.results, what="nothing")
            desk.finish("long", "once")
            await working
    assert unwrap_result(run.results[0]).result == "once"
    assert desk.seen == ["long"]


async def test_a_worker_that_is_known_to_be_dead_gets_nothing_more(
    top: DaemonClient, middle: Node, below: Node
) -> None:
    desk, run = Desk(), run_of(top)
    async with serving(below, desk, "amy", "bob"), delegating(middle) as delegate:
        await delegate.take_tree(tree(c1="sub", c2="sub"))
        working = run.start(lines("one"))
        await desk.has(1)
        first = list(desk.seen)
        dead = {"epoch": 1, "parents": {"c1": "sub", "c2": "sub"}}
        for name in ("amy", "bob"):
            await delegate.take_tree(json.dumps({**dead, "lost": {name: 1}}).encode())
        await eventually(lambda: len(desk.seen) > len(first), what="another try")
        await desk.has(1)
        desk.finish("one")
        await working
    assert unwrap_result(run.results[0]).attempts > 1


async def test_its_health_rolls_up(middle: Node, below: Node) -> None:
    async with delegating(middle) as delegate:
        await eventually(lambda: delegate.health()["workers"] == 1, what="amy")
        health = delegate.health()
    assert health["agent"] == "sub"
    assert health["status"] == "idle"
    assert health["clusters"] == ["c1"]
    assert (health["workers_busy"], health["tasks_completed"]) == (0, 0)
    assert health["interval_s"] == 2.0


async def test_it_says_goodbye(middle: Node) -> None:
    told: list[dict[str, Any]] = []

    async def publish(_: Any, agent: Any, params: dict[str, Any]) -> dict[str, Any]:
        assert (params["topic"], params["broker"]) == ("fleet.health", "boss")
        told.append(json.loads(params["data"]))
        return {}

    middle.host.extensions["publish"] = publish
    async with delegating(middle):
        await eventually(lambda: told, what="its first health")
    assert [health["status"] for health in told] == ["idle", "stopped"]
    assert told[-1]["agent"] == "sub"


async def test_what_ends_a_sub_orchestrator_is_told_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DelegateConfig("sub", tmp_path / "none", cluster="c1", tree="boss")
    with pytest.raises(NotFound, match="no such agent"):
        async with Delegate(config):
            raise NotFound("no such agent")

    def defect(_: object) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr("pilotfleet.client.daemon.DaemonClient.connect", defect)
    with pytest.raises(ExceptionGroup):
        async with Delegate(config), asyncio.timeout(10):
            await asyncio.Event().wait()
