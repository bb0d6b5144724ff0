"""What requests, nodes and connections cost a registry.

A real ``pilot-rendezvous``, and a load generator in a process of its own, so that on
two cores each can have one. A rate is what was served by the wall clock: the goals are
about that. Beside it stands the processor time of both programs for each request. That
of the rendezvous hardly changes when other programs run; that of the generator shows
whether the rendezvous had to wait for it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.processmemory import KIB, memory_of
from bench.report import Table, Target
from pilotfleet.protocol.registry.endpoints import parse_endpoint
from tests.support.programs import world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.options import Options
    from bench.report import Cell

AGENTS = 10_000
REQUESTS = 100_000
ROUNDS = 20
"""Heartbeats of all agents."""
CONNECTIONS = 5_000
NODES = (10_000, 100_000)
"""Between these the memory of a plain node is measured."""
DESCRIBED = (5_000, 25_000)
"""The same for nodes with a name, tags and remembered signatures."""
NO_LIMIT = ("--requests-per-ip", 0)
"""All requests come from one address, faster than one address may send."""


@dataclass
class Registry:
    """A rendezvous and the program that asks it."""

    pid: int
    load: subprocess.Popen[str]

    def do(self, order: str, **arguments: Any) -> dict[str, Any]:
        """Have the load generator do something; return its figures."""
        assert self.load.stdin is not None
        assert self.load.stdout is not None
        self.load.stdin.write(json.dumps({"do": order, **arguments}) + "\n")
        self.load.stdin.flush()
        answer = self.load.stdout.readline()
        if not answer:
            raise RuntimeError(f"the load generator has ended during {order}")
        figures: dict[str, Any] = json.loads(answer)
        return figures

    def rss(self) -> int:
        """Return the memory of the rendezvous."""
        return memory_of(self.pid).rss


def measure(options: Options) -> list[Table]:
    """Measure rates, memory of nodes and memory of connections."""
    rates = _rates(options)
    memory = [
        _connections(options),
        _nodes(options, NODES, is_described=False),
        _nodes(options, DESCRIBED, is_described=True),
    ]
    return [_rate_table(rates), _memory_table(memory)]


@contextmanager
def _running(store: str | None = None) -> Iterator[Registry]:
    with world() as net:
        rendezvous = net.start_rendezvous(store, *NO_LIMIT)
        pid = rendezvous.process.pid
        host, port = parse_endpoint(net.registry)
        command = [sys.executable, "-m", "bench.registryload", pid, host, port]
        with subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as load:
            try:
                yield Registry(pid, load)
            finally:
                assert load.stdin is not None
                load.stdin.close()
                load.wait()


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast something was."""

    key: str
    """Of the goal, or empty."""
    what: str
    figures: dict[str, Any]

    @property
    def per_s(self) -> float:
        """How many were served in a second, by the wall clock."""
        return float(self.figures["count"] / self.figures["wall_s"])

    @property
    def cpu_us(self) -> float:
        """Processor time of the rendezvous for one."""
        return float(1e6 * self.figures["cpu_s"] / self.figures["count"])

    @property
    def row(self) -> tuple[Cell, ...]:
        """For the table."""
        count, load_s = self.figures["count"], self.figures["load_cpu_s"]
        return self.what, count, self.per_s, self.cpu_us, 1e6 * load_s / count

    @property
    def target(self) -> Target:
        """What is held against the goal."""
        method = f"wall clock; {self.cpu_us:.3g} µs of the registry's CPU each"
        return Target(self.key, self.what, "/s", self.per_s, None, method)


def _rates(options: Options) -> list[Rate]:
    agents, requests = options.scaled(AGENTS), options.scaled(REQUESTS)
    with _running() as registry:
        _say("first registrations")
        alone = registry.do("register", count=agents, signed=True, batched=False)
        together = registry.do("register", count=agents, signed=True, batched=True)
        _say("lookups and heartbeats")
        lookups = registry.do("lookup", count=requests)
        first = registry.do("beat_all", rounds=1)
        again = registry.do("beat", count=requests)
        many = registry.do("beat_all", rounds=options.scaled(ROUNDS))
    return [
        Rate("first_registrations_per_s", "first registrations", alone),
        Rate("", "first registrations, in batches", together),
        Rate("lookups_per_s", "lookups", lookups),
        Rate("", "first heartbeats, in batches", first),
        Rate("heartbeats_per_s", "repeated heartbeats", again),
        Rate("batch_heartbeats_per_s", "repeated heartbeats, in batches", many),
    ]


@dataclass(frozen=True, slots=True)
class Growth:
    """What some more of a thing have added to the memory."""

    key: str
    """Of the goal, or empty."""
    what: str
    before: int
    after: int
    added_bytes: int

    @property
    def kib(self) -> float:
        """Memory of one."""
        return self.added_bytes / (self.after - self.before) / KIB


def _connections(options: Options) -> Growth:
    _say("idle connections")
    count = options.scaled(CONNECTIONS)
    with _running("memory:") as registry:
        registry.do("register", count=1, signed=True, batched=False)
        # What the first ones need is there for all.
        registry.do("idle", count=100)
        before = registry.rss()
        registry.do("idle", count=count)
        added = registry.rss() - before
    return Growth("connection_kib", "idle connection", 100, 100 + count, added)


def _nodes(options: Options, sizes: tuple[int, int], *, is_described: bool) -> Growth:
    few, many = map(options.scaled, sizes)
    what = "node with name, tags and heartbeat" if is_described else "node"
    _say(f"{what}, {few:,} to {many:,}")
    with _running() as registry:
        _fill(registry, few, is_described=is_described)
        before = registry.rss()
        _fill(registry, many - few, is_described=is_described)
        added = registry.rss() - before
    key = "node_kib" if is_described else ""
    return Growth(key, what, few, many, added)


def _fill(registry: Registry, count: int, *, is_described: bool) -> None:
    registry.do("register", count=count, signed=is_described, batched=True)
    if is_described:
        registry.do("describe")


def _rate_table(rates: list[Rate]) -> Table:
    columns = (
        *("requests", "count", "per second", "registry's CPU µs each"),
        "load generator's CPU µs each",
    )
    note = (
        "Four connections, 64 requests out on each, batches of 500; SQLite with full"
        " sync. Signed beforehand. Registrations are of keys that were never there, so"
        " each costs a verification and a commit; a repeated heartbeat has the"
        " signature of the one before. Rates are by the wall clock, over loopback, and"
        " lower bounds: the load generator and whatever else runs share the machine's"
        " cores. The registry's CPU is that of all its threads. No official registry is"
        " public."
    )
    targets = [rate.target for rate in rates if rate.key]
    rows = [rate.row for rate in rates]
    return Table("Requests at the registry", columns, rows, note, tuple(targets))


def _memory_table(grown: list[Growth]) -> Table:
    columns = ("what", "from", "to", "KiB each")
    note = (
        "Growth of the resident memory of a rendezvous. A connection has sent a request"
        " and had its reply. Store SQLite for nodes; its page cache is in it."
    )
    targets = [
        Target(g.key, g.what, "KiB", g.kib, None, f"growth of RSS by one {g.what}")
        for g in grown
        if g.key
    ]
    rows: list[tuple[Cell, ...]] = [(g.what, g.before, g.after, g.kib) for g in grown]
    return Table("Memory of the registry", columns, rows, note, tuple(targets))


def _say(what: str) -> None:
    print(f"  {what}", file=sys.stderr, flush=True)
