"""One process with 100 to 10,000 agents: start, memory, processor, files, tunnels."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.hosting import Snapshot, echo, open_tunnels, ring, say, start_host
from bench.processmemory import cpu_seconds, memory_of, open_files
from bench.report import Table, Target
from pilotfleet.client.daemon import DaemonClient
from pilotfleet.errors import TimedOut
from pilotfleet.protocol.address import Address
from tests.support.programs import world

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.options import Options
    from bench.processmemory import Memory
    from bench.report import Cell
    from tests.support.programs import Program, World

SIZES = (100, 1_000, 5_000, 10_000)
QUICK_SIZES = (10, 20, 30, 40)
IDLE_S = 62.0
"""One keepalive and a little: each agent sends its heartbeat once."""
TUNNELS = (0, 3, 10)
TUNNEL_AGENTS = 1_000
OFFICIAL_DAEMONS = 11
"""So that each has tunnels to ten others."""
OFFICIAL_ATTEMPTS = 3
OFFICIAL_PAUSE_S = 0.2
LINGER_S = 15.0
"""After that, closed streams are forgotten (10 s) and what they left is given back."""
METHOD = "/proc/PID: smaps_rollup, stat, fd"


@dataclass(frozen=True, slots=True)
class Idle:
    """A host that was idle for a whole keepalive."""

    agents: int
    start_s: float
    start_cpu_s: float
    memory: Memory
    files: int
    cpu_percent: float


@dataclass(frozen=True, slots=True)
class Official:
    """The mean of some official daemons, of one agent each."""

    start_s: float
    memory: Memory
    files: float
    cpu_percent: float
    with_tunnels: dict[int, Memory]


def measure(options: Options) -> list[Table]:
    """Measure hosts of all sizes, tunnels, and official daemons beside them."""
    sizes = QUICK_SIZES if options.quick else SIZES
    idle_s = 2.0 if options.quick else IDLE_S
    idles = [_idle(size, idle_s) for size in sizes]
    many = sizes[1] if options.quick else TUNNEL_AGENTS
    tunnels, official = _tunnels(many, idle_s)
    return [
        _growth(idles, official),
        _slopes(idles, official),
        _tunnel_table(many, tunnels, official, idle_kib=_slope_kib(idles)),
    ]


def _idle(agents: int, idle_s: float) -> Idle:
    with world() as net:
        net.start_rendezvous()
        host = start_host(net, agents)
        say(f"{agents:,} agents started in {host.start_s:.1f} s")
        # In the first one each agent signs its heartbeat, which then stays the same.
        time.sleep(idle_s)
        before = Snapshot.take(host.pid)
        time.sleep(idle_s)
        after = Snapshot.take(host.pid)
    return Idle(
        agents=agents,
        start_s=host.start_s,
        start_cpu_s=host.start_cpu_s,
        memory=after.memory,
        files=after.files,
        cpu_percent=after.cpu_percent_since(before),
    )


def _tunnels(agents: int, idle_s: float) -> tuple[dict[int, Memory], Official]:
    """Return the memory of a host by tunnels per agent, and official daemons."""
    with world() as net:
        net.start_rendezvous()
        host = start_host(net, agents)
        started = time.monotonic()
        names = [f"official-{number}" for number in range(OFFICIAL_DAEMONS)]
        daemons = [net.start_official_daemon(name, "-public") for name in names]
        start_s = (time.monotonic() - started) / len(daemons)
        pids = [daemon.process.pid for daemon in daemons]
        before = cpu_seconds(*pids)
        time.sleep(idle_s)
        cpu_s = cpu_seconds(*pids) - before
        ours = {0: memory_of(host.pid)}
        theirs = {0: _mean(daemons)}
        files = sum(map(open_files, pids)) / len(pids)
        for tunnels in TUNNELS[1:]:
            say(f"{tunnels} tunnels for each of {agents:,} agents")
            asyncio.run(open_tunnels(host, ring(list(host.addresses), tunnels)))
            circle = names[: tunnels + 1]
            asyncio.run(_official_mesh(net, circle))
            time.sleep(LINGER_S)
            ours[tunnels] = memory_of(host.pid)
            theirs[tunnels] = _mean(daemons[: tunnels + 1])
    return ours, Official(
        start_s=start_s,
        memory=theirs[0],
        files=files,
        cpu_percent=100 * cpu_s / idle_s / len(daemons),
        with_tunnels=theirs,
    )


async def _official_mesh(net: World, names: Sequence[str]) -> None:
    """Give each official daemon a tunnel to each of the others."""
    addresses = {
        name: Address.parse(
            json.loads(net.official_ctl(name, "info").stdout)["data"]["address"]
        )
        for name in names
    }
    for near, far in itertools.combinations(names, 2):
        async with await DaemonClient.connect(net.socket(near)) as client:
            for _ in range(OFFICIAL_ATTEMPTS):
                # They answer few key exchanges of one address in a second.
                await asyncio.sleep(OFFICIAL_PAUSE_S)
                with suppress(TimedOut):
                    await echo(client, addresses[far])
                    break
            else:
                raise RuntimeError(f"{near} does not reach {far}")


def _mean(programs: Sequence[Program]) -> Memory:
    total = memory_of(*(program.process.pid for program in programs))
    count = len(programs)
    return type(total)(total.rss // count, total.pss // count, total.uss // count)


def _growth(idles: Sequence[Idle], official: Official) -> Table:
    columns = (
        *("agents", "start s", "start CPU s", "RSS MiB", "PSS MiB", "private MiB"),
        *("RSS KiB per agent", "CPU % of a core", "CPU % per agent"),
        *("open files", "files per agent"),
    )
    rows: list[tuple[Cell, ...]] = [
        (
            *(idle.agents, idle.start_s, idle.start_cpu_s, *idle.memory.mib),
            *(idle.memory.kib_per(idle.agents)[0], idle.cpu_percent),
            *(idle.cpu_percent / idle.agents, idle.files, idle.files / idle.agents),
        )
        for idle in idles
    ]
    rows.append(
        (
            *("official, each", official.start_s, None, *official.memory.mib),
            *(official.memory.kib_per(1)[0], official.cpu_percent),
            *(official.cpu_percent, official.files, official.files),
        )
    )
    note = (
        "One `pilot-daemon --agents N` with new keys, against a `pilot-rendezvous` of"
        " its own, both on this machine. Start runs from the command until a search by"
        " tag finds all agents. Memory, processor and files are of the daemon, after"
        f" and during the second {IDLE_S:g} s without traffic ({METHOD}). Official"
        f" daemons: {OFFICIAL_DAEMONS}, started one after the other, in the same run."
    )
    by_size = {idle.agents: idle for idle in idles}
    return Table(
        "Idle agents in one process", columns, rows, note, _targets(by_size, official)
    )


def _targets(by_size: dict[int, Idle], official: Official) -> tuple[Target, ...]:
    if not {1_000, 10_000} <= by_size.keys():
        return ()
    small, large = by_size[1_000], by_size[10_000]
    grown = (large.memory - small.memory).kib_per(9_000)[0]
    theirs = official.memory.kib_per(1)[0]
    files = (large.files - small.files) / 9_000
    return (
        Target(
            *("memory_idle_slope_kib", "one more idle agent, 1,000 to 10,000", "KiB"),
            *(grown, theirs, "growth of RSS; official: RSS of a daemon"),
        ),
        Target(
            *("memory_idle_1000_kib", "idle agent of 1,000, host included", "KiB"),
            *(small.memory.kib_per(1_000)[0], theirs, "RSS of the process / 1,000"),
        ),
        Target(
            *("cpu_idle_percent", "processor of an idle agent, of a core", "%"),
            *(large.cpu_percent / 10_000, official.cpu_percent),
            f"10,000 agents, {IDLE_S:g} s of /proc/PID/stat",
        ),
        Target(
            *("files_idle", "open files of an idle agent", ""),
            *(files, official.files, "growth from 1,000 to 10,000 agents"),
        ),
        Target(
            *("start_1000_s", "1,000 agents registered and findable", "s"),
            *(small.start_s, None, "command until a search finds all; new keys"),
        ),
        Target(
            *("start_10000_s", "10,000 agents registered and findable", "s"),
            *(large.start_s, None, "command until a search finds all; new keys"),
        ),
    )


def _slopes(idles: Sequence[Idle], official: Official) -> Table:
    columns = (
        *("agents", "RSS KiB", "PSS KiB", "private KiB"),
        *("CPU % of a core", "files", "start ms", "start CPU ms"),
    )
    steps = [*itertools.pairwise(idles), (idles[1], idles[-1])]
    rows: list[tuple[Cell, ...]] = []
    for less, more in steps:
        count = more.agents - less.agents
        rows.append(
            (
                f"{less.agents:,} to {more.agents:,}",
                *(more.memory - less.memory).kib_per(count),
                (more.cpu_percent - less.cpu_percent) / count,
                (more.files - less.files) / count,
                1000 * (more.start_s - less.start_s) / count,
                1000 * (more.start_cpu_s - less.start_cpu_s) / count,
            )
        )
    rows.append(
        (
            *("official daemon", *official.memory.kib_per(1), official.cpu_percent),
            *(official.files, 1000 * official.start_s, None),
        )
    )
    note = "What each further agent costs, by the figures above."
    return Table("Slopes of one more idle agent", columns, rows, note)


def _slope_kib(idles: Sequence[Idle]) -> float:
    """Return the memory of one more idle agent, from 1,000 to 10,000 of them."""
    less, more = idles[1], idles[-1]
    return (more.memory - less.memory).kib_per(more.agents - less.agents)[0]


def _tunnel_table(
    agents: int, ours: dict[int, Memory], official: Official, *, idle_kib: float
) -> Table:
    columns = (
        *("tunnels per agent", "RSS KiB per agent", "PSS KiB", "private KiB"),
        *("RSS KiB of one more such agent", "RSS KiB per tunnel"),
        *("official RSS KiB", "official PSS KiB"),
    )
    grown = {
        tunnels: (memory - ours[0]).kib_per(agents)[0]
        for tunnels, memory in ours.items()
    }
    rows: list[tuple[Cell, ...]] = [
        (
            *(tunnels, *memory.kib_per(agents), idle_kib + grown[tunnels]),
            grown[tunnels] / tunnels if tunnels else None,
            *official.with_tunnels[tunnels].kib_per(1)[:2],
        )
        for tunnels, memory in ours.items()
    ]
    few, many = TUNNELS[1:]
    their_growth = official.with_tunnels[many] - official.with_tunnels[few]
    method = f"one more idle agent, and its tunnels in a host of {agents:,}; RSS"
    keys = {few: "memory_active3_kib", many: "memory_busy10_kib"}
    targets = (
        *(
            Target(
                *(key, f"agent with {tunnels} tunnels", "KiB"),
                idle_kib + grown[tunnels],
                official.with_tunnels[tunnels].kib_per(1)[0],
                method,
            )
            for tunnels, key in keys.items()
        ),
        Target(
            *("memory_tunnel_kib", "one idle tunnel, at one of its ends", "KiB"),
            (grown[many] - grown[few]) / (many - few),
            their_growth.kib_per(many - few)[0],
            f"growth of RSS from {few} to {many} tunnels per agent",
        ),
    )
    note = (
        f"{agents:,} agents in one process; each has opened a stream to the echo port"
        " of its neighbours and closed it, and their tunnels stay. Both ends of a"
        " tunnel are in the process, and each is counted. Measured"
        f" {LINGER_S:g} s after the last stream was closed. *One more such agent* is"
        " the slope of idle ones with what its tunnels add. Official daemons: a mesh"
        " of 4, then of 11."
    )
    return Table("Agents with tunnels", columns, rows, note, targets)
