"""Daemons under measurement: one process with many agents, and official ones."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.processmemory import cpu_seconds, memory_of, open_files
from pilotfleet.client.daemon import DaemonClient
from pilotfleet.client.registry import RegistryClient
from pilotfleet.protocol.address import Address
from pilotfleet.protocol.registry.endpoints import parse_endpoint
from tests.support.programs import BIN

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from bench.processmemory import Memory
    from tests.support.programs import Program, World

TAG = "bench"
ECHO_PORT = 7
START_LIMIT_S = 600.0
POLL_S = 0.02
DIAL_S = 30.0
PARALLEL_DIALS = 8


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a process has at one moment."""

    at: float
    """Seconds of the monotonic clock."""
    memory: Memory
    files: int
    cpu_s: float

    @classmethod
    def take(cls, pid: int) -> Snapshot:
        """Look at a process now."""
        return cls(time.monotonic(), memory_of(pid), open_files(pid), cpu_seconds(pid))

    def cpu_percent_since(self, earlier: Snapshot) -> float:
        """Return the share of one core that was used since then."""
        return 100 * (self.cpu_s - earlier.cpu_s) / (self.at - earlier.at)


@dataclass(frozen=True, slots=True)
class HostUnderTest:
    """A daemon with many agents, all of them registered and found by their tag."""

    program: Program
    socket: Path
    start_s: float
    """From the command until a search by tag finds all of them."""
    start_cpu_s: float
    addresses: dict[str, Address]

    @property
    def pid(self) -> int:
        """The daemon's process."""
        return self.program.process.pid


def start_host(
    net: World, agents: int, *flags: str, name: str = "many"
) -> HostUnderTest:
    """Start a daemon with so many public agents, and wait until all are found.

    Raises:
        RuntimeError: It ended, was too slow, or agents are missing.
    """
    ready = net.home / f"{name}.ready.json"
    started = time.monotonic()
    program = net.start(
        name,
        BIN / "pilot-daemon",
        *("--registry", net.registry, "--beacon", net.beacon, "--public"),
        *("--listen", "127.0.0.1:0", "--socket", net.socket(name)),
        *("--home", net.home / name, "--ready-file", ready),
        *("--agents", agents, "--agent-prefix", f"{name}-", "--tag", TAG, *flags),
    )
    while not ready.exists():
        late = time.monotonic() - started > START_LIMIT_S
        if late or program.process.poll() is not None:
            raise RuntimeError(f"the host did not start: {program.log.read_text()}")
        time.sleep(POLL_S)
    found = asyncio.run(count_by_tag(net))
    start_s = time.monotonic() - started
    if found != agents:
        raise RuntimeError(f"a search finds {found} of {agents} agents")
    addresses = json.loads(ready.read_text())["addresses"]
    return HostUnderTest(
        program=program,
        socket=net.socket(name),
        start_s=start_s,
        start_cpu_s=cpu_seconds(program.process.pid),
        addresses={name: Address.parse(text) for name, text in addresses.items()},
    )


async def count_by_tag(net: World) -> int:
    """Return how many agents a search finds by the tag of those of `start_host`."""
    async with RegistryClient(parse_endpoint(net.registry)) as registry:
        return int((await registry.search(tags=[TAG], limit=1))["total"])


async def open_tunnels(host: HostUnderTest, pairs: Iterable[tuple[str, str]]) -> None:
    """Have the first agent of each pair talk to the second, through a tunnel."""
    waiting = iter(list(pairs))

    async def work() -> None:
        for near, far in waiting:
            async with await DaemonClient.connect(host.socket) as client:
                await client.call("select-agent", name=near)
                await echo(client, host.addresses[far])

    async with asyncio.timeout(START_LIMIT_S), asyncio.TaskGroup() as group:
        for _ in range(PARALLEL_DIALS):
            group.create_task(work())


async def echo(client: DaemonClient, target: Address, data: bytes = b"hello") -> None:
    """Send data to the echo port of an agent, and check what comes back.

    Raises:
        ValueError: It is something else.
    """
    stream = await client.dial(target, ECHO_PORT, timeout=DIAL_S)
    async with asyncio.timeout(DIAL_S), asyncio.TaskGroup() as group:
        group.create_task(stream.write(data))
        answer = await stream.read_exactly(len(data))
    await stream.close()
    if answer != data:
        raise ValueError(f"the echo of {target} is not what was sent")


def ring(names: list[str], tunnels: int) -> list[tuple[str, str]]:
    """Return pairs of agents by which each of them gets so many tunnels.

    Each tunnel has an end at two agents. With an odd number, the last one of each
    agent goes across the ring, so there must be an even number of agents.
    """
    count = len(names)
    pairs = [
        (near, names[(at + step) % count])
        for at, near in enumerate(names)
        for step in range(1, tunnels // 2 + 1)
    ]
    if tunnels % 2:
        half = count // 2
        pairs += zip(names[:half], names[half:], strict=True)
    return pairs


def say(text: str) -> None:
    """Tell who waits how far it is."""
    print(f"  {text}", file=sys.stderr, flush=True)
