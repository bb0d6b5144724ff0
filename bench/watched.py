"""Watches: how soon a change is told, and what a thousand of them cost."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import msgspec

from bench.fleets import percentile
from bench.processmemory import cpu_seconds
from bench.report import Table
from pilotfleet.client.registry import RegistryClient
from pilotfleet.protocol.identity import Identity
from pilotfleet.registry.context import PeerContext
from pilotfleet.registry.directory.search import Query
from pilotfleet.registry.directory.watches import Question, Watches
from tests.registry.support import raw_client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from bench.nodes import Population
    from bench.options import Options
    from bench.report import Cell
    from tests.registry.support import RawClient

    Ask = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

WATCHES = 1_000
QUESTIONS = tuple(f"tag-{number}" for number in range(80, 130))
"""Tags that some hundred of a million nodes have."""
CHANGES_PER_S = 100
LASTS_S = 8.0
LOOKS = 20
CHANGES_A_LOOK = 25
"""Those of a quarter of a second."""
PROBE_S = 0.001
CONNECTIONS = 100
REMOTE_CHANGES_PER_S = 20
CHANGERS = 20


class Deliveries:
    """When nodes changed, and when each watcher was told."""

    def __init__(self) -> None:
        self._changed: dict[int, float] = {}
        self.times_ms: list[float] = []

    def changed(self, node: int) -> None:
        """Note that a node gets another row now."""
        self._changed[node] = time.perf_counter()

    def told(self, reply: dict[str, Any]) -> None:
        """Note what a watcher is told now."""
        now = time.perf_counter()
        for row in (*reply["added"], *reply["changed"]):
            begin = self._changed.get(row["node_id"])
            if begin is not None:
                self.times_ms.append(1e3 * (now - begin))


async def follow(
    ask: Ask, tag: str, ready: Callable[[], None], told: Deliveries
) -> None:
    """Watch a tag until cancelled."""
    reply = await ask({"type": "watch", "tags": [tag], "wait_s": 60})
    is_ready = False
    while True:
        if not reply["more"] and not is_ready:
            is_ready = True
            ready()
        reply = await ask(
            {
                "type": "watch",
                "tags": [tag],
                "wait_s": 60,
                "watch": reply["watch"],
                "seq": reply["seq"],
            }
        )
        told.told(reply)


async def watch_tables(population: Population, options: Options) -> list[Table]:
    """Measure watches in this process."""
    return [await _waiting(population, options), _looks(population)]


async def _waiting(population: Population, options: Options) -> Table:
    told, rng = Deliveries(), random.Random(1)
    left = asyncio.Semaphore(0)

    async def ask(request: dict[str, Any]) -> dict[str, Any]:
        return await population.service.handle(request, PeerContext("127.0.0.1"))

    tasks = [
        asyncio.create_task(follow(ask, tag, left.release, told))
        for tag in itertools.islice(itertools.cycle(QUESTIONS), WATCHES)
    ]
    for _ in tasks:
        await left.acquire()
    begin, cpu, longest = time.perf_counter(), time.process_time(), 0.0
    busiest = 0.0
    lasts_s = LASTS_S / (4 if options.quick else 1)
    due = begin
    while (now := time.perf_counter()) < begin + lasts_s:
        if now >= due:
            node = rng.randint(1, population.size)
            tags = ("all", rng.choice(QUESTIONS))
            told.changed(node)
            population.put(
                msgspec.structs.replace(population.record(node), live=True, tags=tags)
            )
            due += 1 / CHANGES_PER_S
        busy = time.thread_time()
        await asyncio.sleep(PROBE_S)
        longest = max(longest, time.perf_counter() - now - PROBE_S)
        busiest = max(busiest, time.thread_time() - busy)
    used = time.process_time() - cpu
    kept = population.service.watch_stats.size_bytes
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await population.service.aclose()
    row: tuple[Cell, ...] = (
        *(population.size, WATCHES, len(told.times_ms) / lasts_s),
        *(percentile(told.times_ms, 0.5), percentile(told.times_ms, 0.99)),
        *(100 * used / lasts_s, 1e3 * longest, 1e3 * busiest, kept / 1e6),
    )
    columns = (
        *("nodes", "watches", "rows told/s", "change to answer p50 ms", "p99 ms"),
        *("CPU % of a core", "longest block ms", "of that CPU ms", "told sets MB"),
    )
    note = (
        f"{len(QUESTIONS)} questions, a tag each, {WATCHES // len(QUESTIONS)} watchers"
        f" each; {CHANGES_PER_S} nodes a second get another tag. In the process of the"
        " registry, without encoding and sockets; changes are gathered for up to"
        " 250 ms."
        " Longest block: what another task had to wait beyond its sleep of 1 ms; the"
        " longest of processor time is that of all work within such a sleep, without"
        " what other programs took."
    )
    return Table(f"1,000 watches, {population.size:,} nodes", columns, [row], note)


def _looks(population: Population) -> Table:
    """Measure the comparison alone, also of what would take long to be told first."""
    rows: list[tuple[Cell, ...]] = []
    kinds = {
        "one, of all nodes": ["all"],
        "one, of a popular tag": ["tag-0"],
        "50, of rarer tags": list(QUESTIONS),
    }
    for kind, tags in kinds.items():
        names = map(str, itertools.count())
        watches = Watches(population.directory, make_name=names.__next__)
        everyone = [
            watches.open(Question(Query((tag,), limit=0), limit=population.size), 0.0)
            for tag in itertools.islice(itertools.cycle(tags), WATCHES)
        ]
        told = watches.compare(everyone[0], population.size).total
        for watch in everyone:
            delta = watches.compare(watch, population.size)
            question = Question(watch.query, None, watch.name, delta.seq)
            watches.open(question, 0.0)
        times = [_look(population, watches, everyone) for _ in range(LOOKS)]
        rows.append((population.size, kind, told, percentile(times, 0.5), max(times)))
    note = (
        f"A look at {WATCHES} watches after {CHANGES_A_LOOK} changes, as it happens up"
        " to four times a second: finding what is new for each, without making rows."
        " Processor time; it is done in slices of 2 ms."
    )
    columns = ("nodes", "questions", "found by the first", "look p50 ms", "longest ms")
    return Table(
        f"A look at all watches, {population.size:,} nodes", columns, rows, note
    )


def _look(population: Population, watches: Watches, everyone: list[Any]) -> float:
    for _ in range(CHANGES_A_LOOK):
        population.change()
    begin = time.thread_time()
    deltas = [watches.compare(watch, 1000) for watch in everyone]
    took = time.thread_time() - begin
    for watch, delta in zip(everyone, deltas, strict=True):
        watches.open(Question(watch.query, None, watch.name, delta.seq), 0.0)
    return 1e3 * took


async def watch_over_sockets(
    endpoint: tuple[str, int], pid: int, options: Options
) -> Table:
    """Measure watches on connections to a rendezvous."""
    told, left = Deliveries(), asyncio.Semaphore(0)
    lasts_s = LASTS_S / (4 if options.quick else 1)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(RegistryClient(endpoint))
        changers = [await _changer(client, number) for number in range(CHANGERS)]
        connections = [
            await stack.enter_async_context(raw_client(endpoint))
            for _ in range(CONNECTIONS)
        ]
        tasks = [
            asyncio.create_task(follow(_asker(each), "bench", left.release, told))
            for each in connections
        ]
        for _ in tasks:
            await left.acquire()
        begin, cpu = time.perf_counter(), cpu_seconds(pid)
        for number in itertools.count():
            identity, node = changers[number % CHANGERS]
            told.changed(node)
            await client.set_tags(identity, node, ["bench", f"t{number}"])
            due = begin + (number + 1) / REMOTE_CHANGES_PER_S
            if due > begin + lasts_s:
                break
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        used = cpu_seconds(pid) - cpu
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    row: tuple[Cell, ...] = (
        *(CONNECTIONS, len(told.times_ms) / lasts_s),
        *(percentile(told.times_ms, 0.5), percentile(told.times_ms, 0.99)),
        100 * used / lasts_s,
    )
    note = (
        f"{REMOTE_CHANGES_PER_S} nodes a second set other tags, stored in SQLite before"
        " anybody is told; all watchers ask the same. A pilot-rendezvous with 10,000"
        " nodes; changes are gathered for up to 250 ms."
    )
    columns = (
        *("watching connections", "rows told/s", "change to answer p50 ms"),
        *("p99 ms", "rendezvous CPU % of a core"),
    )
    return Table("Watches over connections", columns, [row], note)


async def _changer(client: RegistryClient, number: int) -> tuple[Identity, int]:
    identity = Identity((1 << 200 | number).to_bytes(32, "big"))
    node = (await client.register(identity, f"127.0.0.1:{40_000 + number}")).node_id
    await client.set_visibility(identity, node, public=True)
    await client.set_tags(identity, node, ["bench"])
    return identity, node


def _asker(client: RawClient) -> Ask:
    async def ask(request: dict[str, Any]) -> dict[str, Any]:
        client.send(request)
        # No time limit: a watch waits for as long as it said.
        length = int.from_bytes(await client.reader.readexactly(4), "big")
        reply: dict[str, Any] = json.loads(await client.reader.readexactly(length))
        return reply

    return ask
