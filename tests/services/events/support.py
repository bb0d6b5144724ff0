"""In-memory streams, agents and a host for the event service."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pilotfleet.errors import ConnectionRefused, ConnectionReset, NotFound
from pilotfleet.protocol.address import Address, SocketAddress

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from pilotfleet.services.events.broker import EventBroker

WINDOW = 256 << 10


class MemoryStream:
    """One end of a connection whose two ends are in this process."""

    def __init__(self, remote: SocketAddress) -> None:
        self.remote = remote
        self.other: MemoryStream
        self._received = bytearray()
        self._is_ended = False
        self._changed = asyncio.Condition()
        self.is_broken = False
        self._tasks: list[asyncio.Future[None]] = []

    @property
    def unacknowledged_bytes(self) -> int:
        return len(self.other._received)

    def abort(self) -> None:
        self.is_broken = self.other.is_broken = True
        # Readers of both ends find out; nobody waits for them.
        self._tasks.append(asyncio.ensure_future(self.break_off()))

    @property
    def is_open(self) -> bool:
        return not self.is_broken

    async def read(self, limit: int = 65536) -> bytes:
        async with self._changed:
            await self._changed.wait_for(lambda: self._received or self._is_ended)
            if self.is_broken:
                raise ConnectionReset("stream was broken by the test")
            data = bytes(self._received[:limit])
            del self._received[:limit]
            self._changed.notify_all()
            return data

    async def write(self, data: bytes) -> None:
        if self.is_broken:
            raise ConnectionReset("stream was broken by the test")
        peer = self.other
        async with peer._changed:
            # Back-pressure: at most a window of unread data.
            await peer._changed.wait_for(
                lambda: len(peer._received) < WINDOW or peer._is_ended
            )
            peer._received += data
            peer._changed.notify_all()

    async def close(self) -> None:
        await self.other._end()

    async def break_off(self) -> None:
        """Break both ends."""
        for end in (self, self.other):
            end.is_broken = True
            await end._end()

    async def _end(self) -> None:
        async with self._changed:
            self._is_ended = True
            self._changed.notify_all()


def stream_pair(near: int, far: int) -> tuple[MemoryStream, MemoryStream]:
    """Return the ends at two nodes of one connection."""
    ends = [MemoryStream(SocketAddress(Address(0, node), 1002)) for node in (far, near)]
    ends[0].other, ends[1].other = ends[1], ends[0]
    return ends[0], ends[1]


class MemoryAgent:
    """An agent that dials other hosts of the same test."""

    def __init__(self, host: MemoryHost, node_id: int, hostname: str) -> None:
        self.host = host
        self.node_id = node_id
        self.name = hostname
        self.hostname = hostname
        self.refuses = False
        self.dialed: list[MemoryStream] = []
        self.events: list[tuple[str, dict[str, Any]]] = []

    def report(self, event: str, /, **data: Any) -> None:
        self.events.append((event, data))

    async def dial(self, remote: SocketAddress) -> MemoryStream:
        peer = self.host.world.get(remote.address.node)
        if peer is None or peer.refuses:
            raise ConnectionRefused(f"nothing listens at {remote}")
        near, far = stream_pair(self.node_id, peer.node_id)
        peer.host.serve(peer, far)
        self.dialed.append(near)
        return near

    async def resolve_hostname(self, name: str) -> dict[str, Any]:
        for agent in self.host.world.values():
            if agent.hostname == name:
                return {"address": str(Address(0, agent.node_id))}
        raise NotFound(f'hostname "{name}" not found')


class MemoryHost:
    """A process with agents, in a world of such processes."""

    def __init__(self, world: dict[int, MemoryAgent]) -> None:
        self.world = world
        self.by_node: dict[int, MemoryAgent] = {}
        self.agents: dict[str, MemoryAgent] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.event_sink: object | None = None
        self.broker: EventBroker

    def add(self, node_id: int, hostname: str) -> MemoryAgent:
        """Host one more agent."""
        agent = MemoryAgent(self, node_id, hostname)
        self.world[node_id] = self.by_node[node_id] = agent
        self.agents[hostname] = agent
        return agent

    def spawn(self, coro: Coroutine[Any, Any, None], *, name: str) -> None:
        task = asyncio.create_task(coro, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def serve(self, agent: MemoryAgent, stream: MemoryStream) -> None:
        """Let the broker serve an inbound connection."""
        self.spawn(self.broker.handle(agent, stream), name="port 1002")

    async def aclose(self) -> None:
        """End everything, like a host does: first its tasks, then the service."""
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError)
        await self.broker.aclose()
