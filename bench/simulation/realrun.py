"""The same with real programs, to check the simulator against.

``python -m bench.simulation.realrun AGENTS...`` prints what one rendezvous and hosts of
1,000 agents did in one idle minute, at each size: the fleet grows from one to the next.
It has to run in a network namespace of its own (``tests.support.isolated``), where the
loopback interface counts nobody else's bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.hosting import TAG, count_by_tag
from bench.machine import ROOT
from bench.processmemory import cpu_seconds, memory_of
from bench.simulation.costs import US
from pilotfleet.client.links import LinkConfig
from pilotfleet.client.registry import RegistryClient
from pilotfleet.protocol.identity import Identity
from pilotfleet.protocol.registry.endpoints import parse_endpoint
from tests.support.programs import world

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.simulation.costs import ServiceTimes

PER_HOST = 1_000
KEEPALIVE_S = 60.0
SETTLE_S = 5.0
WAKES = 4_000
CONNECTIONS = 200
ONE = LinkConfig(connections=1)


@dataclass(frozen=True, slots=True)
class RealRun:
    """What a real rendezvous needed in one keepalive of an idle fleet."""

    agents: int
    seconds: float
    cpu_s: float
    bytes_per_s: float
    """On the loopback interface, both ways together."""
    memory_bytes: int
    """Private memory of the rendezvous, above what it had without agents."""


def measure_real(sizes: Sequence[int]) -> list[RealRun]:
    """Start real programs in a namespace of their own, and measure."""
    if os.geteuid():
        raise PermissionError("the check against real runs needs root, for a namespace")
    command = (*("-m", "tests.support.isolated", sys.executable), "-m", __name__)
    done = subprocess.run(
        [sys.executable, *command, *map(str, sizes)],
        cwd=Path(ROOT),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [RealRun(**row) for row in json.loads(done.stdout.splitlines()[-1])]


def with_connections(times: ServiceTimes) -> ServiceTimes:
    """Return the table with what a real rendezvous needs for its connections.

    An arrival: one client asks for one node, waits for the answer, and asks again;
    what is above the request itself. Memory: some hundred that have asked and wait.
    """
    with world() as net:
        rendezvous = net.start_rendezvous("memory:")
        pid = rendezvous.process.pid
        before = cpu_seconds(pid)
        asyncio.run(_ask(net.registry, times=WAKES))
        spent = cpu_seconds(pid) - before
        held = asyncio.run(_connect(net.registry, pid))
    wake = max(0.0, spent / WAKES / US - times.alone["lookup"])
    return replace(times, wake=wake, connection_bytes=held)


async def _ask(registry: str, *, times: int) -> None:
    async with RegistryClient(parse_endpoint(registry), config=ONE) as client:
        answer = await client.register(Identity(bytes(32)), "127.0.0.1:4000")
        for _ in range(times):
            await client.lookup(answer.node_id)


async def _connect(registry: str, pid: int) -> float:
    async with contextlib.AsyncExitStack() as stack:
        # The first ones fill what is left of memory that was freed.
        for _ in range(CONNECTIONS):
            await _open(registry, stack)
        before = memory_of(pid).uss
        for _ in range(CONNECTIONS):
            await _open(registry, stack)
        return (memory_of(pid).uss - before) / CONNECTIONS


async def _open(registry: str, stack: contextlib.AsyncExitStack) -> None:
    client = RegistryClient(parse_endpoint(registry), config=ONE)
    await stack.enter_async_context(client)
    await client.lookup(1)


def _run(sizes: Sequence[int]) -> Iterator[RealRun]:
    with world() as net:
        rendezvous = net.start_rendezvous()
        pid = rendezvous.process.pid
        empty = memory_of(pid).uss
        hosts = 0
        for agents in sizes:
            while hosts * PER_HOST < agents:
                name = f"host-{hosts}"
                share = str(min(agents - hosts * PER_HOST, PER_HOST))
                flags = ("--agents", share, "--agent-prefix", f"{name}-", "--tag", TAG)
                net.start_daemon(name, "--public", *flags)
                hosts += 1
            # Every signature is verified once in the first keepalive.
            time.sleep(KEEPALIVE_S + SETTLE_S)
            cpu_s, count, began = cpu_seconds(pid), _loopback_bytes(), time.monotonic()
            time.sleep(KEEPALIVE_S)
            seconds = time.monotonic() - began
            spent, carried = cpu_seconds(pid) - cpu_s, _loopback_bytes() - count
            memory = memory_of(pid).uss - empty
            if asyncio.run(count_by_tag(net)) != agents:
                raise RuntimeError("agents are missing")
            yield RealRun(agents, seconds, spent, carried / seconds, memory)


def _loopback_bytes() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "lo":
            return int(counts.split()[0])
    raise RuntimeError("there is no loopback interface")


if __name__ == "__main__":
    print(json.dumps([asdict(run) for run in _run(list(map(int, sys.argv[1:])))]))
