"""A simulated host asks what a real one asks: both are heard, and compared.

The simulator writes out the steps of ``pilotfleet.node.registration`` once more. Here a
real host with its agents lives for two keepalives at a real rendezvous, and a simulated
one of the same size at the simulated rendezvous. Whoever changes what agents say,
when, or how it travels, has to change both.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import pytest

from bench.simulation.identities import tags_of
from bench.simulation.options import RunOptions
from bench.simulation.world import SimulatedWorld
from pilotfleet.node.host import Host
from pilotfleet.protocol.beacon import Discover, decode_message
from pilotfleet.protocol.registry.framing import JsonFrameDecoder
from pilotfleet.protocol.registry.messages import decode_request
from pilotfleet.registry.beacon_table import BeaconTable
from pilotfleet.services.handshake.service import HandshakeService
from tests.node.registration.proxy import RegistryProxy, without_batches
from tests.node.support import eventually, open_world
from tests.simulation.test_simulation import TIMES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from bench.simulation.rendezvous import Job
    from pilotfleet.node.agent import Agent
    from pilotfleet.protocol.address import Endpoint

    Message = dict[str, Any]

pytestmark = pytest.mark.timeout(120)

AGENTS = 40
KEEPALIVE_S = 2.5
"""Longer than the time in which an agent looks for handshakes only once."""
BEATS = 2


class Heard:
    """What a registry and its beacon have heard, agent by agent."""

    def __init__(self) -> None:
        self.asked: defaultdict[int, list[tuple[str, ...]]] = defaultdict(list)
        """By node: each request as its type and the names of its fields."""
        self.together: set[str] = set()
        """Types that came with those of other agents."""
        self.alone: Counter[str] = Counter()
        self.messages: dict[str, set[str]] = {}
        """The fields of messages for many agents, by type."""
        self.beats: Counter[int] = Counter()
        self.beat_messages = 0
        self.discovers: Counter[int] = Counter()

    def note(self, request: Message, reply: Message) -> None:
        """Take note of a message and its answer."""
        kind = request["type"]
        if kind == "batch":
            self.messages[kind] = set(request)
            rows = zip(request["requests"], reply["replies"], strict=True)
            for each, answer in rows:
                self.together.add(each["type"])
                self._note(each, answer)
        elif kind == "heartbeats":
            self.messages[kind] = set(request)
            self.beat_messages += 1
            self.together.add("heartbeat")
            for node, signature in request["nodes"]:
                beat = {"type": "heartbeat", "node_id": node, "signature": signature}
                self._note(beat, {})
        else:
            self.alone[kind] += 1
            self._note(request, reply)

    def _note(self, request: Message, reply: Message) -> None:
        node = request.get("node_id") or reply["node_id"]
        self.asked[node].append((request["type"], *sorted(request)))
        self.beats[node] += request["type"] == "heartbeat"

    @property
    def messages_per_beat(self) -> float:
        """How many messages for many agents a heartbeat took."""
        return self.beat_messages / self.beats.total()

    def discovered(self, node: int) -> None:
        """Take note of a datagram that says where a node is."""
        self.discovers[node] += 1

    @property
    def lives(self) -> Counter[tuple[tuple[str, ...], ...]]:
        """How many agents asked the same: their starts, and then beat by beat."""
        return Counter(map(_life, self.asked.values()))

    @property
    def datagrams(self) -> Counter[int]:
        """How many agents sent so many more datagrams than heartbeats."""
        return Counter(self.discovers[node] - self.beats[node] for node in self.asked)

    def is_complete(self) -> bool:
        """Whether all agents have beaten so often, and nothing is under way."""
        polls = (
            Counter(kind for kind, *_ in asked)["poll_handshakes"]
            for asked in self.asked.values()
        )
        are_there = len(self.asked) == AGENTS and len(self.datagrams) == 1
        return are_there and min(polls) >= BEATS


def _life(asked: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """Return the requests of one agent up to its last beat that is compared."""
    begins = [at for at, (kind, *_) in enumerate(asked) if kind == "heartbeat"]
    begins.append(len(asked))
    start, *beats = (asked[i:j] for i, j in pairwise([0, *begins]))
    # What a beat brings may take different connections, and arrive in any order.
    return (*start, *(each for beat in beats[:BEATS] for each in sorted(beat)))


class RecordingBeacon(asyncio.DatagramProtocol):
    """The real table of a beacon, which notes who said where it is."""

    def __init__(self, heard: Heard) -> None:
        self.table = BeaconTable(now=0.0)
        self.heard = heard
        self.transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Endpoint) -> None:
        message = decode_message(data)
        assert isinstance(message, Discover)
        self.heard.discovered(message.node)
        self.table.receive_datagram(data, addr, 0.0)
        for answer, endpoint in self.table.datagrams_to_send():
            self.transport.sendto(answer, endpoint)


@contextlib.asynccontextmanager
async def beacon(heard: Heard) -> AsyncIterator[Endpoint]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: RecordingBeacon(heard), local_addr=("127.0.0.1", 0)
    )
    try:
        yield transport.get_extra_info("sockname")
    finally:
        transport.close()


def make_stale(host: Host, made: set[Agent], *_: int) -> None:
    """Have the refresh of who is registered now due with its first heartbeat."""
    for agent, member in host.registrar._members.items():
        if agent.registered_at and agent not in made:
            made.add(agent)
            member.sync_at = 0.0


async def hear_real_host(folder: Path, *, batch: bool) -> Heard:
    """Return what a host of real agents asks a real rendezvous."""
    heard = Heard()

    def note(request: Message, reply: Message) -> Message:
        heard.note(request, reply)
        return reply if batch else without_batches(request, reply)

    async with (
        open_world(folder) as world,
        RegistryProxy(world.addresses.registry, change=note).running() as proxy,
        beacon(heard) as beacon_at,
    ):
        config = world.config("h", *(f"agent-{n}" for n in range(AGENTS)))
        agents = tuple(
            replace(spec, tags=tuple(sorted(tags_of(n))))
            for n, spec in enumerate(config.agents)
        )
        config = replace(
            config,
            agents=agents,
            registry=proxy.endpoint,
            beacon=beacon_at,
            keepalive_s=KEEPALIVE_S,
        )
        host = Host(config)
        service = HandshakeService(host)
        service.attach()
        host.on_progress = partial(make_stale, host, set())
        async with host:
            await eventually(heard.is_complete, what="keepalives", limit_s=60.0)
        await service.aclose()
    return heard


async def hear_simulated_host(monkeypatch: pytest.MonkeyPatch, *, batch: bool) -> Heard:
    """Return what a simulated host asks."""
    options = RunOptions(
        agents=AGENTS,
        per_host=AGENTS,
        keepalive_s=KEEPALIVE_S,
        duration_s=0,
        searches_per_s=0,
        watchers=False,
        cold=True,
        batch=batch,
    )
    world, heard = SimulatedWorld(options, TIMES), Heard()
    rendezvous = world.rendezvous
    answer, discover = rendezvous.answer, rendezvous.discover

    async def note(job: Job) -> None:
        await answer(job)
        requests = [decode_request(f) for f in JsonFrameDecoder().feed(job.frames)]
        for request, reply in zip(requests, job.replies or (), strict=True):
            heard.note(request, reply)

    def note_discover(node: int, source: Endpoint) -> None:
        heard.discovered(node)
        discover(node, source)

    monkeypatch.setattr(rendezvous, "answer", note)
    monkeypatch.setattr(rendezvous, "discover", note_discover)
    await world.run()
    for agent in range(AGENTS):
        world.sync_at[agent] = 0.0
    await world.kernel.run(60.0, heard.is_complete)
    return heard


@pytest.mark.parametrize("batch", [True, False])
async def test_simulated_agents_ask_what_real_ones_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: bool
) -> None:
    real = await hear_real_host(tmp_path, batch=batch)
    simulated = await hear_simulated_host(monkeypatch, batch=batch)
    assert simulated.lives == real.lives
    assert simulated.datagrams == real.datagrams
    # The first agent, before it has a number.
    assert simulated.discovers[0] == real.discovers[0]
    # Agents that are new look nothing up, and whether later lookups meet is chance.
    assert simulated.together - {"lookup"} == real.together - {"lookup"}
    assert simulated.alone.keys() >= real.alone.keys()
    assert simulated.messages == real.messages
    # A busy machine gathers more, and none less.
    assert real.messages_per_beat <= 1.3 * simulated.messages_per_beat


def test_a_difference_is_seen() -> None:
    beat, poll, lookup = ("heartbeat",), ("poll_handshakes",), ("lookup",)
    life = _life([("register",), beat, lookup, poll, beat])
    # What a beat brings may come in any order; what comes after the last is not seen.
    assert _life([("register",), beat, poll, lookup, beat, beat]) == life
    assert _life([("register",), beat, poll, beat]) != life
    assert _life([("register", "hostname"), beat, lookup, poll, beat]) != life
