"""The event broker: rules of services.md section 5, limits, publishing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import (
    Busy,
    ConnectionRefused,
    InvalidArgument,
    NotFound,
    TimedOut,
)
from pilotfleet.protocol.address import Address
from pilotfleet.protocol.services.eventoptions import SubscribeOptions, encode_options
from pilotfleet.protocol.services.events import (
    GOVERNED_TOPIC,
    Event,
)
from pilotfleet.services.events import publisher
from pilotfleet.services.events.config import BrokerConfig
from pilotfleet.services.events.framequeue import FrameQueue
from pilotfleet.services.events.log import EventLog
from tests.services.events.world import HUB, STRANGER, Fixture, running, settle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def world() -> AsyncIterator[Fixture]:
    async with running(Fixture()) as fixture:
        yield fixture


@pytest.mark.parametrize(
    ("published", "subscriptions"),
    [
        ("news", {"news", "*"}),
        ("news.eu", {"*", "news.*"}),
        ("news.*", {"news.*", "*"}),
        ("*", {"*"}),
        ("", {"", "*"}),
        ("NEWS", {"*"}),
    ],
)
async def test_publication_reaches_the_fitting_subscribers(
    world: Fixture, published: str, subscriptions: set[str]
) -> None:
    # The table of vectors/services.json, plus our prefix pattern.
    clients = {
        topic: await world.client(topic) for topic in ("news", "*", "news.*", "")
    }
    source = await world.client("elsewhere")
    await source.publish(published, b"x")
    for topic in subscriptions:
        assert await clients[topic].next() == Event(published, b"x")
    await settle()
    assert world.count("delivered") == len(subscriptions)


async def test_first_event_subscribes_and_is_not_delivered(world: Fixture) -> None:
    everything = await world.client("*")
    await world.client("news", b"ignored payload")
    source = await world.client("x")
    await source.publish("news", b"first")
    assert await everything.next() == Event("news", b"first")


async def test_own_publication_does_not_come_back(world: Fixture) -> None:
    one, two = await world.client("t"), await world.client("t")
    await one.publish("t", b"from one")
    await two.publish("t", b"from two")
    assert await one.next() == Event("t", b"from two")
    assert await two.next() == Event("t", b"from one")


async def test_events_of_a_publisher_keep_their_order(world: Fixture) -> None:
    subscriber, source = await world.client("t"), await world.client("s")
    for number in range(150):
        await source.publish("t", b"%d" % number)
    got = [await subscriber.next() for _ in range(150)]
    assert got == [Event("t", b"%d" % number) for number in range(150)]


@pytest.mark.parametrize(
    "raw", [b"\x04\x01" + b"t" * 1025, b"\0\2\xff\xfe\0\0\0\0", b"\0\1x\1\0\0\1"]
)
async def test_broken_frame_closes_the_connection(world: Fixture, raw: bytes) -> None:
    client = await world.client("t")
    await client.stream.write(raw)
    assert await client.next() is None
    assert not world.count("subscribers")


async def test_subscription_ends_with_the_connection(world: Fixture) -> None:
    client = await world.client("a.*")
    assert world.count("subscribers") == 1
    await client.stream.close()
    await settle()
    assert not world.count("subscribers")


async def test_broken_connection_leaves_nothing_behind(world: Fixture) -> None:
    client = await world.client("a.*")
    await client.stream.break_off()
    await settle()
    assert not world.count("subscribers")
    assert not world.host.tasks


async def test_reserved_topic_is_dropped_and_the_connection_stays(
    world: Fixture,
) -> None:
    subscriber, source = await world.client("*"), await world.client("s")
    await source.publish(GOVERNED_TOPIC, b"x")
    await source.publish("after")
    assert await subscriber.topics(1) == ["after"]


async def test_stranger_is_limited_to_the_official_rate(world: Fixture) -> None:
    subscriber, source = await world.client("t"), await world.client("s")
    for _ in range(400):
        await source.publish("t")
    await subscriber.topics(200)
    await settle()
    assert world.count("delivered") == 200
    assert world.count("rate_limited") == 200
    world.now += 0.5
    for _ in range(60):
        await source.publish("t")
    await subscriber.topics(50)
    await settle()
    assert world.count("delivered") == 250


async def test_member_of_the_fleet_may_publish_faster() -> None:
    fixture = Fixture(is_member=lambda agent, node: node == STRANGER)
    async with running(fixture):
        subscriber, source = await fixture.client("t"), await fixture.client("s")
        for _ in range(1000):
            await source.publish("t")
        await subscriber.topics(1000)
        assert fixture.count("rate_limited") == 0


async def test_slow_subscriber_loses_the_oldest_events_and_harms_nobody() -> None:
    fixture = Fixture(
        BrokerConfig(max_queued_events=10),
        is_member=lambda agent, node: True,
    )
    async with running(fixture):
        slow, quick = await fixture.client("t"), await fixture.client("t")
        source = await fixture.client("s")
        payload = bytes(64 << 10)
        for number in range(40):
            await source.publish("t", b"%02d" % number + payload)
            event = await quick.next()
            assert event is not None
            assert event.payload[:2] == b"%02d" % number
        await slow.stream.close()
        numbers = []
        while (event := await slow.next()) is not None:
            numbers.append(int(event.payload[:2]))
        assert numbers[-10:] == list(range(30, 40))
        assert numbers == sorted(numbers)
        assert fixture.count("dropped") == 40 - len(numbers) > 0


async def test_queue_is_bounded_in_bytes_but_takes_one_large_event() -> None:
    queue = FrameQueue(BrokerConfig(max_queued_bytes=100))
    queue.put(bytes(500))
    assert len(queue) == 1
    queue.put(b"a" * 60)
    queue.put(b"b" * 30)
    assert queue.take() == [b"a" * 60, b"b" * 30]
    assert queue.dropped == 1


async def test_restored_frames_come_first_as_far_as_there_is_room() -> None:
    queue = FrameQueue(BrokerConfig(max_queued_events=3))
    queue.put(b"3")
    queue.put(b"4")
    queue.restore([b"1", b"2"])
    assert queue.take() == [b"2", b"3", b"4"]
    assert queue.dropped == 1


async def test_replay_comes_before_live_events_and_each_event_once(
    tmp_path: Path,
) -> None:
    async def open_log(agent: Any) -> EventLog:
        return await EventLog(tmp_path / "events.db").__aenter__()

    fixture = Fixture(open_log=open_log)
    async with running(fixture):
        # Opened before the clients, so that they subscribe in the order written.
        await fixture.broker._board(fixture.hub)
        source, everything = await fixture.client("s"), await fixture.client("*")
        for age in (500, 300, 100):
            fixture.wall = 10_000.0 - age
            await source.publish(f"fleet.{age}")
            await source.publish("other")
            await everything.topics(2)
        fixture.wall = 10_000.0
        late = await fixture.client(
            "fleet.*", encode_options(SubscribeOptions(since=400))
        )
        await source.publish("fleet.live")
        assert await late.topics(3) == ["fleet.300", "fleet.100", "fleet.live"]
        plain = await fixture.client("fleet.*")
        await source.publish("fleet.more")
        assert await plain.topics(1) == ["fleet.more"]
        assert await late.topics(1) == ["fleet.more"]


async def test_agent_publishes_to_its_own_broker_without_network(
    world: Fixture,
) -> None:
    subscriber = await world.client("fleet.*")
    address = await world.broker.publish(world.hub, Event("fleet.health", b"{}"))
    assert address == Address(0, HUB)
    assert await subscriber.next() == Event("fleet.health", b"{}")
    assert world.hub.dialed == []


@pytest.mark.parametrize("name", ["hub", "1", "0:0000.0000.0001"])
async def test_agents_of_other_hosts_publish_over_one_connection(
    world: Fixture, name: str
) -> None:
    subscriber = await world.client("fleet.*")
    publish = world.other_host.broker.publish
    for number in range(3):
        event = Event("fleet.health", b"%d" % number)
        assert await publish(world.other, event, broker=name) == Address(0, HUB)
    assert await subscriber.next() == Event("fleet.health", b"0")
    assert await subscriber.topics(2) == ["fleet.health"] * 2
    assert len(world.other.dialed) == 1
    # The publisher's connection gets no events, and no task waits on it.
    assert (world.count("subscribers"), world.count("publishers")) == (1, 1)
    await settle()
    assert not world.other_host.tasks


async def test_many_publications_at_once_share_the_connection(world: Fixture) -> None:
    subscriber = await world.client("t")
    publish = world.other_host.broker.publish
    async with asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(publish(world.other, Event("t", b""), broker="hub"))
    assert await subscriber.topics(100) == ["t"] * 100
    assert len(world.other.dialed) == 1


async def test_publisher_connects_again_and_keeps_what_waits(
    world: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "RETRY_FIRST_S", 0.0)
    subscriber = await world.client("t")
    broker = world.other_host.broker
    await broker.publish(world.other, Event("t", b"1"), broker="hub")
    await world.other.dialed[0].break_off()
    world.hub.refuses = True
    with pytest.raises(ConnectionRefused):
        await broker.publish(world.other, Event("t", b"2"), broker="hub")
    await broker.publish(world.other, Event("t", b"3"), broker="hub", wait=False)
    world.hub.refuses = False
    # The second was reported as failed, so it must not come after all.
    got = [await subscriber.next() for _ in range(2)]
    assert got == [Event("t", b"1"), Event("t", b"3")]


async def test_broker_that_takes_nothing_times_out() -> None:
    fixture = Fixture(BrokerConfig(publish_timeout_s=0.01))
    async with running(fixture):
        fixture.host.serve = lambda agent, stream: None  # type: ignore[method-assign]
        large = Event("t", bytes(512 << 10))
        publish = fixture.other_host.broker.publish
        await publish(fixture.other, large, broker="hub")
        with pytest.raises(TimedOut, match="did not take the event"):
            await publish(fixture.other, large, broker="hub")


async def test_publishing_refuses_what_cannot_work(world: Fixture) -> None:
    publish = world.other_host.broker.publish
    with pytest.raises(NotFound):
        await publish(world.other, Event("t", b""), broker="nobody")
    with pytest.raises(InvalidArgument):
        await publish(world.other, Event("t" * 1025, b""), broker="hub")
    world.other_host.broker._publishing._config = BrokerConfig(max_publishers=0)
    with pytest.raises(Busy):
        await publish(world.other, Event("t", b""), broker="hub")


async def test_idle_connections_give_way_to_new_brokers() -> None:
    fixture = Fixture(BrokerConfig(max_publishers=2))
    brokers = [fixture.host.add(node, f"hub-{node}") for node in (11, 12, 13)]
    publish, other = fixture.other_host.broker.publish, fixture.other
    for broker in (*brokers[:2], brokers[0], brokers[2], brokers[0]):
        await publish(other, Event("t", b""), broker=broker.hostname)
        await settle()
    # The second was not used for longest; the first kept its connection.
    remotes = [stream.remote.address.node for stream in other.dialed]
    assert remotes == [11, 12, 13]
    assert [stream.other._is_ended for stream in other.dialed] == [False, True, False]
    await fixture.other_host.aclose()
    await fixture.host.aclose()


async def test_busy_connections_do_not_give_way() -> None:
    fixture = Fixture(BrokerConfig(max_publishers=1))
    publish, other = fixture.other_host.broker.publish, fixture.other
    await publish(other, Event("t", b""), broker="99", wait=False)
    with pytest.raises(Busy, match="publishes to 1 brokers already"):
        await publish(other, Event("t", b""), broker="hub")
    await fixture.other_host.aclose()
    await fixture.host.aclose()


async def test_extension_publishes_for_a_local_program(world: Fixture) -> None:
    subscriber = await world.client("*")
    handler = world.other_host.broker.extensions()["publish"]
    request = {"topic": "fleet.x", "data": "é", "broker": "hub"}
    result = await handler(None, world.other, request)
    assert result == {"topic": "fleet.x", "bytes": 2, "target": "0:0000.0000.0001"}
    assert await subscriber.next() == Event("fleet.x", "é".encode())


@pytest.mark.parametrize(
    "request_",
    [{}, {"topic": 1}, {"topic": "t", "data": 1}, {"topic": "t", "broker": 1}],
)
async def test_extension_refuses_other_types(
    world: Fixture, request_: dict[str, Any]
) -> None:
    handler = world.broker.extensions()["publish"]
    with pytest.raises(InvalidArgument):
        await handler(None, world.hub, request_)
