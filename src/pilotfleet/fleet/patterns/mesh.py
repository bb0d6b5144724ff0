"""Mesh: every agent may give every other one tasks, over one network.

Joining the network is all the trust there is to make: n joins, and no handshake. A
batch is divided among a few entry agents, by a hash of each task's id, so that a task
comes back to the same one after a restart, which still knows how far it is. Each entry
has its share done by all other agents; never by itself, since a daemon does not tunnel
to itself, and what a mesh is measured by is what goes between agents.
"""

from __future__ import annotations

import asyncio
import hashlib
import statistics
import time
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pilotfleet.errors import InvalidArgument
from pilotfleet.fleet.patterns.hub import Hub

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        AsyncIterator,
        Iterable,
        Sequence,
    )

    from pilotfleet.fleet.agent import Agent
    from pilotfleet.fleet.orchestrator import OrchestratorConfig
    from pilotfleet.fleet.schedule import TaskResult
    from pilotfleet.fleet.taskfile import TaskLine

__all__ = ["Mesh", "MeshMeasure", "measure_mesh"]

AHEAD: Final = 256
"""Tasks that wait for one entry before the others wait, too."""
ECHO_PORT: Final = 7
DIALS_AT_A_TIME: Final = 16

_Shares: TypeAlias = "dict[str, asyncio.Queue[TaskLine | None]]"
_Merged: TypeAlias = "asyncio.Queue[TaskResult | Exception | None]"


class Mesh:
    """Several agents that share one batch. Made by :meth:`open`."""

    def __init__(self, hubs: dict[str, Hub], *, awaits_taken: bool) -> None:
        self._hubs = hubs
        self._awaits_taken = awaits_taken

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        agents: Sequence[Agent],
        config: OrchestratorConfig,
        *,
        run_id: str | None = None,
    ) -> AsyncIterator[Mesh]:
        """Prepare to run tasks through some of the agents of a mesh.

        Args:
            agents: The entries.
            config: Which tags make a worker, and how much each is given.
            run_id: The same one takes up what an earlier run has left under way.

        Raises:
            InvalidArgument: There is no entry.
        """
        if not agents:
            raise InvalidArgument("a mesh needs an agent that submits the tasks")
        async with AsyncExitStack() as stack:
            hubs: dict[str, Hub] = {}
            for number, agent in enumerate(agents):
                # Each begins elsewhere on the ring of workers, or all would give
                # their first tasks to the same ones.
                own = replace(config, offset=number / len(agents), awaits_taken=True)
                opened = Hub.open(agent, own, run_id=run_id)
                hubs[agent.address] = await stack.enter_async_context(opened)
            yield cls(hubs, awaits_taken=config.awaits_taken)

    async def run(
        self, tasks: AsyncIterable[TaskLine]
    ) -> AsyncGenerator[TaskResult, None]:
        """Run tasks and yield one result for each, in the order of their ends.

        Raises:
            PilotError: An entry's daemon went away.
        """
        merged: _Merged = asyncio.Queue(AHEAD)
        shares: _Shares = {name: asyncio.Queue(AHEAD) for name in self._hubs}
        helpers = [asyncio.ensure_future(_divide(tasks, shares, merged))]
        helpers += [
            asyncio.ensure_future(_run_share(hub, shares[name], merged))
            for name, hub in self._hubs.items()
        ]
        left = len(self._hubs)
        try:
            while left:
                item = await merged.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    left -= 1
                else:
                    yield item
                    if not self._awaits_taken:
                        self.taken(item.id)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

    def taken(self, task_id: str) -> None:
        """Say that a result is safe; only needed with ``awaits_taken``."""
        self._hubs[_entry(task_id, self._hubs)].taken(task_id)

    def status(self) -> dict[str, Any]:
        """Return the numbers of workers and of tasks, of all entries together."""
        rows = [hub.status() for hub in self._hubs.values()]
        total = {key: sum(row[key] for row in rows) for key in rows[0]}
        # Each entry knows all others, so one more than it knows.
        most = max(row["workers"] for row in rows)
        return {**total, "workers": most + 1, "entries": len(rows)}

    def lost(self, name: str) -> None:
        """Give the tasks of a worker that is known to be dead to others."""
        for hub in self._hubs.values():
            hub.lost(name)


async def _divide(
    tasks: AsyncIterable[TaskLine], shares: _Shares, merged: _Merged
) -> None:
    """Give each task to the entry that its id belongs to."""
    try:
        async for line in tasks:
            await shares[_entry(line.id, shares)].put(line)
        for share in shares.values():
            await share.put(None)
    except Exception as error:  # The caller's source may raise anything.
        await merged.put(error)


def _entry(task_id: str, names: Iterable[str]) -> str:
    """Return the entry of a task: the same one while it is there.

    Whoever joins or leaves takes or gives up its own share, and no other moves.
    """

    def weight(name: str) -> bytes:
        text = f"{name} {task_id}".encode(errors="surrogatepass")
        return hashlib.blake2b(text, digest_size=8).digest()

    return max(names, key=weight)


async def _run_share(
    hub: Hub, share: asyncio.Queue[TaskLine | None], merged: _Merged
) -> None:
    try:
        async with aclosing(hub.run(_lines(share))) as results:
            async for result in results:
                await merged.put(result)
        await merged.put(None)
    except Exception as error:  # Whatever it is, the run must not wait for ever.
        await merged.put(error)


async def _lines(share: asyncio.Queue[TaskLine | None]) -> AsyncIterator[TaskLine]:
    while (line := await share.get()) is not None:
        yield line


@dataclass(frozen=True, slots=True)
class MeshMeasure:
    """What it took to have every agent reach every other."""

    agents: int
    joins: int
    """Memberships in networks: the trust that was made."""
    handshakes: int
    """Trusted or asked peers, over all agents: none in a mesh of one network."""
    pairs: int
    """Pairs in which one dialled the other and had an echo."""
    dial_p50_ms: float
    """From the dial to the echo, tunnel included."""
    dial_max_ms: float


async def measure_mesh(
    agents: Sequence[Agent], *, pairs: int | None = None
) -> MeshMeasure:
    """Have agents of one mesh dial each other's echo port.

    Args:
        agents: At least two, in one network.
        pairs: How many of the n·(n-1) ordered pairs, evenly chosen; None for all.

    Raises:
        PilotError: A pair cannot reach each other.
    """
    chosen = _sample(agents, pairs)
    slots = asyncio.Semaphore(DIALS_AT_A_TIME)
    times = await asyncio.gather(*(_echo(slots, *pair) for pair in chosen))
    networks = [await agent.networks() for agent in agents]
    peers = [await agent.trusted() + await agent.pending() for agent in agents]
    return MeshMeasure(
        agents=len(agents),
        joins=sum(map(len, networks)),
        handshakes=sum(map(len, peers)),
        pairs=len(times),
        dial_p50_ms=round(statistics.median(times), 3),
        dial_max_ms=round(max(times), 3),
    )


def _sample(agents: Sequence[Agent], pairs: int | None) -> list[tuple[Agent, Agent]]:
    count = len(agents)
    everything = count * (count - 1)
    wanted = everything if pairs is None else min(pairs, everything)
    if not wanted:
        raise InvalidArgument("a mesh to measure has at least two agents")
    numbers = (index * everything // wanted for index in range(wanted))
    chosen = []
    for number in numbers:
        source, step = divmod(number, count - 1)
        chosen.append((agents[source], agents[(source + step + 1) % count]))
    return chosen


async def _echo(slots: asyncio.Semaphore, source: Agent, target: Agent) -> float:
    async with slots:
        started = time.perf_counter()
        async with await source.dial(target.address, ECHO_PORT) as stream:
            await stream.write(b"hello")
            await stream.read_exactly(5)
        return (time.perf_counter() - started) * 1000
