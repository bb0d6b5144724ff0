"""What it takes to have every agent reach every other one: one network, or handshakes.

A mesh joins one network: n joins. Without networks, each pair makes a handshake, which
is what the official programs are made to do as well; a handful of them is measured.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvloop

from bench.report import Table
from pilotfleet.fleet.agent import Agent
from pilotfleet.fleet.patterns.mesh import MeshMeasure, measure_mesh
from tests.fleet.crewsupport import PRIVATE_FLEET, start_hub
from tests.support.programs import world

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.options import Options
    from bench.report import Cell
    from tests.support.programs import World

SIZES = (5, 10, 20, 50, 100, 200)
QUICK_SIZES = (5, 10)
PAIRS_PER_AGENT = 2
DAEMONS = 2
HANDSHAKING = 5
HANDSHAKE_S = 60.0
POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class _Size:
    """A mesh that was measured."""

    start_s: float
    """Until all agents are registered and have joined."""
    dials_s: float
    """Until the sample has dialled, from then."""
    found: MeshMeasure


def measure(options: Options) -> list[Table]:
    """Measure meshes, then handshakes of all pairs."""
    sizes = []
    for count in QUICK_SIZES if options.quick else SIZES:
        print(f"  {count} agents", file=sys.stderr, flush=True)
        sizes.append(_mesh(count))
    print("  handshakes", file=sys.stderr, flush=True)
    return [_meshes(sizes), _handshakes()]


def _mesh(count: int) -> _Size:
    with world() as net:
        network = start_hub(net)
        started = time.monotonic()
        names = _start(net, network, count)
        start_s = time.monotonic() - started
        dials_s, found = uvloop.run(_dial(net, names))
    return _Size(start_s, dials_s, found)


def _start(net: World, network: str, count: int) -> list[tuple[str, str]]:
    """Start agents in two daemons; return the daemon and the name of each.

    In turns, so that neighbours, which dial each other, are in different processes.
    """
    names: list[list[tuple[str, str]]] = []
    for number in range(DAEMONS):
        share = len(range(number, count, DAEMONS))
        daemon = f"d{number}"
        net.start_daemon(
            daemon,
            *("--agents", str(share), "--agent-prefix", f"m{number}-"),
            *("--join", network, "--broker", "hub", *PRIVATE_FLEET),
        )
        names.append([(daemon, f"m{number}-{n}") for n in range(1, share + 1)])
    turns = itertools.zip_longest(*names)
    return [agent for turn in turns for agent in turn if agent is not None]


async def _dial(net: World, names: list[tuple[str, str]]) -> tuple[float, MeshMeasure]:
    async with AsyncExitStack() as stack:
        agents = [
            await stack.enter_async_context(
                await Agent.connect(net.socket(daemon), name=name)
            )
            for daemon, name in names
        ]
        started = time.monotonic()
        found = await measure_mesh(agents, pairs=PAIRS_PER_AGENT * len(agents))
        return time.monotonic() - started, found


def _meshes(sizes: list[_Size]) -> Table:
    columns = (
        *("agents", "joins", "handshakes", "pairwise handshakes would be"),
        *("up and joined s", "sample of pairs", "sample dialled s"),
        *("dial p50 ms", "dial max ms"),
    )
    rows: list[tuple[Cell, ...]] = [
        (
            size.found.agents,
            size.found.joins,
            size.found.handshakes,
            size.found.agents * (size.found.agents - 1) // 2,
            size.start_s,
            size.found.pairs,
            size.dials_s,
            size.found.dial_p50_ms,
            size.found.dial_max_ms,
        )
        for size in sizes
    ]
    note = (
        f"Agents of one network in {DAEMONS} daemons, started one after the other."
        " Joins are all the trust there is: handshakes counts trusted and asked peers"
        f" of all agents. {PAIRS_PER_AGENT} ordered pairs per agent dial the other's"
        " echo port for the first time, 16 at a time: tunnel, stream and echo."
    )
    return Table("Trust in a mesh", columns, rows, note)


def _handshakes() -> Table:
    """Measure handshakes of all pairs of a few daemons, ours and official."""
    rows: list[tuple[Cell, ...]] = []
    with world() as net:
        net.start_rendezvous()
        starts: dict[str, Callable[..., object]] = {
            "pilotfleet": net.start_daemon,
            "official 1.18.0": net.start_official_daemon,
        }
        for kind, start in starts.items():
            names = [f"{kind[0]}{number}" for number in range(HANDSHAKING)]
            for name in names:
                start(name, "--public")
            each = uvloop.run(_all_pairs(net, names))
            total_s = sum(each) / 1000
            median = statistics.median(each)
            rows.append((kind, HANDSHAKING, len(each), total_s, median, max(each)))
    note = (
        "Public daemons, one agent each, of no common network; both of a pair ask, one"
        " pair after the other, one client for both kinds. A handshake is done when"
        " both list the other as trusted. Private ones take longer: they are told by"
        " their next heartbeat."
    )
    columns = (
        *("daemons", "agents", "handshakes", "all s", "each p50 ms", "each max ms"),
    )
    return Table("Pairwise handshakes", columns, rows, note)


async def _all_pairs(net: World, names: list[str]) -> list[float]:
    """Return the milliseconds that each pair took."""
    times = []
    async with AsyncExitStack() as stack:
        agents = [
            await stack.enter_async_context(await Agent.connect(net.socket(name)))
            for name in names
        ]
        for one, other in itertools.combinations(agents, 2):
            started = time.perf_counter()
            async with asyncio.timeout(HANDSHAKE_S):
                await one.handshake(other.node_id, "benchmark")
                await other.handshake(one.node_id, "benchmark")
                await _until_trusted(one, other)
                await _until_trusted(other, one)
            times.append(1000 * (time.perf_counter() - started))
    return times


async def _until_trusted(one: Agent, other: Agent) -> None:
    """Wait for what no daemon announces."""
    while True:
        if any(row["node_id"] == other.node_id for row in await one.trusted()):
            return
        await asyncio.sleep(POLL_S)
