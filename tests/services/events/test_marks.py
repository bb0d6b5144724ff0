"""Marks, resuming, and what slow subscribers are told."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import StorageError
from pilotfleet.protocol.services.eventoptions import MarkFrame, SubscribeOptions
from pilotfleet.protocol.services.events import MARK_TOPIC, Event
from pilotfleet.services.events import catchup, session
from pilotfleet.services.events.config import BrokerConfig
from tests.services.events.world import HUB, Client, Fixture, logged, running, settle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MARKS = SubscribeOptions(marks=True)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Fixture]:
    async with running(Fixture(open_log=logged(tmp_path))) as fixture:
        await fixture.broker._board(fixture.hub)
        yield fixture


@pytest.fixture
def quick_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MARK_PAUSE_S", 0.001)


def log_of(world: Fixture) -> str:
    log = world.broker._boards[HUB].log
    assert log is not None
    return log.uuid


async def publish(world: Fixture, *topics: str, wall: float = 1000.0) -> None:
    world.wall = wall
    for topic in topics:
        await world.broker.deliver(world.hub, Event(topic, b""))


async def rows(client: Client, count: int) -> list[str | MarkFrame]:
    """Return the next events, marks decoded and others as topics."""
    found: list[str | MarkFrame] = []
    for _ in range(count):
        event = await client.next()
        assert event is not None
        if event.topic == MARK_TOPIC:
            client.put_back(event)
            found.append(await client.mark())
        else:
            found.append(event.topic)
    return found


@pytest.mark.usefixtures("quick_marks")
async def test_live_marks_come_at_the_start_and_after_events(world: Fixture) -> None:
    await publish(world, "a", "b")
    uuid = log_of(world)
    client = await world.subscriber("t", MARKS)
    assert await client.mark() == MarkFrame(uuid, 2, 1000.0, 0)
    await publish(world, "other", "t", "t", "other", wall=1005.5)
    assert await rows(client, 3) == ["t", "t", MarkFrame(uuid, 6, 1005.5, 0)]
    await publish(world, "other", "t")
    assert await rows(client, 2) == ["t", MarkFrame(uuid, 8, 1000.0, 0)]


async def test_marks_come_only_to_those_who_ask(world: Fixture) -> None:
    plain, all_topics = await world.client("t"), await world.client("*")
    await world.subscriber("t", MARKS)
    await publish(world, "t", "t")
    assert await plain.topics(2) == ["t", "t"]
    assert await all_topics.topics(2) == ["t", "t"]


async def test_broker_without_a_log_marks_time_and_losses_only() -> None:
    async with running(Fixture()) as world:
        client = await world.subscriber("t", MARKS)
        assert await client.mark() == MarkFrame("", 0, 1000.0, 0)


async def test_replay_marks_every_second_of_the_past(world: Fixture) -> None:
    for wall in (900.0, 990.1, 990.9, 991.0, 995.0):
        await publish(world, "t", "other", wall=wall)
    world.wall = 1000.0
    client = await world.subscriber("t", SubscribeOptions(since=20, marks=True))
    uuid = log_of(world)
    assert await rows(client, 8) == [
        MarkFrame(uuid, 2, 990.1),
        "t",
        "t",
        MarkFrame(uuid, 6, 991.0),
        "t",
        MarkFrame(uuid, 8, 995.0),
        "t",
        MarkFrame(uuid, 10, 1000.0),
    ]


async def test_subscriber_goes_on_after_the_event_it_names(world: Fixture) -> None:
    await publish(world, "1", "2", "3", "4")
    for after, expected in [(0, "1234"), (2, "34"), (4, "")]:
        options = SubscribeOptions(since=0.001, after=after, log=log_of(world))
        client = await world.subscriber("*", options)
        await publish(world, "live")
        topics = await client.topics(len(expected) + 1)
        assert topics[: len(expected)] == list(expected)
        await client.stream.close()
        # What this round added is not what the next one asks for.
        expected_new = topics[len(expected)]
        assert expected_new == "live"
        await settle()


@pytest.mark.parametrize("log", ["another file", None])
async def test_number_of_another_log_counts_for_nothing(
    world: Fixture, log: str | None
) -> None:
    await publish(world, "old", wall=900)
    await publish(world, "new", wall=990)
    # A greater number than the log ever gave comes from a copy of the file.
    after = 1 if log else 50
    options = SubscribeOptions(since=20, after=after, log=log or log_of(world))
    client = await world.subscriber("*", options)
    assert await client.topics(1) == ["new"]
    plain = SubscribeOptions(after=after, log=log or log_of(world), marks=True)
    assert (await (await world.subscriber("*", plain)).mark()).id == 2


async def test_crash_of_the_broker_neither_repeats_nor_hides_events(
    tmp_path: Path,
) -> None:
    async with running(Fixture(open_log=logged(tmp_path))) as world:
        await publish(world, "1", "2", "3")
        client = await world.subscriber("*", MARKS)
        mark = await client.mark()
        assert mark.id == 3
    # The newest events were lost with the process.
    with closing(sqlite3.connect(tmp_path / "hub.db")) as database:
        database.execute("DELETE FROM events WHERE id > 1")
        database.commit()
    async with running(Fixture(open_log=logged(tmp_path))) as world:
        await publish(world, "4")
        options = SubscribeOptions(after=mark.id, log=mark.log)
        client = await world.subscriber("*", options)
        assert await client.topics(1) == ["4"]


async def test_long_past_does_not_overflow_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catchup, "NEAR", 10)
    fixture = Fixture(BrokerConfig(max_queued_events=20), open_log=logged(tmp_path))
    async with running(fixture) as world:
        await publish(world, *(str(number) for number in range(3000)))
        client = await world.subscriber("*", SubscribeOptions(since=100))
        # Published while the past is being sent.
        await publish(world, *(str(number) for number in range(3000, 3500)))
        assert await client.topics(3500) == [str(number) for number in range(3500)]
        assert world.count("dropped") == 0


async def test_slow_subscriber_is_told_at_once_and_can_get_what_it_lost(
    tmp_path: Path,
) -> None:
    fixture = Fixture(BrokerConfig(max_queued_events=4), open_log=logged(tmp_path))
    async with running(fixture) as world:
        client = await world.subscriber("*", MARKS)
        start = await client.mark()
        payload = bytes(300 << 10)
        for number in range(10):
            await world.broker.deliver(world.hub, Event(str(number), payload))
            await settle()
        got = await rows(client, 2)
        assert got == ["0", "1"]
        told = await client.mark()
        assert (told.log, told.id, told.lost) == (start.log, start.id + 2, 4)
        assert await client.topics(4) == ["6", "7", "8", "9"]
        options = SubscribeOptions(after=told.id, log=told.log)
        again = await world.subscriber("*", options)
        assert await again.topics(4) == ["2", "3", "4", "5"]
        assert world.count("dropped") == 4


async def test_replay_that_fails_ends_a_subscriber_with_marks(
    world: Fixture, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await publish(world, "t")
    await world.broker._boards[HUB].log.flush()  # type: ignore[union-attr]
    with closing(sqlite3.connect(tmp_path / "hub.db")) as database:
        database.execute("ALTER TABLE events RENAME TO away")
    marked = await world.subscriber("*", SubscribeOptions(since=100, marks=True))
    assert await marked.next() is None
    caplog.clear()
    plain = await world.subscriber("*", SubscribeOptions(since=100))
    while not caplog.messages:
        await settle()
    await publish(world, "live")
    assert await plain.topics(1) == ["live"]


async def test_replay_that_fails_at_its_very_end_leaves_others_live(
    world: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(world, "t")
    log = world.broker._boards[HUB].log
    assert log is not None
    replay, rounds = log.replay, 0

    def fail_the_second(**options: Any) -> Any:
        nonlocal rounds
        rounds += 1
        if rounds == 2:
            raise StorageError("the disk is gone")
        return replay(**options)

    monkeypatch.setattr(log, "replay", fail_the_second)
    plain = await world.subscriber("*", SubscribeOptions(since=100))
    while rounds < 2:
        await settle()
    await publish(world, "live")
    assert await plain.topics(2) == ["t", "live"]
