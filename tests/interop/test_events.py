"""Our subscriptions and publishers at an official 1.18.0 broker, and the reverse."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import NotSupported
from pilotfleet.fleet.agent import Agent
from tests.support.programs import data_of, world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.programs import World


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        made.start_rendezvous()
        made.start_daemon("ours", "--hostname", "ours", "--public")
        made.start_official_daemon("theirs", "-hostname", "theirs", "-public")
        yield made


async def test_official_broker_serves_patterns_and_confirms_nothing(net: World) -> None:
    async with (
        await Agent.connect(net.socket("ours")) as agent,
        await agent.subscribe("fleet.*", broker="theirs") as events,
    ):
        for topic in ("fleet.a", "other", "fleet.b.c"):
            sent = await asyncio.to_thread(
                net.official_ctl, "theirs", "publish", "ours", topic, "--data", "x"
            )
            data_of(sent)
            await agent.publish(topic, "y", broker="theirs")
        async with asyncio.timeout(30):
            got = [await anext(events) for _ in range(2)]
        assert [event.topic for event in got] == ["fleet.a", "fleet.b.c"]
        assert {event.payload for event in got} == {b"y"}
        with pytest.raises(NotSupported, match="does not confirm events"):
            await agent.publish("t", "x", broker="theirs", confirm=True)


async def test_official_clients_publish_to_our_subscription(net: World) -> None:
    async with (
        await Agent.connect(net.socket("ours")) as agent,
        await agent.subscribe("fleet.*") as events,
    ):
        data_of(net.official_ctl("theirs", "publish", "ours", "fleet.a", "--data", "1"))
        async with asyncio.timeout(30):
            assert await anext(events) == ("fleet.a", b"1")
