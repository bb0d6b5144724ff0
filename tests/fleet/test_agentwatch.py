"""``Agent.watch``, and orchestrators that hear of their workers."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.errors import Closed, ConnectionFailed, InvalidArgument, NotSupported
from pilotfleet.fleet.agent import Agent
from pilotfleet.fleet.agentwatch import AgentWatch
from pilotfleet.fleet.taskfile import TaskLine
from pilotfleet.fleet.workerwatch import WorkerWatch
from pilotfleet.node.ipc.watch import MAX_WATCHES
from pilotfleet.protocol.ipc.framing import encode_frame
from tests.fleet.test_orchestrator import Run, connect, tag
from tests.fleet.worker.support import Desk, serving
from tests.node.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.services.tasks.support import Node, TaskWorld

WAIT_S = 20.0


@pytest.fixture
async def boss(nodes: TaskWorld) -> Node:
    return await nodes.node("boss")


@pytest.fixture
async def agent(boss: Node) -> AsyncIterator[Agent]:
    async with await Agent.connect(boss.host.config.socket) as made:
        yield made


async def test_changes_are_typed_and_in_order(
    nodes: TaskWorld, boss: Node, agent: Agent
) -> None:
    bob = await nodes.node("bob")
    seen: list[tuple[str, str, frozenset[str]]] = []

    async with asyncio.timeout(WAIT_S), agent.watch(tags=["a", "b"], any_tag=True) as w:
        await tag(bob, bob="a")
        async for change in w:
            seen.append((change.kind, change.agent.name, change.agent.tags))
            match len(seen):
                case 1:
                    assert w.is_live
                    assert w.is_complete
                    assert [a.name for a in w.agents.values()] == ["bob"]
                    await tag(bob, bob="a b")
                case 2:
                    await tag(bob, bob="other")
                case 3:
                    break
        assert not w.agents
    assert seen == [
        ("added", "bob", frozenset("a")),
        ("changed", "bob", frozenset("ab")),
        ("removed", "bob", frozenset("ab")),
    ]
    await eventually(lambda: not len(boss.host.watches), what="it has ended")


async def test_cancelled_wait_loses_nothing(
    nodes: TaskWorld, boss: Node, agent: Agent
) -> None:
    bob = await nodes.node("bob")
    async with agent.watch(tags=["a"]) as watch:
        for _ in range(3):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await anext(watch)
        await tag(bob, bob="a")
        async with asyncio.timeout(WAIT_S):
            assert (await anext(watch)).agent.name == "bob"


async def test_end_of_the_agent_ends_its_watches(boss: Node) -> None:
    async with await Agent.connect(boss.host.config.socket) as agent:
        watch = agent.watch(tags=["nobody"])
        waiting = asyncio.ensure_future(anext(watch, None))
        # Told that it is live, so it is open on both sides.
        await eventually(lambda: watch.is_live, what="it watches")
    assert await waiting is None
    with pytest.raises(Closed):
        await watch.receive()
    await eventually(lambda: not len(boss.host.watches), what="it has ended")


async def test_watch_that_ends_while_it_is_opened_leaves_nothing(boss: Node) -> None:
    path = boss.host.config.socket
    assert path is not None
    made: list[DaemonClient] = []

    async def connect_late() -> DaemonClient:
        made.append(await DaemonClient.connect(path))
        await watch.close()
        return made[0]

    watch = AgentWatch(connect_late, {"tags": ["nobody"]})
    async with asyncio.timeout(WAIT_S):
        assert await anext(watch, None) is None
    assert made[0].is_closed
    await eventually(lambda: not len(boss.host.watches), what="it has ended")


async def test_refused_question_is_an_error(agent: Agent) -> None:
    watch = agent.watch(tags=[f"t-{n}" for n in range(20)])
    with pytest.raises(ConnectionFailed, match="too many tags"):
        await anext(watch)
    with pytest.raises(InvalidArgument):
        await anext(agent.watch(tags=[1]))  # type: ignore[list-item]


async def test_official_daemon_cannot_watch(tmp_path: Path) -> None:
    """It refuses the frame, as 1.18.0 does."""
    path = tmp_path / "s"

    async def refuse(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.read(1 << 16)
        writer.write(encode_frame(0x0A, b"\0\1unknown command: 0x80"))
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(refuse, str(path))

    async def connect() -> DaemonClient:
        return await DaemonClient.connect(path)

    async with AgentWatch(connect, {}) as watch:
        with pytest.raises(NotSupported, match="cannot watch"):
            await anext(watch)
    server.close()
    await server.wait_closed()


# Orchestrators


async def test_worker_is_heard_of_and_not_looked_for(
    nodes: TaskWorld, boss: Node
) -> None:
    async with await connect(boss) as client:
        run, desk = Run(client, refresh_s=3600.0), Desk()
        running = run.start([TaskLine("a", "text")])
        await eventually(lambda: len(boss.host.watches), what="it watches")
        bob = await nodes.node("bob")
        await tag(bob, bob="worker")
        async with serving(bob, desk):
            await desk.has(1)
            desk.finish("text")
            await running
        assert run.results[0].agent == "bob"
        await eventually(lambda: not len(boss.host.watches), what="it has ended")


async def test_worker_is_looked_for_where_the_registry_does_not_tell(
    nodes: TaskWorld, boss: Node
) -> None:
    boss.host.registry.extensions -= {"watch"}
    async with await connect(boss) as client:
        run, desk = Run(client), Desk()
        running = run.start([TaskLine("a", "text")])
        bob = await nodes.node("bob")
        await tag(bob, bob="worker")
        async with serving(bob, desk):
            await desk.has(1)
            desk.finish("text")
            await running


async def test_groups_are_watched_and_let_go(nodes: TaskWorld, boss: Node) -> None:
    bob = await nodes.node("bob", "eve")
    await tag(bob, bob="w x", eve="w y")
    async with await connect(boss) as client:
        watch = WorkerWatch(client, {})
        told = asyncio.Event()

        async def read() -> None:
            async for push in client.pushes():
                if watch.take(push):
                    told.set()

        reading = asyncio.create_task(read())
        await watch.follow([("w", "x")])
        await asyncio.wait_for(told.wait(), WAIT_S)
        assert await watch.follow([("w", "x")])
        assert {info.name for info in watch.workers()} == {"bob"}
        told.clear()
        await watch.follow([("w", "x"), ("w", "y")])
        await asyncio.wait_for(told.wait(), WAIT_S)
        assert {info.name for info in watch.workers()} == {"bob", "eve"}
        assert await watch.follow([("w", "y")])
        assert {info.name for info in watch.workers()} == {"eve"}
        assert await watch.follow([])
        assert not list(watch.workers())
        await watch.close()
        await client.close()
        await reading


async def test_groups_that_are_not_all_watched_tell_nothing(boss: Node) -> None:
    async with await connect(boss) as client:
        watch = WorkerWatch(client, {})
        groups = [(f"w{number}",) for number in range(MAX_WATCHES + 1)]
        with pytest.raises(ConnectionFailed, match="16 watches"):
            await watch.follow(groups)
        left = len(groups) - 1
        async for push in client.pushes():
            # Each is told of its group, and knows that one is missing.
            assert not watch.take(push)
            left -= 1
            if not left:
                break
        assert not watch.is_told
        assert await watch.follow(groups[1:-1])


async def test_watch_that_ended_is_begun_anew(boss: Node) -> None:
    async with await connect(boss) as client:
        watch = WorkerWatch(client, {})
        await watch.follow([("w",)])
        (name,) = watch._groups
        assert not watch.take({"push": "watch", "watch": name, "error": {}})
        assert not watch.is_told
        assert not watch.take({"push": "watch", "watch": "other", "complete": True})
        await client.call("unwatch", watch=name)
        await watch.follow([("w",)])
        async for push in client.pushes():
            if watch.take(push):
                break
        assert watch.is_told
