"""The tables of the simulator, and the runs that the benchmark suite makes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.report import Table
from bench.simulation.account import LOOPBACK_MSS
from bench.simulation.apart import simulate_apart
from bench.simulation.calibration import calibrate
from bench.simulation.figures import (
    REPLICAS,
    cpu_of,
    megabits,
    memory_mib,
    replica_of,
    search_ms,
)
from bench.simulation.options import RunOptions
from bench.simulation.realrun import measure_real, with_connections
from bench.simulation.sharedstore import with_shared_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.options import Options
    from bench.report import Cell
    from bench.simulation.costs import ServiceTimes
    from bench.simulation.world import Outcome

SCENARIOS = {
    "steady": RunOptions(duration_s=61),
    "steady, no batch": RunOptions(batch=False, duration_s=20),
    "churn 10 %/h": RunOptions(churn_per_h=0.1, duration_s=20),
    "restart": RunOptions(restart_at_s=5, duration_s=60),
    "cold start": RunOptions(cold=True, duration_s=60),
}
"""A second more than a keepalive, for all to be heard; parts of it do elsewhere."""
CHECKED = (1_000, 10_000)
SUITE = 100_000
"""The suite's size; runs of a million are asked for by name, each takes minutes."""
SLOPE = "memory of a further agent, KiB"
METHOD = (
    "Cores are seconds of processor time per second. *Answering* is measured around the"
    " real code; signatures, arrivals at sockets and commits are counted and multiplied"
    " with units that were measured on real ones. Mbit/s are the real frames with an"
    " estimate of TCP and IP headers. Search and recovery are in virtual time, behind a"
    " queue with the table of service times. Memory: directory, remembered signatures"
    " and the beacon's table as measured here, and connections times a measured unit;"
    " what an empty process has comes on top."
)


def measure(options: Options) -> list[Table]:
    """Simulate the scenarios at the suite's sizes, and check two with real programs."""
    times = asyncio.run(calibrate())
    times = with_shared_store(with_connections(times))
    if options.quick:
        return _measure(500, times, quick=True)
    tables = _measure(SUITE, times, quick=False)
    return [check_table(CHECKED, times), *tables]


def check_table(sizes: Sequence[int], times: ServiceTimes) -> Table:
    """Return a simulated idle minute beside the same with real programs."""
    rows: list[tuple[Cell, ...]] = []
    memory: list[tuple[float, float]] = []
    for size, real in zip(sizes, measure_real(sizes), strict=True):
        # A real fleet has no watchers here, and asks for its networks later.
        wanted = RunOptions(
            agents=size, searches_per_s=0, refreshes=False, watchers=False
        )
        run = simulate_apart(wanted, times)
        carried = sum(run.account.wire_bytes(mss=LOOPBACK_MSS))
        pairs = (
            (
                "processor, % of a core",
                100 * cpu_of(run, times).total,
                100 * real.cpu_s / real.seconds,
            ),
            ("bytes/s, both ways", carried / run.virtual_s, real.bytes_per_s),
        )
        rows += [(size, name, ours, his, ours / his) for name, ours, his in pairs]
        memory.append((1024 * (memory_mib(run, times) or 0), real.memory_bytes / 1024))
    (few, few_real), (many, many_real) = memory[0], memory[-1]
    more = sizes[-1] - sizes[0]
    ours, his = (many - few) / more, (many_real - few_real) / more
    rows.append((f"{sizes[0]:,} to {sizes[-1]:,}", SLOPE, ours, his, ours / his))
    columns = ("agents", "figure", "simulated", "real", "simulated / real")
    note = (
        "Real: pilot-rendezvous (SQLite) and pilot-daemon hosts of 1,000 agents in a"
        " network namespace, an idle minute after the first keepalive; processor time"
        " of the rendezvous from /proc/PID/stat, bytes on loopback, growth"
        " of private memory since before the agents came."
    )
    return Table("Simulated and real", columns, rows, note)


def _measure(size: int, times: ServiceTimes, *, quick: bool) -> list[Table]:
    runs: list[tuple[str, Outcome]] = []
    for name, scenario in SCENARIOS.items():
        wanted = replace(scenario, agents=size, per_host=min(1_000, size // 5))
        if quick:
            wanted = replace(wanted, duration_s=5, keepalive_s=10)
        runs.append((name, simulate_apart(wanted, times)))
    return tables_of(runs, times)


def tables_of(runs: Sequence[tuple[str, Outcome]], times: ServiceTimes) -> list[Table]:
    """Return the tables of some runs."""
    steady = next((run for name, run in runs if name == "steady"), None)
    more = [] if steady is None else [replica_table(steady, times)]
    return [needs_table(runs, times), recovery_table(runs), *more, times_table(times)]


def needs_table(runs: Sequence[tuple[str, Outcome]], times: ServiceTimes) -> Table:
    """Return what one process needs."""
    rows: list[tuple[Cell, ...]] = []
    for name, run in runs:
        cpu = cpu_of(run, times)
        mbit_in, mbit_out = megabits(run)
        requests = sum(run.account.requests.values()) / run.virtual_s
        row = (run.options.agents, name, round(run.virtual_s, 1), requests, run.heard)
        answering = cpu.answering + cpu.maintenance
        parts = (answering, cpu.watching, cpu.waking, cpu.verifying)
        memory = memory_mib(run, times)
        figures = (cpu.storing, cpu.total, memory, mbit_in, mbit_out)
        rows.append((*row, *parts, *figures))
    columns = (
        *("agents", "scenario", "virtual s", "requests/s", "heard"),
        *(
            "answering, cores",
            "watches, cores",
            "arrivals, cores",
            "signatures, cores",
            "store, cores",
            "all, cores",
        ),
        *("memory, MiB", "in, Mbit/s", "out, Mbit/s"),
    )
    return Table("What one rendezvous process needs", columns, rows, METHOD)


def recovery_table(runs: Sequence[tuple[str, Outcome]]) -> Table:
    """Return how users fare meanwhile, and how long it takes to be whole again."""
    rows: list[tuple[Cell, ...]] = []
    for name, run in runs:
        account = run.account
        waits = account.waits
        mean = sum(k * n for k, n in waits.items()) / max(1, waits.total())
        recovered = run.all_up_s if run.options.cold else run.recovered_s
        rows.append(
            (
                *(run.options.agents, name, search_ms(run, 0.5), search_ms(run, 0.99)),
                *(account.failed_searches, recovered),
                max(account.arrivals.values(), default=0),
                max(account.dials.values(), default=0),
                *(waits.total(), mean if waits else None),
            )
        )
    columns = (
        *("agents", "scenario", "search p50, ms", "search p99, ms"),
        *("searches lost", "all up or heard again, s", "most requests in a second"),
        *("most dials in a second", "times put off", "mean pause then, s"),
    )
    return Table("How the fleet fares", columns, rows)


def replica_table(run: Outcome, times: ServiceTimes) -> Table:
    """Return what each of N replicas needs: a model."""
    rows: list[tuple[Cell, ...]] = []
    for count in REPLICAS:
        one = replica_of(run, times, count)
        rows.append((count, one.cores, one.mib, one.mbit_in, one.mbit_out))
    columns = (
        *("replicas", "cores each", "MiB each"),
        *("in, Mbit/s each", "out, Mbit/s each"),
    )
    note = (
        "One has SQLite. Several are calculated from the run of one, on a store that"
        " they share (NATS): each answers an N-th of the requests, keeps the whole"
        " directory, remembers the signatures and addresses of its own clients, writes"
        f" its changes ({times.share:.1f} µs), receives all ({times.follow:.1f} µs) and"
        f" applies those of others: {times.apply:.1f} µs an entry,"
        f" {times.apply_seen:.0f} µs for 256 last-seen times. These times are measured,"
        " the bytes of the store are estimates, what NATS itself needs is not in it."
        " No replicas were run. A process has one event loop: with more than a core"
        " each, there are too few of them."
    )
    title = f"Replicas for {run.options.agents:,} agents, steady (calculated)"
    return Table(title, columns, rows, note)


def times_table(times: ServiceTimes) -> Table:
    """Return the table of service times that the virtual queue has used."""
    rows: list[tuple[Cell, ...]] = [
        (kind, times.alone.get(kind), times.batched.get(kind))
        for kind in sorted(times.alone.keys() | times.batched.keys())
    ]
    rows += [
        ("a signature, not remembered", times.verify, times.verify),
        ("a change in SQLite", times.store, times.store),
        ("an arrival at a connection", times.wake, times.wake),
        ("a row in an answer to a watcher", times.row, None),
        ("a watch of a team that is compared", times.compare, None),
        ("the same, per 1,000 nodes in the directory", times.compare_more, None),
        ("a change in NATS", times.share, None),
        ("an entry that NATS brings", times.follow, None),
        ("an entry of another replica", times.apply, None),
        ("256 last-seen times of another replica", times.apply_seen, None),
    ]
    columns = ("request", "alone, µs", "in a batch, µs")
    return Table("Service times, measured before the runs", columns, rows)
