"""A program for benchmarks: the Polo dashboard of a network of many public agents.

``python -m bench.directory AGENTS`` prints its address and serves until its standard
input ends. The agents are entries of a directory as the store would give them.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
from typing import TYPE_CHECKING

import uvloop

from pilotfleet.registry.beacon_table import BeaconCounters
from pilotfleet.registry.dashboard.app import Dashboard
from pilotfleet.registry.dashboard.config import DashboardConfig
from pilotfleet.registry.dashboard.view import RendezvousView
from pilotfleet.registry.directory.directory import Directory
from pilotfleet.registry.directory.records import (
    Claim,
    NodeRecord,
    PoloRecord,
    encode_record,
    host_key,
    node_key,
    polo_key,
)
from pilotfleet.registry.metrics import ServerStats
from pilotfleet.registry.store.base import Entry
from pilotfleet.transport.clock import SystemClock
from pilotfleet.web.server import HttpServer

if TYPE_CHECKING:
    from collections.abc import Iterator

TAGS = 200
COMMON_TAGS = 20
"""The n-th tag is the rarer the greater n is; so many are common."""
HIGHEST_POLO = 1_000
BIND = ("127.0.0.1", 0)
UNLIMITED = DashboardConfig(requests_per_second=1e6, burst=1e6)


def tag_of(rng: random.Random) -> str:
    """Return a tag, some oftener than others."""
    return f"tag-{min(TAGS - 1, int(rng.expovariate(1 / COMMON_TAGS)))}"


def name_of(number: int) -> str:
    """Return the hostname of an agent."""
    return f"worker-{number:06}"


async def serve(agents: int) -> None:
    """Serve until standard input ends."""
    clock, directory = SystemClock(), Directory()
    wall = clock.wall()
    directory.load(entries(agents, wall), wall=wall)
    gc.collect()
    gc.freeze()
    view = RendezvousView(
        directory,
        ServerStats(),
        BeaconCounters(),
        lambda: 0,
        lambda: 0,
        clock,
        clock.now(),
    )
    async with (
        Dashboard(view, UNLIMITED, bind=BIND) as dashboard,
        HttpServer(dashboard.app, BIND) as server,
    ):
        print(server.address[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)


def entries(agents: int, wall: float) -> Iterator[Entry]:
    """Yield what the store has of so many agents."""
    rng = random.Random(1)
    for number in range(1, agents + 1):
        tags = {"all", *(tag_of(rng) for _ in range(3))}
        record = NodeRecord(
            id=number,
            key=number.to_bytes(32, "big"),
            created=int(wall - rng.random() * 100),
            public=True,
            tags=tuple(sorted(tags)),
            version=rng.choice(("1.18.0", "0.5.0")),
        )
        polo = PoloRecord(score=rng.randint(0, HIGHEST_POLO))
        yield Entry(node_key(number), encode_record(record), number)
        yield Entry(host_key(name_of(number)), encode_record(Claim(number)), number)
        yield Entry(polo_key(number), encode_record(polo), number)


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
