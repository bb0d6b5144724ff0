"""A daemon in one, two and four processes: start, processor time and memory."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from bench.processmemory import cpu_seconds, memory_of, tree_of
from bench.report import Table
from tests.support.programs import BIN, world

if TYPE_CHECKING:
    from bench.options import Options
    from bench.report import Cell
    from tests.support.programs import World

AGENTS = 5_000
COUNTS = (1, 2, 4)
IDLE_S = 30
START_S = 900.0

COLUMNS = (
    "processes",
    "agents",
    "start s",
    "CPU of the start s",
    "idle CPU % of a core",
    "RSS MiB",
    "PSS MiB",
    "private MiB",
)
NOTE = (
    "`pilot-daemon --agents N --processes K` against a rendezvous of its own, with new"
    " identities. Start: from the command to its ready file. CPU: user and system time"
    f" of the daemon's processes from /proc/PID/stat; idle: over {IDLE_S} s after the"
    " start. Memory: /proc/PID/smaps_rollup of all its processes together, after that."
)


def measure(options: Options) -> list[Table]:
    """Return the table of figures over the number of processes."""
    title = "one daemon in several processes"
    return [Table(title, COLUMNS, rows(options), NOTE)]


def rows(options: Options) -> list[tuple[Cell, ...]]:
    """Return a row for each number of processes."""
    agents = options.scaled(AGENTS)
    return [_measure(count, agents, options.scaled(IDLE_S)) for count in COUNTS]


def _measure(count: int, agents: int, idle_s: float) -> tuple[Cell, ...]:
    with world() as net:
        net.start_rendezvous()
        started = time.monotonic()
        pid = _start(net, count, agents, started)
        start_s = time.monotonic() - started
        pids = tree_of(pid)
        start_cpu = cpu_seconds(*pids)
        time.sleep(idle_s)
        idle = 100 * (cpu_seconds(*pids) - start_cpu) / idle_s
        return (count, agents, start_s, start_cpu, idle, *memory_of(*pids).mib)


def _start(net: World, count: int, agents: int, started: float) -> int:
    """Start a daemon and wait until all its agents are registered.

    Raises:
        RuntimeError: It does not come up, or some agents do not.
    """
    ready = net.home / "ready.json"
    program = net.start(
        "daemon",
        BIN / "pilot-daemon",
        *("--registry", net.registry, "--beacon", net.beacon),
        *("--listen", "127.0.0.1:0", "--socket", net.socket("daemon")),
        *("--home", net.home / "daemon", "--ready-file", ready),
        *("--agents", agents, "--processes", count, "--tag", "bench"),
    )
    while not ready.exists():
        if program.process.poll() is not None:
            raise RuntimeError(f"the daemon ended: {program.log.read_text()[-2000:]}")
        if time.monotonic() - started > START_S:
            raise RuntimeError(f"not ready after {START_S:g} s")
        time.sleep(0.05)
    registered = json.loads(ready.read_text())["agents"]
    if registered != agents:
        raise RuntimeError(f"{registered} of {agents} agents are registered")
    return program.process.pid
