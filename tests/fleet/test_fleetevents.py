"""What real daemons and workers publish, seen by a subscriber."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.fleet.agent import Agent
from tests.fleet.crewsupport import start_crew, start_hub
from tests.support.programs import BIN, data_of, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tests.support.programs import Program, World

LIMIT_S = 60.0


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        yield made


class Watch:
    """Keeps what came on ``fleet.*``."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._changed = asyncio.Event()

    async def follow(self, socket: Path, since: float | None = None) -> None:
        """Subscribe for ever."""
        async with (
            await Agent.connect(socket) as agent,
            await agent.subscribe("fleet.*", since=since) as events,
        ):
            async for topic, payload in events:
                self.events.append((topic, json.loads(payload)))
                self._changed.set()

    def of(self, topic: str) -> list[dict[str, Any]]:
        """Return the events of a topic."""
        return [event for each, event in self.events if each == topic]

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows about tasks."""
        return [row for event in self.of("fleet.task") for row in event["tasks"]]

    def nodes(self, host: str) -> list[dict[str, Any]]:
        """Return the reports of a daemon."""
        return [event for event in self.of("fleet.node") if event["host"] == host]

    async def until(self, is_true: Callable[[], object], what: str) -> None:
        """Wait for something that an event brings."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while not is_true():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"{what} did not come: {self.events[-5:]}") from None


@contextlib.asynccontextmanager
async def watching(socket: Path, since: float | None = None) -> AsyncIterator[Watch]:
    watch = Watch()
    task = asyncio.ensure_future(watch.follow(socket, since))
    try:
        yield watch
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def start_worker(net: World, name: str, *flags: str) -> Program:
    """Start a worker of the crew whose results are its tasks."""
    ready = net.home / f"{name}.worker.json"
    program = net.start(
        f"{name}-worker",
        BIN / "openclaw-worker",
        *("--id", name, "--exec", "cat", "--socket", net.socket("crew")),
        *("--health-interval", "1s", "--ready-file", ready, *flags),
    )
    program.wait_until(ready.exists)
    return program


async def test_daemons_tell_of_their_tunnels(net: World) -> None:
    network = start_hub(net, "--node-report", "1s")
    start_crew(net, network, 3, "--node-report", "1s")
    async with watching(net.socket("hub")) as watch:
        await watch.until(lambda: watch.nodes("a-1"), "the crew")
        first = watch.nodes("a-1")[0]
        assert first["totals"]["agents"] == 3
        assert first["interval_s"] == 1.0
        async with (
            await Agent.connect(net.socket("crew"), name="a-2") as agent,
            await Agent.connect(net.socket("hub")) as boss,
        ):

            def seen(host: str, name: str, peer: str) -> bool:
                return any(
                    row["agent"] == name and peer in row["peers"]
                    for event in watch.nodes(host)
                    for row in event["agents"]
                )

            def total() -> int:
                return int(watch.nodes("a-1")[-1]["totals"]["bytes_sent"])

            before = total()
            async with await agent.dial("hub", 7) as stream:
                await stream.write(b"x" * 50_000)
                await stream.read_exactly(50_000)
            await watch.until(lambda: seen("a-1", "a-2", boss.address), "a tunnel")
            await watch.until(lambda: seen("hub", "hub", agent.address), "its end")
            await watch.until(lambda: total() > before + 50_000, "its bytes")


async def test_daemon_that_starts_again_tells_so(net: World) -> None:
    network = start_hub(net)
    start_crew(net, network, 1, "--node-report", "1s")
    async with watching(net.socket("hub")) as watch:
        await watch.until(lambda: watch.nodes("a-1"), "the crew")
        net.programs[-1].terminate()
        count = len(watch.nodes("a-1"))
        start_crew(net, network, 1, "--node-report", "1s")
        await watch.until(lambda: len(watch.nodes("a-1")) > count, "the crew again")
        first, last = watch.nodes("a-1")[0], watch.nodes("a-1")[-1]
        assert last["started"] > first["started"]
        assert [row["agent"] for row in first["agents"]] == ["a-1"]


async def test_worker_tells_of_its_health_its_tasks_and_its_end(net: World) -> None:
    start_crew(net, start_hub(net), 2)
    worker = start_worker(net, "a-1")
    text = "<script>\x01" + "é" * 300
    async with watching(net.socket("hub"), since=60.0) as watch:
        async with await Agent.connect(net.socket("crew"), name="a-2") as agent:
            handle = await agent.submit("a-1", text)
            assert (await handle).result == text
        await watch.until(watch.rows, "the row")
        [row] = watch.rows()
        assert (row["agent"], row["task_id"]) == ("a-1", handle.task_id)
        assert (row["status"], row["text"]) == ("SUCCEEDED", text[:200])
        assert await asyncio.to_thread(worker.terminate) == 0
        await watch.until(
            lambda: watch.of("fleet.health")[-1]["status"] == "stopped", "its farewell"
        )
        last = watch.of("fleet.health")[-1]
        assert (last["agent"], last["tasks_completed"]) == ("a-1", 1)
        assert last["interval_s"] == 1.0


async def test_no_end_of_a_task_is_lost_while_the_broker_is_away(net: World) -> None:
    network = start_hub(net)
    hub = net.programs[-1]
    start_crew(net, network, 2)
    start_worker(net, "a-1", "--concurrency", "4")
    ids: list[str] = []
    async with await Agent.connect(net.socket("crew"), name="a-2") as agent:

        async def work(count: int) -> None:
            handles = [await agent.submit("a-1", f"task {n}") for n in range(count)]
            for handle in handles:
                assert (await handle).status == "SUCCEEDED"
            ids.extend(handle.task_id for handle in handles)

        await work(20)
        hub.kill()
        await work(20)
        start_broker(net)
        await work(20)
        async with watching(net.socket("hub"), since=600.0) as watch:
            await watch.until(
                lambda: {row["task_id"] for row in watch.rows()} == set(ids),
                "all of them",
            )
            keys = {(row["agent"], row["task_id"], row["at"]) for row in watch.rows()}
            assert len(keys) == len(ids)


def start_broker(net: World) -> None:
    """Start the hub's daemon again."""
    net.start_daemon(
        "hub", "--hostname", "hub", "--broker", "hub", "--polo-gate", "off"
    )
    assert data_of(net.ctl("hub", "info"))["hostname"] == "hub"
