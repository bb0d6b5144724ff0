"""``fleet.node``: what the agents of a daemon carry, told on the fleet's broker.

A row tells of one agent. Only those are sent whose numbers have changed, and now and
then all of them, for subscribers that came later and for what was lost on the way. To
find out costs one pass over counters that are there anyway: an idle agent has no task
here, no timer and no object of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
from itertools import chain, compress
from operator import attrgetter, ne
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

import pilotfleet
from pilotfleet.errors import PilotError
from pilotfleet.protocol.address import BACKBONE, Address
from pilotfleet.protocol.services.events import Event
from pilotfleet.protocol.services.fleetevents import NODE_TOPIC, split_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType
    from typing import Any, Self

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.host import Host

__all__ = ["NodeStatus"]

logger = logging.getLogger(__name__)

FULL_EVERY: Final = 30
"""One report in so many has the rows of all agents."""
MAX_PEERS: Final = 32
"""Peers that a row names; it counts all."""
JITTER: Final = 0.05
"""Daemons that were started together shall not report together for ever."""

_COLUMNS: Final = tuple(map(attrgetter, ("bytes_sent", "bytes_received", "changes")))
"""What is looked at, of each agent's tunnels; what follows reads the first two."""


class Publish(Protocol):
    """Publishes an event from an agent."""

    async def __call__(self, agent: Agent, event: Event, /, *, wait: bool) -> Any:
        """Hand it over, or raise a PilotError."""


class Row(msgspec.Struct):
    """One agent."""

    agent: str
    node_id: int
    tunnels: int
    bytes_sent: int
    bytes_received: int
    peers: list[str]


class Totals(msgspec.Struct):
    """All agents of the daemon."""

    agents: int = 0
    tunnels: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


class Report(msgspec.Struct):
    """The payload of an event."""

    host: str
    version: str
    interval_s: float
    started: float
    agents: list[msgspec.Raw]
    totals: Totals


class NodeStatus:
    """Reports on a host while it runs. An async context manager inside the host's.

    Args:
        host: Whose agents.
        publish: Publishes at the fleet's broker.
        brokers: Names of the fleet's brokers; if one is hosted here, it speaks.
        interval_s: Between two reports; 0 publishes none.
        wall: Unix time.
    """

    def __init__(
        self,
        host: Host,
        publish: Publish,
        *,
        interval_s: float,
        brokers: Sequence[str] = (),
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._publish = publish
        self._interval_s = interval_s
        self._brokers = brokers
        self._wall = wall
        self._agents: list[Agent] = []
        self._stats: list[object] = []
        self._seen: list[list[int]] = []
        """By column, the numbers of all agents at the last report."""
        self._tunnels: list[int] = []
        self._totals = Totals()
        self._until_full = 0
        """Reports until the next one about all agents."""
        self._name = ""
        self._started = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._started = round(self._wall(), 3)
        hostname = self._host.default_agent.hostname
        self._name = hostname or f"{socket.gethostname()}:{os.getpid()}"
        if self._interval_s > 0:
            self._task = self._host.spawn(self._run(), name="node status")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self.report()
            except PilotError as error:
                logger.debug("node status: %s", error)
                # Rows that were not told are to be told.
                self._until_full = 0
            pause_s = self._interval_s * random.uniform(1 - JITTER, 1 + JITTER)
            await asyncio.sleep(pause_s)

    async def report(self) -> None:
        """Publish what has changed since the last report.

        Raises:
            PilotError: It could not be published.
        """
        changed = self._look()
        if not self._until_full:
            changed = range(len(self._agents))
            self._until_full = FULL_EVERY
        self._until_full -= 1
        speaker = self._speaker()
        # A daemon of which nothing is new says so: it lives.
        batches = split_rows(self._rows(changed))
        for rows in chain([next(batches, [])], batches):
            event = Event(NODE_TOPIC, self._encode(rows))
            await self._publish(speaker, event, wait=False)
            # A full report of ten thousand agents takes a while.
            await asyncio.sleep(0)

    def _look(self) -> Iterable[int]:
        """Bring the totals up to date; return the places of agents that changed."""
        if len(self._agents) != len(self._host.agents):
            self._begin()
        seen, self._seen = self._seen, [list(map(get, self._stats)) for get in _COLUMNS]
        changed: set[int] = set()
        # No loop of Python's own over all agents: with ten thousand of them, this is
        # what a report costs.
        for before, now in zip(seen, self._seen, strict=True):
            if before != now:
                changed.update(compress(range(len(now)), map(ne, before, now)))
        totals, (sent, received, _) = self._totals, self._seen
        for index in changed:
            tunnels = len(self._agents[index].tunnels.connected_peers())
            totals.bytes_sent += sent[index] - seen[0][index]
            totals.bytes_received += received[index] - seen[1][index]
            totals.tunnels += tunnels - self._tunnels[index]
            self._tunnels[index] = tunnels
        return sorted(changed)

    def _begin(self) -> None:
        self._agents = list(self._host.agents.values())
        self._stats = [agent.tunnels.stats for agent in self._agents]
        self._seen = [[0] * len(self._agents) for _ in _COLUMNS]
        self._tunnels = [0] * len(self._agents)
        self._totals = Totals(agents=len(self._agents))
        self._until_full = 0

    def _rows(self, places: Iterable[int]) -> Iterator[bytes]:
        encode = msgspec.json.Encoder().encode
        sent, received, _ = self._seen
        for index in places:
            agent = self._agents[index]
            peers = agent.tunnels.connected_peers()
            yield encode(
                Row(
                    agent.name,
                    agent.node_id,
                    len(peers),
                    sent[index],
                    received[index],
                    [str(Address(BACKBONE, peer)) for peer in peers[:MAX_PEERS]],
                )
            )

    def _encode(self, rows: list[bytes]) -> bytes:
        return msgspec.json.encode(
            Report(
                host=self._name,
                version=pilotfleet.__version__,
                interval_s=self._interval_s,
                started=self._started,
                agents=[msgspec.Raw(row) for row in rows],
                totals=self._totals,
            )
        )

    def _speaker(self) -> Agent:
        """Return the agent that publishes: a broker needs no tunnel to itself."""
        for name in self._brokers:
            for agent in (self._host.agents.get(name), self._holder(name)):
                if agent is not None and agent.node_id and not agent.closed:
                    return agent
        return self._host.default_agent

    def _holder(self, hostname: str) -> Agent | None:
        default = self._host.default_agent
        return default if default.hostname == hostname else None
