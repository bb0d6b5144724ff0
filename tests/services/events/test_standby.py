"""Stand-by brokers, confirmed publishing and roll-up, in memory."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import ConnectionRefused, NotSupported, TimedOut
from pilotfleet.protocol.address import Address
from pilotfleet.protocol.services.events import Event, EventDecoder, encode_event
from pilotfleet.services.events import links, route
from pilotfleet.services.events.broker import EventBroker
from pilotfleet.services.events.publisher import BrokerConfig
from pilotfleet.services.events.standby import StandbyChoice
from tests.services.events.support import MemoryAgent, MemoryHost, stream_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NAMES = ("hub", "spare")


class Fleet:
    """A hub, a stand-by and a publisher, each on a host of its own."""

    def __init__(self, config: BrokerConfig | None = None) -> None:
        self.world: dict[int, MemoryAgent] = {}
        self.config = config or BrokerConfig(brokers=NAMES)
        self.hosts: dict[str, MemoryHost] = {}
        self.agents: dict[str, MemoryAgent] = {}
        for number, name in enumerate((*NAMES, "worker"), start=1):
            self.add(number, name, self.config)

    def add(self, number: int, name: str, config: BrokerConfig) -> None:
        host = MemoryHost(self.world)
        self.agents[name] = host.add(number, name)
        host.broker = EventBroker(host, config, is_member=lambda agent, node: True)
        self.hosts[name] = host

    async def publish(
        self, data: bytes, *, wait: bool = True, confirm: bool = False
    ) -> Address | None:
        broker = self.hosts["worker"].broker
        worker, event = self.agents["worker"], Event("t", data)
        return await broker.publish(worker, event, wait=wait, confirm=confirm)

    async def listen(self, name: str) -> asyncio.Queue[bytes]:
        """Return what the broker of an agent delivers from now on."""
        near, far = stream_pair(90, self.agents[name].node_id)
        self.hosts[name].serve(self.agents[name], far)
        await near.write(encode_event("t"))
        heard: asyncio.Queue[bytes] = asyncio.Queue()

        async def read() -> None:
            decoder = EventDecoder()
            while data := await near.read():
                for event in decoder.feed(data):
                    heard.put_nowait(event.payload)

        self.hosts[name].spawn(read(), name="listener")
        for _ in range(50):
            await asyncio.sleep(0)
        return heard


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    made = Fleet()
    yield made
    for host in made.hosts.values():
        await host.aclose()


def test_the_first_broker_that_is_due_is_chosen() -> None:
    choice = StandbyChoice(3, rng=random.Random(1))
    assert choice.order(0.0) == [0, 1, 2]
    choice.failed(0, 0.0)
    assert choice.order(0.0) == [1, 2]
    assert choice.better(1, 4.9) is None
    assert choice.better(1, 10.0) == 0
    choice.failed(1, 0.0)
    choice.failed(2, 0.0)
    assert not choice.has_due(0.0)
    assert choice.order(0.0) == [0, 1, 2]
    choice.reached(1)
    assert choice.order(0.0) == [1]


def test_pauses_of_a_broker_that_stays_away_grow_up_to_a_minute() -> None:
    choice, now = StandbyChoice(2), 0.0
    pauses = []
    for _ in range(8):
        choice.failed(0, now)
        begin = now
        while choice.better(1, now) is None:
            now += 0.5
        pauses.append(now - begin)
    assert 5.0 <= pauses[0] <= 10.5
    assert all(30.0 <= pause <= 60.5 for pause in pauses[4:])


@pytest.mark.parametrize("confirm", [False, True])
async def test_events_go_to_the_stand_by_and_back(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, confirm: bool
) -> None:
    monkeypatch.setattr("pilotfleet.services.events.standby.FIRST_PAUSE_S", 0.0)
    hub, spare = await fleet.listen("hub"), await fleet.listen("spare")
    assert await fleet.publish(b"1", confirm=confirm) == Address(0, 1)
    assert await hub.get() == b"1"
    await asyncio.gather(*fleet.hosts["worker"].tasks)
    fleet.agents["hub"].refuses = True
    await fleet.agents["worker"].dialed[-1].break_off()
    assert await fleet.publish(b"2", confirm=confirm) == Address(0, 2)
    assert await spare.get() == b"2"
    fleet.agents["hub"].refuses = False
    for number in range(3, 1000):
        if await fleet.publish(b"%d" % number, confirm=confirm) == Address(0, 1):
            break
        await asyncio.sleep(0)
    # Each came once, in order: first at the stand-by, then at the hub.
    got = [spare.get_nowait() for _ in range(spare.qsize())] + [await hub.get()]
    assert got == [b"%d" % number for number in range(3, 3 + len(got))]


async def test_a_broker_that_does_not_answer_is_passed_over(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route, "CONNECT_S", 0.05)
    worker = fleet.agents["worker"]
    dial = worker.dial

    async def hangs(remote: object) -> object:
        if remote.address.node == 1:  # type: ignore[attr-defined]
            await asyncio.Event().wait()
        return await dial(remote)  # type: ignore[arg-type]

    monkeypatch.setattr(worker, "dial", hangs)
    assert await fleet.publish(b"x") == Address(0, 2)


async def test_whoever_waits_is_told_when_no_broker_is_there(fleet: Fleet) -> None:
    for name in NAMES:
        fleet.agents[name].refuses = True
    with pytest.raises(ConnectionRefused):
        await fleet.publish(b"x")


async def test_what_was_not_acknowledged_is_sent_to_the_stand_by(fleet: Fleet) -> None:
    await fleet.publish(b"1")
    spare = await fleet.listen("spare")
    stream = fleet.agents["worker"].dialed[-1]
    # The hub takes nothing any more: what is written stays on the way.
    fleet.agents["hub"].refuses = True
    held = stream.other
    async with held._changed:
        await fleet.publish(b"2", wait=False)
        await asyncio.sleep(0)
    await stream.break_off()
    await fleet.publish(b"3")
    got = [await spare.get()]
    while got[-1] != b"3":
        got.append(await spare.get())
    assert got in ([b"2", b"3"], [b"3"])


async def test_unconfirmed_events_are_sent_again(fleet: Fleet) -> None:
    spare = await fleet.listen("spare")
    await fleet.publish(b"first", confirm=True)
    worker = fleet.agents["worker"]
    published = asyncio.ensure_future(fleet.publish(b"second", confirm=True))
    fleet.agents["hub"].refuses = True
    await worker.dialed[-1].break_off()
    assert await published in (Address(0, 1), Address(0, 2))
    await fleet.publish(b"third", confirm=True)
    got = [await spare.get()]
    while got[-1] != b"third":
        got.append(await spare.get())
    assert got[-1] == b"third"


async def test_a_broker_that_never_greets_confirms_nothing(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "GREETING_S", 0.05)

    async def silent(agent: object, stream: object) -> None:
        while await stream.read():  # type: ignore[attr-defined]
            pass

    for name in NAMES:
        monkeypatch.setattr(fleet.hosts[name].broker, "handle", silent)
    with pytest.raises(NotSupported, match="does not confirm events"):
        await fleet.publish(b"x", confirm=True)


async def test_a_confirmation_that_never_comes_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fleet = Fleet(BrokerConfig(brokers=NAMES, publish_timeout_s=0.1))

    async def forgetful(agent: object, stream: object) -> None:
        await stream.write(  # type: ignore[attr-defined]
            encode_event("\0pilotfleet.confirm", b'{"count":0}')
        )
        while await stream.read():  # type: ignore[attr-defined]
            pass

    monkeypatch.setattr(fleet.hosts["hub"].broker, "handle", forgetful)
    with pytest.raises(TimedOut, match="may or may not have arrived"):
        await fleet.publish(b"x", confirm=True)
    for name in NAMES:
        fleet.agents[name].refuses = True
    await fleet.agents["worker"].dialed[-1].break_off()
    with pytest.raises(TimedOut, match="did not take the event: nothing listens"):
        await fleet.publish(b"x", confirm=True)
    for host in fleet.hosts.values():
        await host.aclose()


async def test_own_broker_of_the_list_is_used_without_network() -> None:
    fleet = Fleet(BrokerConfig(brokers=("hub", "worker")))
    fleet.agents["hub"].refuses = True
    heard = await fleet.listen("worker")
    assert await fleet.publish(b"x") == Address(0, 3)
    assert await fleet.publish(b"y", confirm=True) == Address(0, 3)
    assert [await heard.get(), await heard.get()] == [b"x", b"y"]
    for host in fleet.hosts.values():
        await host.aclose()


async def test_a_sub_broker_sends_up_what_fits() -> None:
    fleet = Fleet(BrokerConfig(brokers=("spare",)))
    above = BrokerConfig(
        brokers=("spare",), roll_up=("spare", "hub"), roll_up_topics=("t", "fleet.*")
    )
    fleet.hosts["spare"].broker = EventBroker(fleet.hosts["spare"], above)
    hub = await fleet.listen("hub")
    broker = fleet.hosts["spare"].broker
    await fleet.publish(b"1")
    spare = fleet.agents["spare"]
    await broker.publish(spare, Event("other", b"not this"))
    await broker.publish(spare, Event("t", b"2"))
    assert {await hub.get(), await hub.get()} == {b"1", b"2"}
    assert broker.counters(spare)["forwarded"] == 2
    # The one above does not send it down or up again.
    hub_broker = fleet.hosts["hub"].broker
    assert hub_broker.counters(fleet.agents["hub"])["forwarded"] == 0
    for host in fleet.hosts.values():
        await host.aclose()
