"""The broker behind real tunnels and streams, with agents on a real rendezvous."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import PilotError
from pilotfleet.protocol.address import SocketAddress
from pilotfleet.protocol.services.eventoptions import (
    CONFIRM_REQUEST,
    SubscribeOptions,
    decode_confirm,
    decode_mark,
    encode_options,
)
from pilotfleet.protocol.services.events import (
    EVENT_PORT,
    MAX_PAYLOAD,
    PUBLISHER_TOPIC,
    EventDecoder,
    encode_event,
)
from pilotfleet.services.events.broker import EventBroker
from pilotfleet.services.events.limits import LimitConfig
from pilotfleet.services.events.log import EventLog
from tests.node.support import eventually, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.stream import Stream
    from pilotfleet.protocol.services.events import Event

pytestmark = pytest.mark.timeout(60)


class Net:
    """A broker, and an agent of another host."""

    def __init__(self, broker: EventBroker, hub: Agent, peer: Agent) -> None:
        self.broker = broker
        self.hub = hub
        self.peer = peer

    def count(self, name: str) -> int:
        return self.broker.counters(self.hub)[name]

    async def dial(self, topic: str, payload: bytes = b"") -> Stream:
        remote = SocketAddress(self.hub.address, EVENT_PORT)
        stream = await self.peer.dial(remote, timeout=10)
        await stream.write(encode_event(topic, payload))
        return stream


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    async def open_log(agent: Agent) -> EventLog:
        return await EventLog(tmp_path / "events.db").__aenter__()

    async with open_world(tmp_path) as world:
        here, there = world.host("a", "hub"), world.host("b", "peer")
        limits = LimitConfig(unfinished_node=1 << 20)
        ticks = itertools.count()
        broker = EventBroker(
            here,
            limits=limits,
            is_member=lambda agent, node: True,
            open_log=open_log,
            # A hundred events are a second, so that a replay has many marks.
            wall=lambda: 1e6 + next(ticks) / 100,
        )
        here.services[EVENT_PORT] = broker.handle
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(broker.aclose)
            await stack.enter_async_context(here)
            await stack.enter_async_context(there)
            yield Net(broker, here.default_agent, there.default_agent)


async def events(stream: Stream) -> AsyncIterator[Event]:
    decoder = EventDecoder()
    while data := await stream.read():
        for event in decoder.feed(data):
            yield event


async def test_confirmed_events_are_counted_exactly_once_over_connections(
    net: Net,
) -> None:
    async with await net.dial(PUBLISHER_TOPIC, CONFIRM_REQUEST) as source:
        confirmed = events(source)
        assert decode_confirm((await anext(confirmed)).payload) == 0
        await source.write(encode_event("t", b"x" * 200) * 3000)
        while decode_confirm((await anext(confirmed)).payload) != 3000:
            pass
    assert net.count("logged") == 3000
    counted, position = 0, SubscribeOptions(since=1e5, marks=True)
    for wanted in (1000, 3000):
        async with await net.dial("t", encode_options(position)) as stream:
            since_mark = 0
            async for event in events(stream):
                mark = decode_mark(event.payload)
                if mark is None:
                    since_mark += 1
                    continue
                # What came since the last mark is counted with this one's place.
                counted, since_mark = counted + since_mark, 0
                position = SubscribeOptions(after=mark.id, log=mark.log, marks=True)
                if counted >= wanted:
                    break
        assert counted >= wanted
    assert counted == 3000


async def test_hostile_clients_are_shut_out_and_others_are_served(net: Net) -> None:
    subscriber = await net.dial("news")
    silent = await net.dial("*")
    broken = await net.dial("t")
    await broken.write(b"\0\2\xff\xfe\0\0\0\0")
    assert await broken.read() == b""
    frame = encode_event("t", bytes(MAX_PAYLOAD))
    greedy = await net.dial("t")
    with contextlib.suppress(PilotError):
        await greedy.write(frame[: 2 << 20])
    await eventually(lambda: net.count("refused"), what="too much unfinished")
    source = await net.dial("s")
    crowd = await asyncio.gather(
        *(net.dial("t") for _ in range(70)), return_exceptions=True
    )
    await eventually(lambda: net.count("refused") > 1, what="too many connections")
    assert net.count("subscribers") == 64
    # More than the silent one's window and queue hold together.
    for _ in range(200):
        await source.write(encode_event("bulk", bytes(64 << 10)))
    await source.write(encode_event("news", b"for everybody"))
    event = await asyncio.wait_for(anext(events(subscriber)), 20)
    assert event == ("news", b"for everybody")
    assert net.count("malformed") == 1
    assert net.count("dropped") > 0
    for stream in (subscriber, silent, source, *crowd):
        if not isinstance(stream, BaseException):
            await stream.close()
    await eventually(lambda: not net.count("subscribers"), what="all have left")
