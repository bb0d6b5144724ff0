"""The event bus: deliveries to many subscribers, many publishers, many patterns."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvloop

from bench.processmemory import MIB, cpu_seconds, memory_of
from bench.report import Table, Target
from pilotfleet.client.daemon import DaemonClient
from pilotfleet.fleet.agent import Agent
from pilotfleet.protocol.address import Address
from pilotfleet.protocol.services.events import (
    EVENT_PORT,
    PUBLISHER_TOPIC,
    encode_event,
)
from pilotfleet.protocol.topics import TopicTrie, matches
from tests.fleet.crewsupport import PRIVATE_FLEET, start_hub
from tests.support.programs import data_of, world

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.options import Options
    from bench.report import Cell
    from pilotfleet.client.streams import ClientStream
    from tests.support.programs import World

TOPIC = "fleet.health"
SUBSCRIBERS = (1, 10, 100)
NODES = 10
"""That publish, and that subscribe: no limit of one node is what is measured."""
WINDOW = 1_000
"""Events that are published before all subscribers must have them: below the queue of
a subscriber, so that none is lost."""
FAN_OUT_S = 8
OFFICIAL_WINDOW = 20
OFFICIAL_PAUSE_S = 0.021
"""Two events of each connection in this time: just what its rate limit lets pass."""
STALL_S = 60.0
PROBE_S = 0.2

MANY = 10_000
INTERVAL_S = 10.0
FIRST_ROUND_S = 40.0
"""All publishers connect in this time: 250 new tunnels a second."""
AT_ONCE = 64
MEASURED_S = 30
SETTLE_S = 2.0

PATTERNS = (100, 1_000, 10_000)
MATCHES = 20_000
SCANS = 20


def measure(options: Options) -> list[Table]:
    """Measure deliveries, then publishers, then matching."""
    ours, official = [], []
    for count in SUBSCRIBERS:
        print(f"  {count} subscribers", file=sys.stderr, flush=True)
        ours.append(_fan_out(count, options))
    for count in SUBSCRIBERS[:2]:
        print(f"  {count} subscribers, official", file=sys.stderr, flush=True)
        official.append(_official_fan_out(count, options))
    agents = options.scaled(MANY)
    print(f"  {agents} publishers", file=sys.stderr, flush=True)
    many = _many_publishers(agents, options)
    print("  patterns", file=sys.stderr, flush=True)
    return [_deliveries(ours, official), many, _matching(options)]


def _health(number: int) -> bytes:
    health = {
        "agent": f"worker-{number:05d}",
        "status": "idle",
        "tasks_completed": 17,
        "tasks_failed": 1,
        "uptime_hours": 3.25,
        "interval_s": INTERVAL_S,
    }
    return json.dumps(health).encode()


@dataclass(frozen=True, slots=True)
class _Fan:
    """A broker, and who publishes and subscribes there."""

    broker: Address
    pid: int
    """The broker's process."""
    subscribers: tuple[str | None, ...]
    """Agents of the daemon ``near``; None is the only one of an official daemon."""
    publishers: tuple[str | None, ...]
    """Agents of the daemon ``far``."""
    subscription: str
    """What a publisher subscribes to, as it must."""
    window: int
    pause_s: float = 0.0
    """At least between two windows."""


@dataclass(frozen=True, slots=True)
class _Delivered:
    """What a broker did in a second."""

    subscribers: int
    events: float
    cpu_s: float

    @property
    def deliveries(self) -> float:
        return self.events * self.subscribers

    def row(self, broker: str) -> tuple[Cell, ...]:
        each_us = 1e6 * self.cpu_s / self.deliveries
        figures = (self.events, self.deliveries, 100 * self.cpu_s, each_us)
        return broker, self.subscribers, *figures


def _fan_out(subscribers: int, options: Options) -> _Delivered:
    with world() as net:
        network = start_hub(net)
        pid = net.programs[-1].process.pid
        for daemon in ("near", "far"):
            net.start_daemon(
                daemon,
                *("--agents", str(NODES), "--agent-prefix", f"{daemon}-"),
                *("--join", network, "--broker", "hub", *PRIVATE_FLEET),
            )
        fan = _Fan(
            _address(net, "hub"),
            pid,
            subscribers=tuple(f"near-{number + 1}" for number in range(NODES)),
            publishers=tuple(f"far-{number + 1}" for number in range(NODES)),
            subscription=PUBLISHER_TOPIC,
            window=WINDOW,
        )
        return uvloop.run(_deliver(net, fan, subscribers, options))


def _official_fan_out(subscribers: int, options: Options) -> _Delivered:
    with world() as net:
        net.start_rendezvous()
        pid = net.start_official_daemon("hub", "-public").process.pid
        for name in ("near", "far"):
            net.start_official_daemon(name, "-public")
        names = (None,) * NODES
        fan = _Fan(
            _address(net, "hub"),
            pid,
            subscribers=names,
            publishers=names,
            subscription="unheard",
            window=OFFICIAL_WINDOW,
            pause_s=OFFICIAL_PAUSE_S,
        )
        return uvloop.run(_deliver(net, fan, subscribers, options))


async def _deliver(
    net: World, fan: _Fan, subscribers: int, options: Options
) -> _Delivered:
    async with AsyncExitStack() as stack:
        names = itertools.islice(itertools.cycle(fan.subscribers), subscribers)
        near, far = net.socket("near"), net.socket("far")
        readers = [await _open(stack, near, n, fan.broker, TOPIC) for n in names]
        writers = [
            await _open(stack, far, name, fan.broker, fan.subscription)
            for name in fan.publishers
        ]
        await _until_subscribed(writers[0], readers)
        frame = encode_event(TOPIC, _health(1))
        share = frame * (fan.window // len(writers))
        size = len(share) * len(writers)
        events, used_s, started = 0, cpu_seconds(fan.pid), time.perf_counter()
        while time.perf_counter() < started + options.scaled(FAN_OUT_S):
            async with asyncio.timeout(STALL_S), asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(fan.pause_s))
                for writer in writers:
                    group.create_task(writer.write(share))
                for reader in readers:
                    group.create_task(_read(reader, size))
            events += size // len(frame)
        elapsed = time.perf_counter() - started
        used_s = cpu_seconds(fan.pid) - used_s
    return _Delivered(subscribers, events / elapsed, used_s / elapsed)


async def _open(
    stack: AsyncExitStack, socket: Path, agent: str | None, broker: Address, topic: str
) -> ClientStream:
    """Return a connection of an agent to the broker, subscribed to a topic."""
    connected = await Agent.connect(socket, name=agent)
    client = await stack.enter_async_context(connected)
    stream = await client.dial(broker, EVENT_PORT)
    await stream.write(encode_event(topic))
    return stream


async def _until_subscribed(writer: ClientStream, readers: list[ClientStream]) -> None:
    """Return when every subscription works, and nothing is under way.

    Nothing answers a subscription, so events tell: numbered ones, until all subscribers
    have had one of them; then each reads up to the last.
    """
    tails = [b""] * len(readers)

    async def read(index: int) -> None:
        data = await readers[index].read()
        tails[index] = (tails[index] + data)[-64:]

    async with asyncio.timeout(STALL_S), asyncio.TaskGroup() as group:
        firsts = [group.create_task(read(index)) for index in range(len(readers))]
        for number in itertools.count():
            last = f"event {number:09d}".encode()
            await writer.write(encode_event(TOPIC, last))
            if not (await asyncio.wait(firsts, timeout=PROBE_S))[1]:
                break
    async with asyncio.timeout(STALL_S):
        for index in range(len(readers)):
            while not tails[index].endswith(last):
                await read(index)


async def _read(stream: ClientStream, size: int) -> None:
    while size > 0:
        data = await stream.read()
        if not data:
            raise EOFError("the broker ended a subscription")
        size -= len(data)


def _deliveries(ours: list[_Delivered], official: list[_Delivered]) -> Table:
    rows = [delivered.row("pilotfleet") for delivered in ours]
    rows += [delivered.row("official 1.18.0") for delivered in official]
    most = Target(
        *("events_fanout_per_s", "deliveries of one broker", "/s"),
        max(delivered.deliveries for delivered in ours),
        max(delivered.deliveries for delivered in official),
        "wall clock; the highest of the rows; the official broker limits each"
        " connection",
    )
    columns = (
        *("broker", "subscribers", "events/s", "deliveries/s"),
        *("broker's CPU %", "broker's CPU µs per delivery"),
    )
    note = (
        f"Health events of {len(_health(1))} bytes from {NODES} publishers to the"
        " broker and on to the subscribers, through encrypted tunnels: three daemons"
        " and one client share the machine's cores. The next events are published when"
        " all subscribers have all, so none is lost. An official broker lets 100 events"
        " a second of a connection pass and drops the others."
    )
    return Table("Deliveries of one broker", columns, rows, note, targets=(most,))


def _many_publishers(agents: int, options: Options) -> Table:
    with world() as net:
        network = start_hub(net)
        pid = net.programs[-1].process.pid
        net.start_daemon(
            "far",
            *("--agents", str(agents), "--agent-prefix", "p-", "--join", network),
            *("--broker", "hub", *PRIVATE_FLEET),
        )
        row, target = uvloop.run(_publish_in_turns(net, agents, pid, options))
    columns = (
        *("publishers", "all heard after s", "events/s", "events lost"),
        "broker's CPU %",
        *("broker's CPU µs per event", *(f"broker's {name}" for name in MIB)),
    )
    note = (
        "Every agent has a tunnel and a stream of its own to the broker and publishes"
        f" its health each {INTERVAL_S:g} s; one subscriber, a program at the broker's"
        " daemon, takes all of it, which costs that daemon as well. All heard:"
        f" from the first publication, with {MANY / FIRST_ROUND_S:g} new tunnels a"
        " second; what is lost counts from there on. Memory: of the whole daemon."
    )
    title = "Many publishers at one broker"
    return Table(title, columns, [row], note, targets=(target,))


def _core_target(agents: int, share_of_core: float) -> Target:
    return Target(
        *("events_10000_core_percent", "broker's share of a core", "%"),
        *(share_of_core, None),
        f"{agents:,} publishers, each {INTERVAL_S:g} s; {MEASURED_S} s of"
        " /proc/PID/stat",
    )


async def _publish_in_turns(
    net: World, agents: int, pid: int, options: Options
) -> tuple[tuple[Cell, ...], Target]:
    async with AsyncExitStack() as stack:
        hub = _address(net, "hub")
        reader = await _open(stack, net.socket("hub"), None, hub, TOPIC)
        far = await stack.enter_async_context(
            await DaemonClient.connect(net.socket("far"))
        )
        # Nothing answers a subscription, and what came before it would count as lost.
        while not data_of(net.ctl("hub", "events", "status"))["subscribers"]:  # noqa: ASYNC110
            await asyncio.sleep(PROBE_S)
        received = _Counter(reader, len(encode_event(TOPIC, _health(1))))
        reading = asyncio.create_task(received.run())
        started = time.perf_counter()
        await _publish(far, agents, count=agents, seconds=FIRST_ROUND_S * agents / MANY)
        await received.settle(agents)
        first_s, seconds = received.last_at - started, options.scaled(MEASURED_S)
        count = round(agents * seconds / INTERVAL_S)
        started, used_s = time.perf_counter(), cpu_seconds(pid)
        await _publish(far, agents, count=count, seconds=seconds)
        elapsed, used_s = time.perf_counter() - started, cpu_seconds(pid) - used_s
        await received.settle(agents + count)
        lost = agents + count - received.events
        memory = memory_of(pid)
        reading.cancel()
    share_of_core, each_us = 100 * used_s / elapsed, 1e6 * used_s / count
    row = (agents, first_s, count / elapsed, lost, share_of_core, each_us, *memory.mib)
    return row, _core_target(agents, share_of_core)


async def _publish(
    client: DaemonClient, agents: int, *, count: int, seconds: float
) -> None:
    """Publish in turns and in equal steps; what is late, some at a time."""
    started, done = time.perf_counter(), 0
    while done < count:
        passed_s = time.perf_counter() - started
        due = min(count, done + AT_ONCE, int(count * passed_s / seconds) + 1)
        await asyncio.gather(
            *(
                client.call(
                    "publish",
                    agent=f"p-{number % agents + 1}",
                    topic=TOPIC,
                    data=_health(number % agents).decode(),
                    wait=False,
                )
                for number in range(done, due)
            )
        )
        done = due
        ahead = started + seconds * done / count - time.perf_counter()
        await asyncio.sleep(max(0.0, ahead))


class _Counter:
    """Counts events of equal size."""

    def __init__(self, stream: ClientStream, size: int) -> None:
        self._stream = stream
        self._size = size
        self._bytes = 0
        self.last_at = 0.0
        """When the last of them came."""

    @property
    def events(self) -> int:
        return self._bytes // self._size

    async def run(self) -> None:
        while data := await self._stream.read():
            self._bytes += len(data)
            self.last_at = time.perf_counter()

    async def settle(self, expected: int) -> None:
        """Return when so many have come, or none came for a while."""
        last = -1
        while last < self.events < expected:
            last = self.events
            await asyncio.sleep(SETTLE_S)


def _matching(options: Options) -> Table:
    rows = [_match(count, options.scaled(MATCHES)) for count in PATTERNS]
    columns = ("subscriptions", "µs per event in the trie", "µs per event by scan")
    note = (
        "A third each of topics, of `fleet.N.*` and of `fleet.*.N`, all different; an"
        " event fits three of them. A scan compares it with every pattern."
    )
    return Table("Matching one event", columns, rows, note)


def _match(count: int, matches_made: int) -> tuple[Cell, ...]:
    kinds = ("fleet.{0}.health", "fleet.{0}.*", "fleet.*.{0}")
    patterns = [kinds[number % 3].format(number // 3) for number in range(count)]
    trie: TopicTrie[int] = TopicTrie()
    for number, pattern in enumerate(patterns):
        trie.add(pattern, number)
    rng = random.Random(count)
    topics = [f"fleet.{rng.randrange(count // 3)}.health" for _ in range(matches_made)]
    in_trie_us = _each_us(trie.match, topics)

    def scan(topic: str) -> list[int]:
        return [n for n, pattern in enumerate(patterns) if matches(pattern, topic)]

    few = topics[:SCANS]
    assert all(sorted(trie.match(topic)) == scan(topic) for topic in few)
    return count, in_trie_us, _each_us(scan, few)


def _each_us(match: Callable[[str], object], topics: list[str]) -> float:
    started = time.perf_counter()
    for topic in topics:
        match(topic)
    return 1e6 * (time.perf_counter() - started) / len(topics)


def _address(net: World, name: str) -> Address:
    return Address.parse(data_of(net.ctl(name, "info"))["address"])
