"""A registry service in memory, and agents that talk to it, for tests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pilotfleet.protocol.identity import Identity
from pilotfleet.protocol.registry.signatures import SIGNED_TYPES, sign_request
from pilotfleet.registry.directory.directory import Directory
from pilotfleet.registry.service import PeerContext, RegistryService, ServiceConfig
from pilotfleet.registry.store.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pilotfleet.registry.store.base import Change, Store

ADMIN_TOKEN = "secret"
BEACON = "127.0.0.1:9001"
START = 1_795_355_487.0


class Hands:
    """Both clocks; moved by hand."""

    def __init__(self) -> None:
        self.time = START

    def now(self) -> float:
        """Return the monotonic time."""
        return self.time - START

    def wall(self) -> float:
        """Return the unix time."""
        return self.time


class Agent:
    """A node as its owner sees it."""

    def __init__(self, world: World, identity: Identity) -> None:
        self.world = world
        self.identity = identity
        self.node = 0

    async def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Send a request, signed if its type is."""
        fields.setdefault("node_id", self.node)
        request = {"type": kind, **fields}
        if kind in SIGNED_TYPES:
            request = sign_request(self.identity, request)
        return await self.world.handle(request)

    async def register(self, **fields: Any) -> dict[str, Any]:
        """Register and remember the node ID."""
        fields.setdefault("listen_addr", "203.0.113.5:4000")
        key = self.identity.public_key_text
        reply = await self.ask("register", public_key=key, **fields)
        self.node = reply.get("node_id", self.node)
        return reply


class World:
    """A service with its store, and whom it has notified."""

    def __init__(
        self, store: Store | None = None, *, clock: Hands | None = None, **config: Any
    ) -> None:
        self.store = store or MemoryStore()
        self.clock = clock or Hands()
        self.notified: list[int] = []
        self.directory = Directory()
        settings = {"admin_token": ADMIN_TOKEN, "beacon_addr": BEACON, **config}
        self.service = RegistryService(
            self.directory,
            self.store,
            config=ServiceConfig(**settings),
            clock=self.clock,
            notify=self.notified.append,
        )

    async def handle(
        self, request: dict[str, Any], peer: PeerContext | None = None
    ) -> dict[str, Any]:
        """Send a request over a new connection, or that of ``peer``."""
        peer = peer or PeerContext("198.51.100.7", port=40_000)
        return await self.service.handle(request, peer)

    async def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Send an unsigned request."""
        return await self.handle({"type": kind, **fields})

    async def admin(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Send a request with the admin token."""
        return await self.ask(kind, admin_token=ADMIN_TOKEN, **fields)

    async def agent(self, seed: int, **fields: Any) -> Agent:
        """Return an agent that has registered."""
        agent = self.stranger(seed)
        reply = await agent.register(**fields)
        assert reply["type"] == "register_ok", reply
        return agent

    async def agents(self, count: int) -> list[Agent]:
        """Return agents that have registered; the first is node 1."""
        return [await self.agent(seed) for seed in range(1, count + 1)]

    def stranger(self, seed: int) -> Agent:
        """Return an agent that has not registered."""
        return Agent(self, Identity(seed.to_bytes(32, "big")))

    async def reopened(self) -> World:
        """Return another service on the same store."""
        world = World(self.store, clock=self.clock)
        await world.service.load()
        return world


class GatedStore(MemoryStore):
    """A memory store whose writes wait until they are let through."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.writes = 0

    async def write(self, changes: Sequence[Change]) -> list[int]:
        """Wait for the gate, then write."""
        self.writes += 1
        await self.gate.wait()
        return await super().write(changes)


def error_of(reply: dict[str, Any]) -> str:
    """Return the error text of a reply that must be one."""
    assert reply["type"] == "error", reply
    text: str = reply["error"]
    return text
