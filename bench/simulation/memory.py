"""What the registry keeps for each node, measured part by part in this process."""

from __future__ import annotations

import gc
import os
import time
from dataclasses import dataclass
from itertools import islice
from secrets import token_bytes
from typing import TYPE_CHECKING

from bench.processmemory import memory_of
from bench.simulation.hosts import PORTS, ip_of
from bench.simulation.identities import FIRST_PORT, own, public_key, stored
from pilotfleet.cli.serving import GC_THRESHOLD
from pilotfleet.protocol.beacon import Discover
from pilotfleet.protocol.registry.signatures import signed_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bench.simulation.options import RunOptions
    from bench.simulation.rendezvous import SimulatedRendezvous
    from pilotfleet.registry.store.base import Entry

CHUNK = 300
"""Entries made at a time: the room that more of them leave would count as memory."""
AT_START = 3
"""Signatures of an agent at its start: registration, visibility and tags. They are
remembered until newer ones need the room, and not asked for again."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What it took to fill the registry as it is with that many nodes: measured."""

    nodes: int
    seconds: float
    """Of processor time, for the directory from its stored entries."""
    directory_bytes: int
    signatures_bytes: int
    """Five of each node: what it said at its start, and with every keepalive."""
    beacon_bytes: int
    """Where the beacon heard each node."""

    @property
    def bytes(self) -> int:
        """All together."""
        return self.directory_bytes + self.signatures_bytes + self.beacon_bytes


def fill(rendezvous: SimulatedRendezvous, options: RunOptions, wall: float) -> Loaded:
    """Load the directory, and remember of each node what a process has heard of it."""
    ips = [ip_of(host) for host in range(options.hosts)]
    entries = stored(options.agents, ips, options.per_host, int(wall))
    spent = [0.0]

    def load() -> None:
        begin = time.thread_time()
        making = _Chunks(entries)
        rendezvous.directory.load(making, wall=wall)
        spent[0] = time.thread_time() - begin - making.seconds

    directory = _growth(load)
    rendezvous.make_room()
    signatures = _growth(lambda: _remember(rendezvous, options.agents))
    beacon = _growth(lambda: _discover(rendezvous, options, ips))
    return Loaded(options.agents, spent[0], directory, signatures, beacon)


def settle_memory() -> None:
    """Do what the real program does once it has loaded: see ``cli.serving``."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)


class _Chunks:
    """Entries, with the time that making them takes kept apart."""

    def __init__(self, entries: Iterator[Entry]) -> None:
        self._entries = entries
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Entry]:
        while True:
            begin = time.thread_time()
            chunk = list(islice(self._entries, CHUNK))
            self.seconds += time.thread_time() - begin
            if not chunk:
                return
            yield from chunk


def _growth(act: Callable[[], None]) -> int:
    settle_memory()
    before = memory_of(os.getpid()).uss
    act()
    settle_memory()
    return memory_of(os.getpid()).uss - before


def _remember(rendezvous: SimulatedRendezvous, agents: int) -> None:
    for _ in range(AT_START * agents):
        rendezvous.signatures._remember(token_bytes(16))
    for agent in range(agents):
        name = f"agent-{agent}"
        requests = (
            own(name, kind, agent + 1) for kind in ("heartbeat", "poll_handshakes")
        )
        claims = [(public_key(name), signed_text(r), r["signature"]) for r in requests]
        rendezvous.signatures.learn(claims, (True, True))


def _discover(
    rendezvous: SimulatedRendezvous, options: RunOptions, ips: Iterable[str]
) -> None:
    # Parsed once each, as from a socket: every node has an address of its own.
    for number, ip in enumerate(ips):
        first = number * options.per_host
        for agent in range(first, min(first + options.per_host, options.agents)):
            source = (ip.encode().decode(), FIRST_PORT + agent % PORTS)
            rendezvous.beacon.receive_datagram(Discover(agent + 1).encode(), source, 0)
            rendezvous.beacon.datagrams_to_send()
