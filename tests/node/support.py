"""Hosts against a real rendezvous in the same process."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pilotfleet.errors import PilotError
from pilotfleet.node.config import AgentSpec, HostConfig
from pilotfleet.node.host import Host
from pilotfleet.protocol.address import SocketAddress
from pilotfleet.registry.config import ServiceConfig
from pilotfleet.registry.rendezvous import Addresses, Rendezvous, RendezvousConfig
from pilotfleet.services.echo import ECHO_PORT, serve_echo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.stream import Stream
    from pilotfleet.protocol.address import Endpoint

__all__ = ["ADMIN_TOKEN", "World", "echo", "eventually", "open_world"]

ADMIN_TOKEN = "the-admin-token"
LOOPBACK: Endpoint = ("127.0.0.1", 0)


@dataclass
class World:
    """A folder, and a rendezvous that can be stopped and started."""

    folder: Path
    addresses: Addresses = field(
        default_factory=lambda: Addresses(LOOPBACK, LOOPBACK, None)
    )
    _rendezvous: Rendezvous | None = None

    async def start_rendezvous(self) -> None:
        """Start it, after the first time at the same ports again."""
        config = RendezvousConfig(
            registry=self.addresses.registry,
            beacon=self.addresses.beacon,
            store=f"sqlite:///{self.folder / 'registry.db'}",
            service=ServiceConfig(admin_token=ADMIN_TOKEN),
        )
        self._rendezvous = await Rendezvous(config).__aenter__()
        self.addresses = self._rendezvous.addresses

    async def stop_rendezvous(self, *, lose_everything: bool = False) -> None:
        """Stop it; what it stored stays, unless it is to be lost."""
        if self._rendezvous is not None:
            rendezvous, self._rendezvous = self._rendezvous, None
            await rendezvous.__aexit__(None, None, None)
        if lose_everything:
            for path in self.folder.glob("registry.db*"):
                path.unlink()

    def config(
        self, folder: str, *names: str, is_public: bool = True, **changes: Any
    ) -> HostConfig:
        """Return the configuration of a host with agents of these names."""
        home = self.folder / folder
        agents = tuple(
            AgentSpec(
                name=name,
                hostname=name,
                home=home / name,
                identity_path=home / name / "identity.json",
                is_public=is_public,
                listen=LOOPBACK,
            )
            for name in names
        )
        config = HostConfig(
            home=home,
            agents=agents,
            registry=self.addresses.registry,
            beacon=self.addresses.beacon,
            registry_attempts=1,
            discover_timeout_s=1.0,
        )
        return replace(config, **changes)

    def host(self, folder: str, *names: str, **changes: Any) -> Host:
        """Return a host with the echo service, not started."""
        host = Host(self.config(folder, *names, **changes))
        host.services[ECHO_PORT] = serve_echo
        return host


@contextlib.asynccontextmanager
async def open_world(folder: Path) -> AsyncIterator[World]:
    """Yield a world with a running rendezvous."""
    world = World(folder)
    await world.start_rendezvous()
    try:
        yield world
    finally:
        await world.stop_rendezvous()


async def echo(source: Agent, target: Agent, data: bytes = b"hello") -> bytes:
    """Send ``data`` to the echo port of ``target``; return what comes back."""
    async with await dial_echo(source, target) as stream:
        writing = asyncio.ensure_future(stream.write(data))
        try:
            return await stream.read_exactly(len(data))
        finally:
            await writing


async def dial_echo(source: Agent, target: Agent) -> Stream:
    """Open a stream to the echo port of ``target``."""
    remote = SocketAddress(target.address, ECHO_PORT)
    return await source.dial(remote, timeout=20)


async def eventually(
    is_true: Callable[[], object], *, what: str, limit_s: float = 20.0
) -> None:
    """Wait for something that nobody announces."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            while not is_true():  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0.01)
            return
    raise PilotError(f"it did not happen: {what}")
