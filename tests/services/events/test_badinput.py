"""Hostile clients: each is refused or bounded, counted, and nobody else suffers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.protocol.services.eventoptions import SubscribeOptions
from pilotfleet.protocol.services.events import (
    CONFIRM_TOPIC,
    GOVERNED_TOPIC,
    MARK_TOPIC,
    MAX_PAYLOAD,
    PUBLISHER_TOPIC,
    Event,
    encode_event,
)
from pilotfleet.services.events import session
from pilotfleet.services.events.config import BrokerConfig
from pilotfleet.services.events.limits import LimitConfig
from tests.services.events.world import HUB, Client, Fixture, logged, running, settle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

GOOD, BAD = 60, 66
TOO_LARGE = b"\0\1x\1\0\0\1"
NOT_UTF8 = b"\0\2\xff\xfe\0\0\0\0"
LONG_TOPIC = b"\x04\x01" + b"t" * 1025


@pytest.fixture
async def world() -> AsyncIterator[Fixture]:
    async with running(Fixture()) as fixture:
        yield fixture


async def check_others(world: Fixture) -> None:
    """Show that another node's events arrive."""
    subscriber = await world.client("good.*", node=GOOD)
    source = await world.client(PUBLISHER_TOPIC, node=GOOD)
    await source.publish("good.news", b"x")
    assert await subscriber.next() == Event("good.news", b"x")
    await subscriber.stream.close()
    await source.stream.close()
    await settle()


@pytest.mark.parametrize("broken", [TOO_LARGE, NOT_UTF8, LONG_TOPIC])
async def test_broken_frame_is_counted_and_what_came_before_counts(
    world: Fixture, broken: bytes
) -> None:
    everything = await world.client("*", node=GOOD)
    client = await world.client("t", node=BAD)
    await client.stream.write(encode_event("before") + broken)
    assert await client.next() is None
    assert await everything.topics(1) == ["before"]
    assert world.count("malformed") == 1
    await check_others(world)


@pytest.mark.parametrize(
    "topic", [MARK_TOPIC, CONFIRM_TOPIC, PUBLISHER_TOPIC, GOVERNED_TOPIC]
)
async def test_reserved_topics_reach_nobody(world: Fixture, topic: str) -> None:
    marked = await world.subscriber("*", SubscribeOptions(marks=True))
    assert (await marked.mark()).lost == 0
    same = await world.client(topic, node=GOOD)
    client = await world.client("s", node=BAD)
    await client.publish(topic, b'{"log":"","id":9,"time":1,"lost":1}')
    await client.publish("after")
    assert await marked.topics(1) == ["after"]
    assert world.count("malformed") == 1
    await same.stream.close()
    assert await same.next() is None


@pytest.mark.parametrize(
    "topic", ["", "*", ".", "." * 1024, "a/" * 512, "\0", "*.*.*", "\n", "é" * 512]
)
async def test_odd_topics_are_ordinary_topics(world: Fixture, topic: str) -> None:
    exact = await world.client(topic, node=GOOD)
    everything = await world.client("*", node=GOOD)
    client = await world.client("s", node=BAD)
    await client.publish(topic, b"x")
    assert await exact.next() == Event(topic, b"x")
    assert await everything.next() == Event(topic, b"x")


async def test_rate_is_that_of_the_node_not_of_a_connection(world: Fixture) -> None:
    clients = [await world.client("s", node=BAD) for _ in range(10)]
    for client in clients:
        await client.stream.write(encode_event("t") * 100)
    await settle()
    assert world.count("published") == 200
    assert world.count("rate_limited") == 800
    for client in clients:
        await client.stream.close()
    await settle()
    again = await world.client("s", node=BAD)
    await again.publish("t")
    await settle()
    assert world.count("published") == 200
    await check_others(world)


async def test_flood_is_read_slowly(world: Fixture) -> None:
    client = await world.client("s", node=BAD)
    flood = asyncio.create_task(client.stream.write(encode_event("") * 1_000_000))
    await settle()
    # Whoever floods waits for its own pauses, with a full window.
    assert 0 < world.count("rate_limited") < 50_000
    await check_others(world)
    flood.cancel()
    await asyncio.gather(flood, return_exceptions=True)


async def test_connections_of_a_node_are_bounded(world: Fixture) -> None:
    clients = [await world.client("t", node=BAD) for _ in range(70)]
    assert world.count("subscribers") == 64
    assert world.count("refused") == 6
    assert await clients[-1].next() is None
    await check_others(world)
    await clients[0].stream.close()
    await settle()
    await world.client("t", node=BAD)
    assert world.count("subscribers") == 64


async def test_agents_of_this_host_may_connect_more_often(world: Fixture) -> None:
    for _ in range(70):
        await world.client("t", node=HUB)
    assert world.count("subscribers") == 70


async def test_a_million_subscriptions_leave_nothing_behind(world: Fixture) -> None:
    # A thousand of them: what one leaves, a million would leave.
    for number in range(1000):
        client = await world.client(f"{number}.*.x", node=BAD)
        await client.stream.close()
        await settle()
    board = world.broker._boards[HUB]
    assert not board._topics
    assert board._topics._root.is_empty
    assert not board._cache
    assert world.count("subscribers") == 0
    assert not world.host.tasks


async def test_many_topics_do_not_fill_the_cache(world: Fixture) -> None:
    await world.client("never", node=GOOD)
    for number in range(2000):
        await world.broker.deliver(world.hub, Event(f"t{number}", b""))
    assert len(world.broker._boards[HUB]._cache) <= 256


async def begin_event(world: Fixture, node: int, size: int) -> Client:
    """Send a part of an event that is never finished."""
    client = world.connect(node)
    frame = encode_event("t", bytes(MAX_PAYLOAD))
    await client.publish(PUBLISHER_TOPIC)
    await client.stream.write(frame[:size])
    await settle()
    return client


async def test_unfinished_events_of_a_node_are_bounded() -> None:
    config = LimitConfig(unfinished_node=300_000)
    async with running(Fixture(limits=config)) as world:
        first = await begin_event(world, BAD, 200_000)
        second = await begin_event(world, BAD, 200_000)
        assert await second.next() is None
        assert world.count("refused") == 1
        other = await begin_event(world, GOOD, 200_000)
        await check_others(world)
        for client in (first, other):
            await client.stream.close()
        await settle()
        assert not world.broker._limits._unfinished
        assert world.broker._limits._total == 0
        await begin_event(world, BAD, 290_000)
        assert world.count("refused") == 1


async def test_unfinished_events_together_are_bounded_but_small_ones_pass() -> None:
    async with running(Fixture(limits=LimitConfig(unfinished=500_000))) as world:
        for node in range(70, 74):
            await begin_event(world, node, 120_000)
        assert await (await begin_event(world, 74, 120_000)).next() is None
        small = await begin_event(world, 75, 60_000)
        assert world.count("refused") == 1
        await small.stream.close()
        await check_others(world)


async def test_event_that_is_never_finished_ends_the_connection() -> None:
    async with running(Fixture(limits=LimitConfig(frame_s=0.01))) as world:
        client = await begin_event(world, BAD, 100)
        assert await client.next() is None
        assert world.count("refused") == 1
        idle = await world.client(PUBLISHER_TOPIC, node=BAD)
        await idle.publish("t")
        await settle()
        assert world.count("published") == 1


async def test_largest_event_passes_whole(world: Fixture) -> None:
    subscriber = await world.client("t", node=GOOD)
    source = await world.client("s", node=BAD)
    event = Event("t", bytes(MAX_PAYLOAD))
    sending = asyncio.create_task(source.publish(*event))
    assert await subscriber.next() == event
    await sending


async def test_subscriber_that_never_reads_costs_one_queue() -> None:
    config = BrokerConfig(max_queued_events=10)
    async with running(Fixture(config)) as world:
        await world.client("*", node=BAD)
        for _ in range(50):
            await world.broker.deliver(world.hub, Event("t", bytes(100 << 10)))
            await settle()
        (stuck,) = world.broker._boards[HUB]._topics.match("t")
        assert len(stuck._items) == 10
        await check_others(world)


async def test_one_that_ends_and_never_reads_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "DRAIN_S", 0.01)
    async with running(Fixture()) as world:
        client = await world.client("*", node=BAD)
        for _ in range(20):
            await world.broker.deliver(world.hub, Event("t", bytes(100 << 10)))
            await settle()
        await client.stream.close()
        while world.host.tasks:
            await asyncio.wait(world.host.tasks)
        assert world.count("subscribers") == 0


async def test_replays_that_nobody_reads_do_not_hold_the_log(tmp_path: Path) -> None:
    async with running(Fixture(open_log=logged(tmp_path))) as world:
        for _ in range(60):
            await world.broker.deliver(world.hub, Event("t", bytes(64 << 10)))
        greedy = SubscribeOptions(since=1e8)
        for _ in range(20):
            await world.subscriber("*", greedy)
        await world.broker.deliver(world.hub, Event("u", b""), confirm=True)
        fresh = await world.subscriber("u", greedy)
        assert await fresh.topics(1) == ["u"]


async def test_trust_that_is_given_counts_from_the_next_connection() -> None:
    trusted: set[int] = set()
    fixture = Fixture(is_member=lambda agent, node: node in trusted)
    async with running(fixture) as world:
        first = await world.client("s", node=BAD)
        trusted.add(BAD)
        second = await world.client("s", node=BAD)
        for client in (first, second):
            await client.stream.write(encode_event("t") * 1000)
        await settle()
        assert world.count("rate_limited") == 800
        assert world.count("published") == 1200


async def test_counters_are_told_through_the_daemon(world: Fixture) -> None:
    await check_others(world)
    handler = world.broker.extensions()["events"]
    counters: dict[str, Any] = await handler(None, world.hub, {})
    assert counters == {
        "subscribers": 0,
        "publishers": 0,
        "published": 1,
        "delivered": 1,
        "dropped": 0,
        "rate_limited": 0,
        "malformed": 0,
        "refused": 0,
        "forwarded": 0,
        "logged": 0,
        "log_lost": 0,
    }
