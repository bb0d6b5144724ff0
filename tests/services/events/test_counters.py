"""What a fleet's broker publishes about itself, and what it hands upwards."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.protocol.services.events import MARK_TOPIC, PUBLISHER_TOPIC, Event
from pilotfleet.services.events import broker
from pilotfleet.services.events.publisher import BrokerConfig
from tests.services.events.world import Client, Fixture, running, settle

if TYPE_CHECKING:
    from tests.services.events.support import MemoryAgent


@pytest.fixture(autouse=True)
def quick_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "COUNTERS_PAUSE_S", 0.001)


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
        one, two = await world.client("fleet.*"), await world.client("other")
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
    taken: list[tuple[str, str]] = []

    def roll_up(agent: MemoryAgent, event: Event) -> bool:
        taken.append((agent.name, event.topic))
        return event.topic.startswith("fleet.")

    async with running(Fixture(roll_up=roll_up)) as world:
        client = await world.client(PUBLISHER_TOPIC)
        for topic in ("fleet.a", MARK_TOPIC, "other"):
            await client.publish(topic)
        await world.broker.deliver(world.hub, Event("fleet.b", b""))
        await settle()
        assert sorted(taken) == [
            ("hub", "fleet.a"),
            ("hub", "fleet.b"),
            ("hub", "other"),
        ]
        assert world.count("forwarded") == 2
