"""Two hosts with brokers, and clients as peers have them, all in memory."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from pilotfleet.protocol.services.eventoptions import (
    MarkFrame,
    SubscribeOptions,
    decode_mark,
    encode_options,
)
from pilotfleet.protocol.services.events import (
    MARK_TOPIC,
    Event,
    EventDecoder,
    encode_event,
)
from pilotfleet.services.events.broker import EventBroker
from pilotfleet.services.events.log import EventLog
from tests.services.events.support import (
    MemoryAgent,
    MemoryHost,
    MemoryStream,
    stream_pair,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from pilotfleet.services.events.config import BrokerConfig

HUB = 1
STRANGER = 50


class Fixture:
    """Two hosts: one with the broker's agent, one with another agent."""

    def __init__(self, config: BrokerConfig | None = None, **options: Any) -> None:
        self.now = 0.0
        self.wall = 1000.0
        self.world: dict[int, MemoryAgent] = {}
        self.host = MemoryHost(self.world)
        self.hub = self.host.add(HUB, "hub")
        self.host.broker = EventBroker(
            self.host,
            config,
            clock=lambda: self.now,
            wall=lambda: self.wall,
            **options,
        )
        self.broker = self.host.broker
        self.other_host = MemoryHost(self.world)
        self.other = self.other_host.add(2, "other")
        self.other_host.broker = EventBroker(self.other_host, config)

    def count(self, name: str) -> int:
        """Return a counter of the hub's broker."""
        return self.broker.counters(self.hub)[name]

    async def client(
        self, topic: str, payload: bytes = b"", *, node: int = STRANGER
    ) -> Client:
        """Connect a stranger and subscribe it."""
        client = self.connect(node)
        await client.publish(topic, payload)
        await settle()
        return client

    async def subscriber(self, topic: str, options: SubscribeOptions) -> Client:
        """Connect a stranger that subscribes with options."""
        return await self.client(topic, encode_options(options))

    def connect(self, node: int) -> Client:
        """Connect without a first frame."""
        near, far = stream_pair(node, HUB)
        self.host.serve(self.hub, far)
        return Client(near)


class Client:
    """A connection to the broker, as a peer has it."""

    def __init__(self, stream: MemoryStream) -> None:
        self.stream = stream
        self._decoder = EventDecoder()
        self._events: list[Event] = []

    async def publish(self, topic: str, payload: bytes = b"") -> None:
        await self.stream.write(encode_event(topic, payload))

    async def next(self) -> Event | None:
        """Return the next event, none at the end."""
        while not self._events:
            data = await self.stream.read()
            if not data:
                return None
            self._events += self._decoder.feed(data)
        return self._events.pop(0)

    def put_back(self, event: Event) -> None:
        """Let an event be the next one again."""
        self._events.insert(0, event)

    async def mark(self) -> MarkFrame:
        """Return the next event, which is a mark."""
        event = await self.next()
        assert event is not None
        assert event.topic == MARK_TOPIC
        mark = decode_mark(event.payload)
        assert mark is not None
        return mark

    async def topics(self, count: int) -> list[str]:
        events = [await self.next() for _ in range(count)]
        return [event.topic for event in events if event is not None]


async def settle() -> None:
    """Let everything run that can run without waiting for anything."""
    for _ in range(50):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def running(fixture: Fixture) -> AsyncIterator[Fixture]:
    try:
        yield fixture
    finally:
        await fixture.other_host.aclose()
        await fixture.host.aclose()


def logged(path: Path) -> Callable[[Any], Any]:
    """Return what opens a log for every broker."""

    async def open_log(agent: MemoryAgent) -> EventLog:
        return await EventLog(path / f"{agent.name}.db").__aenter__()

    return open_log
