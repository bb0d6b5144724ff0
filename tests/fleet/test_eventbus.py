"""The event bus of a fleet in real programs: stand-bys, confirmation, sub-brokers."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from pilotfleet.fleet.agent import Agent
from pilotfleet.fleet.subscription import Mark, Received
from tests.fleet.crewsupport import PRIVATE_FLEET, start_hub
from tests.support.programs import data_of, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from pilotfleet.fleet.subscription import FleetSubscription
    from tests.support.programs import Program, World

LIST = ("--broker", "hub,spare")


class Fleet:
    """A hub, its stand-by ``spare``, and an agent ``a-1`` on a third daemon."""

    def __init__(self, net: World) -> None:
        self.net = net
        self.network = start_hub(net, *LIST)
        self.hub = net.programs[-1]
        self.start("spare", "--hostname", "spare")
        self.start("crew", "--agents", "1", "--agent-prefix", "a-")

    def start(self, name: str, *flags: str) -> Program:
        options = (*flags, *PRIVATE_FLEET, "--join", self.network, *LIST)
        return self.net.start_daemon(name, *options)

    def restart_hub(self) -> None:
        flags = ("--hostname", "hub", *PRIVATE_FLEET, *LIST)
        self.hub = self.net.start_daemon("hub", *flags)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with world() as net:
        yield Fleet(net)


@pytest.fixture
async def agents(fleet: Fleet) -> AsyncIterator[tuple[Agent, Agent]]:
    """Yield a publisher, and another agent to listen as."""
    async with AsyncExitStack() as stack:
        crew, spare = [
            await stack.enter_async_context(await Agent.connect(fleet.net.socket(name)))
            for name in ("crew", "spare")
        ]
        yield crew, spare


async def all_heard(items: FleetSubscription) -> None:
    """Read until each broker has said that it has the subscription.

    Until then it may take an event of another connection first.
    """
    heard: set[str] = set()
    while heard < set(items.brokers):
        item = await anext(items)
        assert isinstance(item, Mark)
        heard.add(item.broker)


async def payloads(items: FleetSubscription, wanted: set[str]) -> list[str]:
    """Return payloads as they come until all wanted ones have."""
    got: list[str] = []
    while not wanted <= set(got):
        item = await anext(items)
        if isinstance(item, Received):
            got.append(item.event.payload.decode())
    return got


async def test_publishing_moves_to_the_stand_by_within_seconds(
    fleet: Fleet, agents: tuple[Agent, Agent]
) -> None:
    crew, listener = agents
    async with await listener.subscribe("news", marks=True) as events:
        await all_heard(events)
        hub = await crew.publish("news", "1")
        first = await anext(events)
        while isinstance(first, Mark):
            first = await anext(events)
        assert first.broker == "hub"
        fleet.hub.kill()
        async with asyncio.timeout(15):
            # It may be written to the hub's stream before its end is known.
            numbers = {str(number) for number in range(2, 12)}
            for number in sorted(numbers, key=int):
                await crew.publish("news", number)
            got = await payloads(events, numbers)
        assert got == sorted(numbers, key=int)
        spare = await crew.publish("news", "12")
        assert spare not in ("", hub)
        assert spare == listener.address


async def test_confirmed_events_survive_the_death_of_the_hub(
    fleet: Fleet, agents: tuple[Agent, Agent]
) -> None:
    crew, listener = agents
    async with await listener.subscribe("news", marks=True) as events:
        await all_heard(events)
        confirmed: set[str] = set()
        enough = asyncio.Event()

        async def publish(begin: int, end: int) -> None:
            for number in range(begin, end):
                await crew.publish("news", str(number), confirm=True)
                confirmed.add(str(number))
                if len(confirmed) == 100:
                    enough.set()

        async with asyncio.TaskGroup() as group:
            for begin in range(0, 400, 40):
                group.create_task(publish(begin, begin + 40))
            await enough.wait()
            fleet.hub.kill()
        assert len(confirmed) == 400
        await asyncio.to_thread(fleet.restart_hub)
        async with asyncio.timeout(60):
            got = await payloads(events, confirmed)
    again = [text for text in set(got) if got.count(text) > 1]
    # Only what was under way at the hub's death may come twice: one of each task.
    assert len(again) <= 10


async def test_status_counts_what_a_broker_did(
    fleet: Fleet, agents: tuple[Agent, Agent]
) -> None:
    crew, _ = agents
    await crew.publish("news", "1", confirm=True)
    counters = data_of(fleet.net.ctl("hub", "events", "status"))
    assert counters["published"] >= 1
    assert counters["logged"] >= 1
    published = fleet.net.ctl(
        *("crew", "events", "publish", "--topic", "news", "--data", "x", "--confirm")
    )
    assert data_of(published)["confirmed"] is True
    heard = fleet.net.ctl(
        *("crew", "events", "subscribe", "--topic", "news", "--since", "1h"),
        *("--count", "2", "--timeout", "30s"),
    )
    rows = data_of(heard)
    assert [row["data"] for row in rows["events"]] == ["1", "x"]
    assert (rows["timeout"], rows["lost"]) == (False, 0)


async def test_sub_broker_rolls_up_and_its_death_is_survived(fleet: Fleet) -> None:
    net, up = fleet.net, ("--roll-up", "hub", "--roll-up-topic", "*")
    flags = (*PRIVATE_FLEET, "--join", fleet.network, "--broker", "sub,hub", *up)
    sub = net.start_daemon("sub", "--hostname", "sub", *flags)
    net.start_daemon("far", "--hostname", "far", *flags)
    async with (
        await Agent.connect(net.socket("far")) as far,
        await Agent.connect(net.socket("sub")) as listener,
        await far.subscribe("any.thing", marks=True) as events,
    ):
        assert events.brokers == ("hub",)
        await all_heard(events)
        hub = (await listener.resolve("hub")).node
        direct = await far.publish("any.thing", {"n": 1})
        assert direct == listener.address
        async with asyncio.timeout(15):
            assert await payloads(events, {'{"n":1}'}) == ['{"n":1}']
            counters = data_of(net.ctl("sub", "events", "status"))
            assert counters["forwarded"] >= 1
            sub.kill()
            for number in range(2, 5):
                await far.publish("any.thing", str(number))
            assert await payloads(events, {"2", "3", "4"}) == ["2", "3", "4"]
        target = json.loads(
            net.ctl("far", "events", "publish", "t", "--data", "x").stdout
        )
        assert target["data"]["target"].endswith(f"{hub:04X}")
