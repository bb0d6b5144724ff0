"""Scores with real programs: the gate, and restarts that lose and repeat nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.client.registry import RegistryClient
from pilotfleet.protocol.registry.endpoints import parse_endpoint
from pilotfleet.protocol.services.polo import reward
from tests.fleet.crewsupport import start_crew, start_hub
from tests.services.tasks.support import Program
from tests.support.programs import World, data_of, world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.timeout(180)

LIMIT_S = 60.0
WORKERS = tuple(f"a-{number}" for number in range(1, 6))
LONG_S = 25.5
"""A task of this length is worth 2."""


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        yield made


async def connect(net: World, daemon: str, agent: str) -> Program:
    return Program(await DaemonClient.connect(net.socket(daemon)), agent)


async def eventually(program: Program, is_true: Callable[[Any], bool]) -> Any:
    """Return the receipts of a program's agent once they look right."""
    async with asyncio.timeout(LIMIT_S):
        while not is_true(  # noqa: ASYNC110 - nobody announces it
            shown := await program.polo("receipts", limit=1000)
        ):
            await asyncio.sleep(0.05)
    return shown


async def score(net: World, node: int) -> int:
    """Return a node's score, after checking that its receipts make it up."""
    async with RegistryClient(parse_endpoint(net.registry)) as registry:
        found = await registry.list_receipts(
            None, node, limit=1000, admin_token=net.admin_token
        )
        assert found["base"] == 0
        audited = sum(
            row["reward"] if row["worker"] == node else -1 for row in found["receipts"]
        )
        shown = await registry.get_polo_score(node)
    assert found["score"] == audited == shown
    return shown


# The gate


async def test_two_fresh_nodes_do_one_task_each_way_in_turn(net: World) -> None:
    net.start_rendezvous()
    nodes: dict[str, int] = {}
    for name in ("a", "b"):
        net.start_daemon(name, "--hostname", name, "--trust-auto-approve")
        nodes[name] = data_of(net.ctl(name, "info"))["node_id"]
    data_of(net.ctl("a", "handshake", str(nodes["b"])))
    data_of(net.ctl("a", "ping", str(nodes["b"]), "--count", "1"))
    programs = {name: await connect(net, name, name) for name in nodes}

    async def give(submitter: str, worker: str) -> dict[str, Any]:
        target = nodes[worker]
        return await programs[submitter].call("submit", target=target, task="x")

    async def do(submitter: str, worker: str) -> None:
        answer = await give(submitter, worker)
        assert answer["accepted"], answer
        task_id = answer["task_id"]
        await programs[worker].call("accept", task_id=task_id)
        await programs[worker].call("execute")
        await programs[worker].call("send-results", task_id=task_id, results="done")
        await eventually(
            programs[submitter],
            lambda shown: (
                shown["receipts"][:1]
                and shown["receipts"][0]["task_id"] == task_id
                and shown["receipts"][0]["state"] == "counted"
            ),
        )

    await do("a", "b")
    assert (await score(net, nodes["a"]), await score(net, nodes["b"])) == (-1, 1)
    for _ in range(2):
        refused = await give("a", "b")
        assert (refused["accepted"], refused["status"]) == (False, 400)
        assert refused["message"].startswith("Task rejected by polo gate: ")
    await do("b", "a")
    assert (await score(net, nodes["a"]), await score(net, nodes["b"])) == (0, 0)
    await do("a", "b")
    for program in programs.values():
        await program.close()


# 500 tasks


class Batch:
    """A submitter of its own daemon, and a program that does its tasks."""

    def __init__(self, net: World, network: str) -> None:
        start_crew(net, network, len(WORKERS))
        self._net = net
        self._done = asyncio.Event()
        self._left: set[str] = set()
        self._tasks: set[asyncio.Future[None]] = set()
        self.hub: Program
        self.crew: Program

    async def open(self) -> None:
        self.crew = await connect(self._net, "crew", WORKERS[0])
        rows = await self.crew.call_plain("agents")
        self.nodes = {row["name"]: row["node_id"] for row in rows["agents"]}
        await self.crew.call("serve", agents=list(WORKERS), concurrency=100)
        self._start(self._work())
        await self.connect_hub()

    async def connect_hub(self) -> None:
        self.hub = await connect(self._net, "hub", "hub")
        await self.hub.call("watch")
        self._start(self._watch(self.hub))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.hub.close()
        await self.crew.close()

    async def submit(self, count: int, text: str) -> None:
        """Give tasks to all workers in turn."""
        for number in range(count):
            target = self.nodes[WORKERS[number % len(WORKERS)]]
            answer = await self.hub.call("submit", target=target, task=text, wait=False)
            self._left.add(answer["task_id"])

    async def finished(self, left: int = 0) -> None:
        """Wait until all but so many tasks have succeeded."""
        async with asyncio.timeout(LIMIT_S):
            while len(self._left) > left:
                self._done.clear()
                await self._done.wait()

    async def has_earned(self, worker: str, due: int) -> None:
        """Wait until a worker has receipts of so much: they come a little later."""
        earned = None
        async with asyncio.timeout(LIMIT_S):
            while earned != due:
                shown = await self.crew.polo("receipts", agent=worker, limit=1)
                earned = shown["sums"]["earned"]

    def _start(self, coro: Any) -> None:
        self._tasks.add(asyncio.ensure_future(coro))

    async def _work(self) -> None:
        while True:
            offer = await self.crew.expect_any("offer")
            self._start(self._do(offer))

    async def _do(self, offer: dict[str, Any]) -> None:
        task = offer["task"]
        if task["task_description"] == "long":
            await asyncio.sleep(LONG_S)
        fields = {"agent": offer["agent"], "task_id": task["task_id"]}
        await self.crew.call("finish", ok=True, result=task["task_id"], **fields)

    async def _watch(self, hub: Program) -> None:
        while True:
            push = await hub.expect_any("update")
            if push["status"] == "SUCCEEDED":
                self._left.discard(push["task_id"])
                self._done.set()


async def test_restarts_lose_no_receipt_and_count_none_twice(net: World) -> None:
    network = start_hub(net)
    rendezvous, hub = net.programs
    batch = Batch(net, network)
    await batch.open()
    await batch.submit(100, "long")
    await batch.submit(100, "short")
    await batch.finished(left=100)

    rendezvous.kill()
    await batch.submit(100, "short")
    await batch.finished(left=100)
    rendezvous = net.start_rendezvous()
    await batch.submit(100, "short")
    await batch.finished(left=100)

    # Now the submitter's daemon as well, with receipts that it could not deliver.
    rendezvous.kill()
    await batch.submit(100, "short")
    await batch.finished(left=100)
    hub.kill()
    net.start_rendezvous()
    net.start_daemon("hub", "--hostname", "hub", "--broker", "hub")
    await batch.connect_hub()
    await batch.finished()

    shown = await eventually(
        batch.hub,
        lambda shown: shown["sums"]["counted"] + shown["sums"]["known"] == 500,
    )
    formula = sum(
        reward(
            time_cpu_ms=row["cpu_ms"],
            time_idle_ms=row["idle_ms"],
            time_staged_ms=row["staged_ms"],
        )
        for row in shown["receipts"]
    )
    assert len(shown["receipts"]) == 500
    assert formula == shown["sums"]["awarded"] == 600
    assert (shown["sums"]["score"], shown["rejected"]) == (-500, {})
    earned = 0
    for name in WORKERS:
        due = await score(net, batch.nodes[name])
        await batch.has_earned(name, due)
        earned += due
    assert earned == formula
    hub_node = shown["receipts"][0]["submitter"]
    assert await score(net, hub_node) == -500
    await batch.close()
