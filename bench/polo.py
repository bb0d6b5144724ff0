"""What reputation costs: receipts at the registry, and tasks with and without them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import statistics
import sys
import time
from typing import TYPE_CHECKING

import uvloop

from bench.fleets import running, spec_of
from bench.processmemory import cpu_seconds
from bench.report import Table
from pilotfleet.client.registry import RegistryClient
from pilotfleet.protocol.identity import Identity
from pilotfleet.protocol.registry.endpoints import parse_endpoint
from pilotfleet.protocol.services.polo import reward
from pilotfleet.protocol.services.receipts import MAX_BATCH, Receipt
from tests.support.programs import world

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.fleets import Measured
    from bench.options import Options
    from bench.report import Cell
    from pilotfleet.protocol.services.receipts import SignedReceipt

RECEIPTS = 8_000
"""Of each run. The registry lets one address have 25,000 before it slows it down."""
AT_ONCE = (1, 4)
"""Messages under way."""
WORKERS = 200
TASKS = 3_000
REPEATS = 3


def measure(options: Options) -> list[Table]:
    """Measure the registry, then a fleet with polo and without."""
    print("  receipts at the registry", file=sys.stderr, flush=True)
    rows = [_registry(options.scaled(RECEIPTS), at_once) for at_once in AT_ONCE]
    return [_receipts(rows), _cost(options)]


def _registry(count: int, at_once: int) -> tuple[Cell, ...]:
    with world() as net:
        rendezvous = net.start_rendezvous()
        pid = rendezvous.process.pid
        wall_s, used_s = uvloop.run(_present(net.registry, pid, count, at_once))
    return at_once, count, count / wall_s, 1e6 * used_s / count


async def _present(
    registry: str, pid: int, count: int, at_once: int
) -> tuple[float, float]:
    """Have receipts counted; return the seconds and the registry's processor time."""
    submitter, worker = (Identity(os.urandom(32)) for _ in range(2))
    endpoint = parse_endpoint(registry)
    async with RegistryClient(endpoint, connections=at_once) as client:
        nodes = [
            (await client.register(identity, f"127.0.0.1:{port}")).node_id
            for port, identity in enumerate((submitter, worker), 40_000)
        ]
        made = [
            _receipt((nodes[0], submitter), (nodes[1], worker), f"task-{number}")
            for number in range(count)
        ]
        pieces = [made[at : at + MAX_BATCH] for at in range(0, count, MAX_BATCH)]
        before, started = cpu_seconds(pid), time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(at_once):
                group.create_task(_send(client, pieces[number::at_once]))
        return time.monotonic() - started, cpu_seconds(pid) - before


async def _send(
    client: RegistryClient, pieces: Sequence[Sequence[SignedReceipt]]
) -> None:
    for piece in pieces:
        for result in await client.polo_receipts(piece):
            if result["status"] != "counted":
                raise ValueError(f"a receipt was not counted: {result}")


def _receipt(
    submitter: tuple[int, Identity], worker: tuple[int, Identity], task: str
) -> SignedReceipt:
    unsigned = Receipt(
        task_id=task,
        submitter=submitter[0],
        worker=worker[0],
        digest=hashlib.sha256(task.encode()).hexdigest(),
        reward=reward(time_cpu_ms=0),
        idle_ms=0,
        staged_ms=0,
        cpu_ms=0,
        completed_at=int(time.time()),
    )
    return unsigned.with_signatures(
        submitter=unsigned.sign(submitter[1]), worker=unsigned.sign(worker[1])
    )


def _receipts(rows: list[tuple[Cell, ...]]) -> Table:
    columns = (
        *("messages under way", "receipts", "receipts/s"),
        "registry's CPU µs per receipt",
    )
    note = (
        f"Receipts signed beforehand, {MAX_BATCH} in a message; counted, and in SQLite,"
        " before each answer. Each takes two verified signatures. The official 1.18.0"
        " programs have no receipts."
    )
    return Table("Receipts at the registry", columns, rows, note)


def _cost(options: Options) -> Table:
    workers = 20 if options.quick else WORKERS
    found: dict[bool, list[Measured]] = {True: [], False: []}
    for number in range(1 if options.quick else REPEATS):
        # In turns: what else happens on the machine then happens to both.
        for polo in found:
            state = "on" if polo else "off"
            print(f"  polo {state}, run {number + 1}", file=sys.stderr, flush=True)
            tasks = options.scaled(TASKS)
            found[polo].append(uvloop.run(_batch(workers, tasks, polo=polo)))
    rows: list[tuple[Cell, ...]] = [
        (
            "on" if polo else "off",
            statistics.median(batch.per_s for batch in batches),
            min(batch.per_s for batch in batches),
            max(batch.per_s for batch in batches),
            statistics.median(batch.cpu_ms for batch in batches),
        )
        for polo, batches in found.items()
    ]
    note = (
        f"Hub and {workers} workers that call a Python function,"
        f" {options.scaled(TASKS)} tasks at once, tunnels made before; median of"
        f" {len(found[True])} fleets each, on and off in turns. CPU is that of all"
        " programs. Receipts that are delivered after the last result are not in it."
    )
    columns = ("polo", "tasks/s", "lowest", "highest", "CPU ms per task")
    return Table("Cost of receipts per task", columns, rows, note)


async def _batch(workers: int, tasks: int, *, polo: bool) -> Measured:
    work = {"call": "bench.work:echo"}
    spec = spec_of("hub-and-spoke", workers, work=work, polo=polo)
    async with running(spec) as fleet:
        await fleet.do(workers)
        return await fleet.do(tasks)
