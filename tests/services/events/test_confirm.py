"""Confirmed publishing: greeting, counts, the disk, back-pressure, local brokers."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import InvalidArgument, StorageError
from pilotfleet.protocol.services.eventoptions import CONFIRM_REQUEST, decode_confirm
from pilotfleet.protocol.services.events import (
    CONFIRM_TOPIC,
    MARK_TOPIC,
    PUBLISHER_TOPIC,
    Event,
    encode_event,
)
from pilotfleet.services.events import intake
from pilotfleet.services.events.config import BrokerConfig
from pilotfleet.services.events.log import EventLogConfig
from tests.services.events.world import HUB, Client, Fixture, logged, running

if TYPE_CHECKING:
    from pathlib import Path


async def open_publisher(world: Fixture) -> Client:
    client = await world.client(PUBLISHER_TOPIC, CONFIRM_REQUEST)
    assert await count_of(client) == 0
    return client


async def count_of(client: Client) -> int | None:
    """Return what the next confirmation says; none when the broker ended."""
    event = await client.next()
    if event is None:
        return None
    assert event.topic == CONFIRM_TOPIC
    return decode_confirm(event.payload)


async def wait_for(client: Client, count: int) -> None:
    while (confirmed := await count_of(client)) != count:
        assert confirmed is not None
        assert confirmed < count


def stored(path: Path) -> list[str]:
    with closing(sqlite3.connect(path / "hub.db")) as database:
        return [row[0] for row in database.execute("SELECT topic FROM events")]


async def test_confirmed_events_are_on_the_disk(tmp_path: Path) -> None:
    async with running(Fixture(open_log=logged(tmp_path))) as world:
        client = await open_publisher(world)
        for number in range(5):
            await client.publish(f"t{number}")
            await wait_for(client, number + 1)
            assert stored(tmp_path) == [f"t{each}" for each in range(number + 1)]


async def test_broker_without_log_confirms_what_subscribers_will_get() -> None:
    async with running(Fixture()) as world:
        subscriber, client = await world.client("t"), await open_publisher(world)
        await client.stream.write(encode_event("t", b"x") * 7)
        await wait_for(client, 7)
        assert world.count("delivered") == 7
        assert await subscriber.topics(7) == ["t"] * 7


async def test_what_is_dropped_as_reserved_counts_as_taken() -> None:
    async with running(Fixture()) as world:
        client = await open_publisher(world)
        for topic in ("a", MARK_TOPIC, "b"):
            await client.publish(topic)
        await wait_for(client, 3)
        assert world.count("malformed") == 1
        assert world.count("published") == 2


async def test_publisher_that_is_too_fast_waits_instead_of_losing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intake, "CONFIRM_PAUSE_S", 0.01)
    config = BrokerConfig(member_burst=10, member_rate=500.0)
    fixture = Fixture(config, is_member=lambda agent, node: True)
    async with running(fixture) as world:
        world.broker._clock = time.monotonic
        subscriber = await world.client("t", node=77)
        client = await open_publisher(world)
        started = time.monotonic()
        await client.stream.write(encode_event("t", b"") * 60)
        counts: list[int | None] = []
        while not counts or counts[-1] != 60:
            counts.append(await count_of(client))
        assert time.monotonic() - started >= 0.09
        # It hears of progress meanwhile.
        assert len(counts) > 2
        assert await subscriber.topics(60) == ["t"] * 60
        assert world.count("rate_limited") == 0


async def test_full_log_makes_the_publisher_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Fixture(open_log=logged(tmp_path))) as world:
        client = await open_publisher(world)
        log = world.broker._boards[HUB].log
        assert log is not None
        monkeypatch.setattr(log, "_config", EventLogConfig(max_waiting_bytes=500))
        await client.stream.write(encode_event("t", bytes(100)) * 50)
        await wait_for(client, 50)
        assert (log.logged, log.lost) == (50, 0)


async def test_disk_that_refuses_ends_the_connection_unconfirmed(
    tmp_path: Path,
) -> None:
    async with running(Fixture(open_log=logged(tmp_path))) as world:
        client = await open_publisher(world)
        with closing(sqlite3.connect(tmp_path / "hub.db")) as database:
            database.execute("ALTER TABLE events RENAME TO away")
        await client.publish("t")
        assert await count_of(client) is None
        assert world.count("log_lost") == 1


async def test_local_program_is_confirmed_by_the_disk(tmp_path: Path) -> None:
    async with running(Fixture(open_log=logged(tmp_path))) as world:
        await world.broker.publish(world.hub, Event("t", b""), confirm=True)
        assert stored(tmp_path) == ["t"]
        with closing(sqlite3.connect(tmp_path / "hub.db")) as database:
            database.execute("ALTER TABLE events RENAME TO away")
        with pytest.raises(StorageError, match="could not be written"):
            await world.broker.deliver(world.hub, Event("t", b""), confirm=True)


async def test_reserved_topics_cannot_be_published_here() -> None:
    async with running(Fixture()) as world:
        with pytest.raises(InvalidArgument, match="is reserved"):
            await world.broker.deliver(world.hub, Event(CONFIRM_TOPIC, b""))


async def test_many_publishers_share_a_write(tmp_path: Path) -> None:
    async with running(Fixture(open_log=logged(tmp_path))) as world:
        clients = [await open_publisher(world) for _ in range(20)]
        async with asyncio.TaskGroup() as tasks:
            for client in clients:
                await client.publish("t")
                tasks.create_task(wait_for(client, 1))
        assert stored(tmp_path) == ["t"] * 20
