"""Stand-by brokers, confirmed publishing and roll-up, in memory."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import ConnectionRefused, NotSupported, TimedOut
from pilotfleet.protocol.address import Address, SocketAddress
from pilotfleet.protocol.services.eventoptions import encode_confirm
from pilotfleet.protocol.services.events import (
    Event,
    EventDecoder,
    encode_event,
    is_reserved,
)
from pilotfleet.services.events import links, route
from pilotfleet.services.events.broker import EventBroker
from pilotfleet.services.events.config import BrokerConfig
from pilotfleet.services.events.standby import StandbyChoice
from tests.services.events.support import (
    MemoryAgent,
    MemoryHost,
    MemoryStream,
    stream_pair,
)
from tests.services.events.world import settle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

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
        await settle()
        return heard


class Forgetful:
    """A broker that greets, and never confirms what it takes."""

    def __init__(self) -> None:
        self.taken: asyncio.Queue[Event] = asyncio.Queue()

    async def handle(self, agent: MemoryAgent, stream: MemoryStream) -> None:
        await stream.write(encode_confirm(0))
        decoder = EventDecoder()
        while data := await stream.read():
            for event in decoder.feed(data):
                if not is_reserved(event.topic):
                    self.taken.put_nowait(event)


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


async def test_what_a_publisher_gave_up_is_not_written_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fleet = Fleet(BrokerConfig(brokers=("hub",), publish_timeout_s=0.05))
    hub, worker = await fleet.listen("hub"), fleet.agents["worker"]
    dial, answers = worker.dial, asyncio.Event()

    async def hangs(remote: SocketAddress) -> MemoryStream:
        await answers.wait()
        return await dial(remote)

    monkeypatch.setattr(worker, "dial", hangs)
    await fleet.publish(b"1", wait=False)
    with pytest.raises(TimedOut, match="did not take the event"):
        await fleet.publish(b"given up")
    await fleet.publish(b"2", wait=False)
    answers.set()
    await fleet.publish(b"3")
    assert [await hub.get() for _ in range(3)] == [b"1", b"2", b"3"]
    for host in fleet.hosts.values():
        await host.aclose()


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
    assert [await spare.get(), await spare.get()] == [b"2", b"3"]


async def test_unconfirmed_events_are_sent_again(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare = await fleet.listen("spare")
    hub = Forgetful()
    monkeypatch.setattr(fleet.hosts["hub"].broker, "handle", hub.handle)
    published = asyncio.ensure_future(fleet.publish(b"x", confirm=True))
    assert (await hub.taken.get()).payload == b"x"
    fleet.agents["hub"].refuses = True
    await fleet.agents["worker"].dialed[-1].break_off()
    assert await published == Address(0, 2)
    assert await spare.get() == b"x"


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

    monkeypatch.setattr(fleet.hosts["hub"].broker, "handle", Forgetful().handle)
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


async def test_a_broker_that_is_found_too_late_is_not_kept(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfleet.services.events.standby.FIRST_PAUSE_S", 0.0)
    hub, worker = fleet.agents["hub"], fleet.agents["worker"]
    hub.refuses = True
    dial, answers = worker.dial, asyncio.Event()

    async def open_link(name: str, limit_s: float | None) -> links.Link:
        remote = SocketAddress(Address(0, fleet.agents[name].node_id), 1002)
        stream = await dial(remote)
        if name == "hub":
            await answers.wait()
        return links.PlainLink(stream)

    way = route.Route(fleet.hosts["worker"], NAMES, open_link)
    assert (await way.connect()).broker == Address(0, 2)
    hub.refuses = False
    way.look_back()
    await settle()
    found = worker.dialed[-1]
    await way.aclose()
    answers.set()
    await asyncio.gather(*fleet.hosts["worker"].tasks)
    assert way.take_better() is None
    # The hub's broker has seen the end.
    assert found.remote.address == Address(0, 1)
    await asyncio.gather(*fleet.hosts["hub"].tasks)


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


class Circle(Fleet):
    """Brokers that each have the next one above them, and the last one the first."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names
        for number, name in enumerate(names):
            above = BrokerConfig(
                brokers=(name,),
                roll_up=(names[(number + 1) % len(names)],),
                roll_up_topics=("*",),
            )
            self.add(10 + number, name, above)

    async def heard(self, at: str, events: list[bytes]) -> dict[str, list[bytes]]:
        """Publish at one broker; return what each delivers until all is quiet."""
        queues = {name: await self.listen(name) for name in self.names}
        for data in events:
            agent = self.agents[at]
            await self.hosts[at].broker.deliver(agent, Event("t", data))
            await self.wait_quiet()
        return {
            name: [queue.get_nowait() for _ in range(queue.qsize())]
            for name, queue in queues.items()
        }

    async def wait_quiet(self) -> None:
        """Wait until no broker has anything to send up."""
        while any(
            task.get_name().startswith("publish to")
            for host in self.hosts.values()
            for task in host.tasks
        ):
            await settle()


@pytest.fixture
async def circle_of(
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Callable[..., Circle]]:
    monkeypatch.setattr("pilotfleet.services.events.rollup.GATHER_S", 0.0)
    made: list[Circle] = []

    def make(*names: str) -> Circle:
        made.append(Circle(*names))
        return made[-1]

    yield make
    for circle in made:
        for host in circle.hosts.values():
            await host.aclose()


async def test_two_brokers_above_each_other_hear_everything_once(
    circle_of: Callable[..., Circle], caplog: pytest.LogCaptureFixture
) -> None:
    circle = circle_of("a", "b")
    await circle.heard("b", [b"first"])
    events = [b"1", b"2", b"3"]
    assert await circle.heard("a", events) == {"a": events, "b": events}
    assert await circle.heard("b", events) == {"a": events, "b": events}
    warnings = [text for text in caplog.messages if "come round" in text]
    assert len(warnings) == 2


async def test_a_circle_that_has_just_begun_comes_round_once_at_most(
    circle_of: Callable[..., Circle],
) -> None:
    heard = await circle_of("a", "b").heard("a", [b"x"])
    assert heard["b"] == [b"x"]
    assert heard["a"] in ([b"x"], [b"x", b"x"])


async def test_a_longer_circle_ends_after_some_levels(
    circle_of: Callable[..., Circle],
) -> None:
    heard = await circle_of("a", "b", "c").heard("a", [b"x", b"y"])
    # Up to four brokers pass it on: a, b, c, a; the next one is b.
    assert heard == {
        "a": [b"x", b"x", b"y", b"y"],
        "b": [b"x", b"x", b"y", b"y"],
        "c": [b"x", b"y"],
    }


async def test_a_circle_within_a_process_ends_too(
    circle_of: Callable[..., Circle],
) -> None:
    circle = circle_of("a", "b")
    both = BrokerConfig(brokers=("a", "b"), roll_up=("b", "a"), roll_up_topics=("*",))
    host = circle.hosts["a"] = circle.hosts["b"]
    circle.agents["a"] = host.add(10, "a")
    host.broker = EventBroker(host, both)
    await circle.heard("b", [b"first"])
    assert await circle.heard("a", [b"x"]) == {"a": [b"x"], "b": [b"x"]}
