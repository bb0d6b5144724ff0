"""What a store that replicas share takes of each of them, at a real NATS server.

The time is that of this process, which is the client; the server's own is not in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.simulation.costs import US
from bench.simulation.identities import stored
from pilotfleet.registry.store.base import Change
from pilotfleet.registry.store.opening import open_store
from tests.support.nats import run_nats

if TYPE_CHECKING:
    from bench.simulation.costs import ServiceTimes
    from pilotfleet.registry.store.base import Entry

NODES = 2_000
DECISION = 3
"""Changes of a registration, which are written together."""
GROUP = 33
"""Registrations that come together."""


def with_shared_store(times: ServiceTimes) -> ServiceTimes:
    """Return the table with what a change costs who writes it, and who follows it."""
    with (
        tempfile.TemporaryDirectory(prefix="pf-sim-") as folder,
        run_nats(Path(folder)) as server,
    ):
        entries = list(stored(NODES, ["10.0.0.1"], NODES, 1))
        written = asyncio.run(_write(server.url, entries))
        followed = asyncio.run(_follow(server.url, len(entries)))
    return replace(times, share=written, follow=followed)


async def _write(url: str, entries: list[Entry]) -> float:
    changes = [Change(entry.key, entry.value, None) for entry in entries]
    decisions = [changes[at : at + DECISION] for at in range(0, len(changes), DECISION)]
    async with open_store(url) as store:
        await store.load()
        begin = time.process_time()
        for at in range(0, len(decisions), GROUP):
            await asyncio.gather(*map(store.write, decisions[at : at + GROUP]))
        return (time.process_time() - begin) / len(entries) / US


async def _follow(url: str, count: int) -> float:
    async with open_store(url) as store:
        begin = time.process_time()
        async with contextlib.aclosing(store.watch(0)) as entries:
            for _ in range(count):
                await anext(entries)
            return (time.process_time() - begin) / count / US
