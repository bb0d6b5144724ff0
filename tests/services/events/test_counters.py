"""What a fleet's broker publishes about itself, and what it hands upwards."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pilotfleet.protocol.services.events import MARK_TOPIC, PUBLISHER_TOPIC, Event
from pilotfleet.services.events import counters
from pilotfleet.services.events.config import BrokerConfig
from tests.services.events.world import Client, Fixture, running, settle


@pytest.fixture(autouse=True)
def quick_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "PAUSE_S", 0.001)


async def next_row(client: Client) -> dict[str, Any]:
    event = await client.next()
    assert event is not None
    assert event.topic == "fleet.broker"
    row: dict[str, Any] = json.loads(event.payload)
    return row


async def test_broker_of_the_fleet_tells_its_counters_while_somebody_listens() -> None:
    async with running(Fixture(BrokerConfig(brokers=("hub", "other")))) as world:
        await world.client(PUBLISHER_TOPIC)
        assert not has_report(world)
        # In this order: what the second one hears was counted after both had come.
        two, one = await world.client("other"), await world.client("fleet.*")
        row = await next_row(one)
        assert row["broker"] == "hub"
        assert (row["subscribers"], row["publishers"]) == (2, 1)
        later = await next_row(one)
        assert later["published"] > row["published"]
        await one.stream.close()
        await two.stream.close()
        while has_report(world):
            await settle()
        again = await world.client("fleet.broker")
        assert (await next_row(again))["subscribers"] == 1


def has_report(world: Fixture) -> bool:
    return any(task.get_name() == "event counters" for task in world.host.tasks)


async def test_other_brokers_keep_their_counters_to_themselves() -> None:
    async with running(Fixture(BrokerConfig(brokers=("elsewhere",)))) as world:
        await world.client("fleet.*")
        assert not has_report(world)


async def test_what_is_taken_goes_up_once() -> None:
    config = BrokerConfig(
        brokers=("hub",), roll_up=("other",), roll_up_topics=("fleet.*", "*/b")
    )
    async with running(Fixture(config)) as world:
        client = await world.client(PUBLISHER_TOPIC)
        for topic in ("fleet.a", MARK_TOPIC, "other"):
            await client.publish(topic)
        await world.broker.deliver(world.hub, Event("x/b", b""))
        above = world.other_host.broker
        while above.counters(world.other)["published"] < 2:
            await settle()
        assert world.count("forwarded") == 2
        # What no agent of the list took stays where it is.
        await above.deliver(world.other, Event("fleet.c", b""))
        assert above.counters(world.other)["forwarded"] == 0
