"""Search and watch, from 100 to 1,000,000 nodes in one directory."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any

from bench.fleets import percentile
from bench.nodes import Population, served
from bench.report import Table, Target
from bench.watched import watch_over_sockets, watch_tables
from pilotfleet.protocol.registry.messages import encode_reply
from pilotfleet.registry.context import PeerContext
from tests.registry.support import raw_client

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.options import Options
    from bench.report import Cell

SIZES = (100, 1_000, 5_000, 10_000, 100_000, 1_000_000)
QUICK_SIZES = (100, 1_000, 10_000)
SEARCHES = 400
"""Of each kind."""
SERVED = 10_000
"""Nodes in the directory of a real rendezvous."""
GOALS = {1_000: "1k", 10_000: "10k", 100_000: "100k"}
KINDS: dict[str, Callable[[int], dict[str, Any]]] = {
    "all nodes' tag": lambda _: {"tags": ["all"]},
    "popular tag": lambda n: {"tags": [f"tag-{n % 5}"]},
    "rare tag": lambda n: {"tags": [f"tag-{150 + n % 40}"]},
    "three tags": lambda n: {"tags": ["all", f"tag-{n % 5}", f"tag-{5 + n % 5}"]},
    "any of three": lambda n: {
        "tags": [f"tag-{n % 5}", f"tag-{20 + n % 5}", f"tag-{100 + n % 5}"],
        "any": True,
    },
    "no match": lambda n: {"tags": ["all", f"none-{n}"]},
    "name's beginning": lambda n: {"hostname_prefix": f"worker-0{n % 10}"},
    "tag, online": lambda n: {"tags": [f"tag-{n % 5}"], "online": True},
}


def measure(options: Options) -> list[Table]:
    """Measure in this process, at all sizes, then over a real rendezvous."""
    rows: list[tuple[Cell, ...]] = []
    watched: list[Table] = []
    targets: list[Target] = []
    for size in QUICK_SIZES if options.quick else SIZES:
        _say(f"{size} nodes")
        population = Population(size)
        found = asyncio.run(_search(population, options.scaled(SEARCHES)))
        rows += _rows(size, found)
        if size in GOALS:
            targets.append(_target(size, found))
        if size in (10_000, 1_000_000):
            _say(f"watches of {size} nodes")
            watched += asyncio.run(watch_tables(population, options))
    _say(f"a rendezvous with {SERVED} nodes")
    with served(SERVED) as (endpoint, pid):
        remote = asyncio.run(_search_over_sockets(endpoint, options.scaled(SEARCHES)))
        watched.append(asyncio.run(watch_over_sockets(endpoint, pid, options)))
    return [_inside(rows, tuple(targets)), _outside(remote), *watched]


async def _search(
    population: Population, count: int
) -> dict[str, list[tuple[float, float]]]:
    """Return wall and processor seconds of each search, by kind."""
    peer = PeerContext("127.0.0.1")
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for number in range(-5, count):
        for kind, make in KINDS.items():
            population.change()
            begin, cpu = time.perf_counter(), time.thread_time()
            request = {"type": "search", **make(number)}
            encode_reply(await population.service.handle(request, peer))
            took = time.perf_counter() - begin, time.thread_time() - cpu
            # The first ones find nothing prepared.
            if number >= 0:
                found[kind].append(took)
    return found


async def _search_over_sockets(
    endpoint: tuple[str, int], count: int
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    async with raw_client(endpoint) as client:
        for number in range(count):
            for kind, make in KINDS.items():
                begin = time.perf_counter()
                await client.ask({"type": "search", **make(number)})
                found[kind].append(time.perf_counter() - begin)
    return found


def _rows(
    size: int, found: dict[str, list[tuple[float, float]]]
) -> list[tuple[Cell, ...]]:
    return [(size, kind, *_shares(times)) for kind, times in found.items()]


def _shares(times: list[tuple[float, float]]) -> tuple[float, ...]:
    walls, cpus = ([1e3 * each[at] for each in times] for at in (0, 1))
    return (
        percentile(walls, 0.5),
        percentile(walls, 0.99),
        percentile(cpus, 0.5),
        percentile(cpus, 0.99),
    )


def _target(size: int, found: dict[str, list[tuple[float, float]]]) -> Target:
    everything = [each for times in found.values() for each in times]
    return Target(
        key=f"search_p99_{GOALS[size]}_ms",
        what=f"search by tag, {size:,} agents, p99",
        unit="ms",
        value=_shares(everything)[1],
        official=None,
        method=f"wall clock, at the server: {len(everything)} searches of {len(KINDS)}"
        " kinds, each after a change",
    )


def _inside(rows: list[tuple[Cell, ...]], targets: tuple[Target, ...]) -> Table:
    columns = ("nodes", "search", "p50 ms", "p99 ms", "CPU p50 ms", "CPU p99 ms")
    note = (
        "From the decoded request to the encoded reply of 50 rows, in the process of"
        " the registry. Before each search a node comes, goes, or gets other tags."
        " CPU: of the same, without what other programs took. The official registry has"
        " no search."
    )
    return Table("Search, at the server", columns, rows, note, targets)


def _outside(found: dict[str, list[float]]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (SERVED, kind, percentile(ms, 0.5), percentile(ms, 0.99))
        for kind, times in found.items()
        if (ms := [1e3 * each for each in times])
    ]
    note = (
        "One request after the other on one connection to a pilot-rendezvous on SQLite;"
        " client, in Python, and server each a program of its own."
    )
    columns = ("nodes", "search", "p50 ms", "p99 ms")
    return Table("Search, over a connection", columns, rows, note)


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)
