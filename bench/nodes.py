"""Directories of very many nodes, in this process or in a rendezvous."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import time
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from bench.directory import entries, tag_of
from pilotfleet.cli.serving import GC_THRESHOLD
from pilotfleet.protocol.registry.endpoints import parse_endpoint
from pilotfleet.registry.config import ServiceConfig
from pilotfleet.registry.directory.directory import Directory
from pilotfleet.registry.directory.records import encode_record, node_key
from pilotfleet.registry.service import RegistryService
from pilotfleet.registry.store.base import Change, Entry
from pilotfleet.registry.store.memory import MemoryStore
from pilotfleet.registry.store.opening import open_store
from pilotfleet.transport.clock import SystemClock
from tests.support.programs import world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pilotfleet.registry.directory.records import NodeRecord

AHEAD_S = 1_000.0
"""Nodes were heard that much later than now, so that none falls silent meanwhile."""
WRITTEN_AT_ONCE = 5_000


class Population:
    """A registry service that knows so many nodes, which come and go."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.directory = Directory()
        wall = time.time() + AHEAD_S
        # As the programs have it: what stays is not looked through again and again, and
        # what comes is looked through seldom.
        gc.disable()
        self.directory.load(entries(size, wall), wall=wall)
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLD)
        gc.enable()
        self.service = RegistryService(
            self.directory,
            MemoryStore(),
            config=ServiceConfig(),
            clock=SystemClock(),
            notify=lambda node: None,
        )
        self._rng = random.Random(size)
        self._revision = size + 1

    def change(self) -> int:
        """Have a node come, go, or get other tags; return which."""
        node = self._rng.randint(1, self.size)
        record = self.record(node)
        if self._rng.random() < 0.5 or not record.live:
            record = msgspec.structs.replace(record, live=not record.live)
        else:
            tags = {"all", *(tag_of(self._rng) for _ in range(3))}
            record = msgspec.structs.replace(record, tags=tuple(sorted(tags)))
        self.put(record)
        return node

    def record(self, node: int) -> NodeRecord:
        """Return a node as it is."""
        return self.directory.nodes.by_id[node].record

    def put(self, record: NodeRecord) -> None:
        """Replace a node, as if the store's watch had brought it."""
        self._revision += 1
        entry = Entry(node_key(record.id), encode_record(record), self._revision)
        self.directory.apply(entry)


@contextlib.contextmanager
def served(size: int) -> Iterator[tuple[tuple[str, int], int]]:
    """Yield endpoint and process of a rendezvous whose store has so many nodes."""
    with world() as net:
        url = f"sqlite:///{net.home / 'many.db'}"
        asyncio.run(_write(url, size))
        rendezvous = net.start_rendezvous(url)
        yield parse_endpoint(net.registry), rendezvous.process.pid


async def _write(url: str, size: int) -> None:
    source = entries(size, time.time() + AHEAD_S)
    async with open_store(url) as store:
        while part := list(islice(source, WRITTEN_AT_ONCE)):
            await store.write([Change(e.key, e.value, None) for e in part])
