"""A rendezvous with its dashboard, filled without a socket."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from pilotfleet.client.registry import RegistryClient
from pilotfleet.protocol.identity import Identity
from pilotfleet.registry.dashboard.config import DashboardConfig
from pilotfleet.registry.rendezvous import Rendezvous, RendezvousConfig
from pilotfleet.registry.service import ServiceConfig
from tests.support.http import LOOPBACK, Answer, fetch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

__all__ = ["Shown", "shown"]

ADMIN = "admin"
FAST = DashboardConfig(requests_per_second=100_000, burst=100_000)


class Shown:
    """A running rendezvous, and hands to change what it shows."""

    def __init__(self, rendezvous: Rendezvous, client: RegistryClient) -> None:
        self.rendezvous = rendezvous
        self.client = client

    @property
    def url(self) -> str:
        http = self.rendezvous.addresses.http
        assert http is not None
        return f"http://{http[0]}:{http[1]}"

    async def add(
        self,
        number: int,
        *,
        public: bool = True,
        tags: Sequence[str] = (),
        name: str = "",
        polo: int = 0,
    ) -> int:
        """Register an agent; return its ID."""
        identity = Identity(number.to_bytes(32, "big"))
        made = await self.client.register(identity, f"127.0.0.1:{10_000 + number}")
        node = made.node_id
        if name:
            await self.client.set_hostname(identity, node, name)
        if tags:
            await self.client.set_tags(identity, node, list(tags))
        if polo:
            message = {"type": "set_polo_score", "node_id": node, "polo_score": polo}
            await self.client.request({**message, "admin_token": ADMIN})
        await self.client.set_visibility(identity, node, public=public)
        return node

    async def hide(self, number: int, node: int) -> None:
        """Make an agent private."""
        identity = Identity(number.to_bytes(32, "big"))
        await self.client.set_visibility(identity, node, public=False)

    async def get(self, path: str, **settings: Any) -> Answer:
        """Fetch a page."""
        http = self.rendezvous.addresses.http
        assert http is not None
        return await fetch(http, path, **settings)

    async def json(self, path: str) -> Any:
        """Fetch a value."""
        answer = await self.get(path)
        assert answer.status == 200, answer.body
        return answer.json()


@contextlib.asynccontextmanager
async def shown(config: DashboardConfig = FAST) -> AsyncIterator[Shown]:
    """Run a rendezvous on loopback."""
    settings = RendezvousConfig(
        registry=LOOPBACK,
        beacon=LOOPBACK,
        http=LOOPBACK,
        service=ServiceConfig(admin_token=ADMIN),
        dashboard=config,
    )
    async with (
        Rendezvous(settings) as rendezvous,
        RegistryClient(rendezvous.addresses.registry) as client,
    ):
        yield Shown(rendezvous, client)
