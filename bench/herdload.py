"""A program that is many daemons to the registry: a connection for each agent.

``python -m bench.herdload HOST:PORT COUNT PREFIX KEEPALIVE_S`` says that it is ready
when all keys are there, waits for a line, and lets all agents start at that instant.
Each has the real ``RegistryClient`` and the rules of ``pilotfleet.client.pacing``. Then
it prints, twice a second, a JSON object of what happened so far. A further line on its
standard input begins a new count of who was heard; its end ends the program.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from typing import Any

import uvloop

from pilotfleet.client import pacing
from pilotfleet.client.links import LinkConfig
from pilotfleet.client.registry import RegistryClient
from pilotfleet.errors import PilotError, RegistryError
from pilotfleet.node.filelimit import require_open_files
from pilotfleet.protocol.identity import Identity
from pilotfleet.protocol.registry.endpoints import parse_endpoint

TAG = "herd"
REPORT_S = 0.5
ONE = LinkConfig(connections=1)


class Herd:
    """Agents, and what they have come to."""

    def __init__(self, registry: str, *, count: int, prefix: str, keepalive_s: float):
        self._endpoint = parse_endpoint(registry)
        self._names = [f"{prefix}{number}" for number in range(count)]
        self._identities = [Identity(random.randbytes(32)) for _ in range(count)]
        self._keepalive_s = keepalive_s
        self._rng = random.Random()
        self._start = asyncio.Event()
        self._heard: set[str] = set()
        self.up = 0
        self.failures: Counter[str] = Counter()
        """Requests that failed, by the name of the error."""
        self.answers: Counter[int] = Counter()
        """Replies, by unix second."""

    async def run(self) -> None:
        """Let the agents live until the standard input ends."""
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        agents = [asyncio.create_task(self._live(at)) for at in range(len(self._names))]
        tell({"ready": True})
        await reader.readline()
        self._start.set()
        reporter = asyncio.create_task(self._report())
        while await reader.readline():
            self._heard.clear()
        for task in (reporter, *agents):
            task.cancel()
        await asyncio.gather(reporter, *agents, return_exceptions=True)
        tell({"answers": dict(self.answers)})

    async def _report(self) -> None:
        while True:
            heard = len(self._heard)
            state = {"at": time.time(), "up": self.up, "heard": heard}
            failures = {"failures": self.failures.total(), "why": dict(self.failures)}
            tell({**state, **failures})
            await asyncio.sleep(REPORT_S)

    async def _live(self, at: int) -> None:
        name, identity = self._names[at], self._identities[at]
        await self._start.wait()
        async with RegistryClient(self._endpoint, config=ONE) as client:
            node, pause_s = 0, pacing.REGISTER_PAUSE_S
            while not node:
                try:
                    node = await self._register(client, name, identity)
                except PilotError as error:
                    self._failed(error)
                    wait, pause_s = pacing.register_pause_s(pause_s, self._rng)
                    await asyncio.sleep(wait)
            self.up += 1
            await asyncio.sleep(pacing.first_beat_s(self._keepalive_s, self._rng))
            await self._beat(client, name, identity, node)

    async def _register(
        self, client: RegistryClient, name: str, identity: Identity
    ) -> int:
        """Do what a daemon does at its start."""
        answer = await client.register(identity, "127.0.0.1:4000", hostname=name)
        node = answer.node_id
        known = await client.lookup(node)
        if not known.get("public"):
            await client.set_visibility(identity, node, public=True)
        if known.get("tags") != [TAG]:
            await client.set_tags(identity, node, [TAG])
        self._count(4)
        return node

    async def _beat(
        self, client: RegistryClient, name: str, identity: Identity, node: int
    ) -> None:
        pause_s, now = pacing.REGISTER_PAUSE_S, asyncio.get_running_loop().time
        while True:
            try:
                await client.heartbeat(identity, node)
                await client.poll_handshakes(identity, node)
            except RegistryError as error:
                self._failed(error)
                await self._register(client, name, identity)
            except PilotError as error:
                self._failed(error)
                wait, pause_s = pacing.register_pause_s(pause_s, self._rng)
                await asyncio.sleep(wait)
                continue
            self._count(2)
            self._heard.add(name)
            pause_s = pacing.REGISTER_PAUSE_S
            await asyncio.sleep(pacing.beat_due(now(), self._keepalive_s) - now())

    def _failed(self, error: PilotError) -> None:
        self.failures[type(error).__name__] += 1

    def _count(self, replies: int) -> None:
        self.answers[int(time.time())] += replies


def tell(state: dict[str, Any]) -> None:
    """Print a line for whoever has started this program."""
    print(json.dumps(state), flush=True)


async def _main(registry: str, count: str, prefix: str, keepalive_s: str) -> None:
    herd = Herd(
        registry, count=int(count), prefix=prefix, keepalive_s=float(keepalive_s)
    )
    await herd.run()


if __name__ == "__main__":
    require_open_files(int(sys.argv[2]) + 100)
    uvloop.run(_main(*sys.argv[1:5]))
