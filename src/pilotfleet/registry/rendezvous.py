"""Registry, beacon and HTTP in one process, on one directory and one store."""

from __future__ import annotations

import contextlib
import logging
import socket
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import DecodeError, StorageError
from pilotfleet.protocol.registry.endpoints import (
    format_endpoint,
    is_private,
    parse_endpoint,
)
from pilotfleet.registry.background import in_background
from pilotfleet.registry.beacon import BeaconServer
from pilotfleet.registry.beacon_table import BeaconConfig
from pilotfleet.registry.dashboard.config import DashboardConfig
from pilotfleet.registry.directory.directory import Directory
from pilotfleet.registry.server import RegistryServer, ServerConfig
from pilotfleet.registry.service import RegistryService, ServiceConfig
from pilotfleet.registry.store.opening import open_store
from pilotfleet.transport.clock import SystemClock

if TYPE_CHECKING:
    import ssl
    from types import TracebackType

    from pilotfleet.protocol.address import Endpoint
    from pilotfleet.registry.store.base import Store
    from pilotfleet.transport.clock import Clock

__all__ = ["WILDCARDS", "Addresses", "Rendezvous", "RendezvousConfig"]

logger = logging.getLogger(__name__)

WILDCARDS: Final = frozenset({"", "0.0.0.0", "::"})
ELSEWHERE: Final = ("192.0.2.1", 9)
"""An address that is nobody's; asked for the way to it, nothing is sent."""


@dataclass(frozen=True, slots=True)
class RendezvousConfig:
    """Where a rendezvous listens and keeps its data."""

    registry: Endpoint = ("127.0.0.1", 9000)
    beacon: Endpoint = ("127.0.0.1", 9001)
    http: Endpoint | None = None
    store: str = "memory:"
    advertised_beacon: Endpoint | None = None
    """Where nodes reach the beacon, if not where it listens."""
    tls: ssl.SSLContext | None = None
    """The registry speaks TLS with it; HTTP stays plain."""
    service: ServiceConfig = field(default_factory=ServiceConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    limits: BeaconConfig = field(default_factory=BeaconConfig)
    """Limits and peers of the beacon."""
    dashboard: DashboardConfig = field(default_factory=DashboardConfig)
    """What HTTP shows, and to whom."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a rendezvous really listens."""

    registry: Endpoint
    beacon: Endpoint
    http: Endpoint | None

    def as_text(self) -> dict[str, str]:
        """Return the addresses as ``host:port``; an empty text for none."""
        http = format_endpoint(self.http) if self.http else ""
        return {
            "registry": format_endpoint(self.registry),
            "beacon": format_endpoint(self.beacon),
            "http": http,
        }


class Rendezvous:
    """Everything a fleet needs to find itself. An async context manager.

    Stopping goes from the outside in: no new requests, the last writes, the
    beacon, the store.
    """

    def __init__(
        self, config: RendezvousConfig | None = None, *, clock: Clock | None = None
    ) -> None:
        self.config = config or RendezvousConfig()
        self._clock = clock or SystemClock()
        self._stack = contextlib.AsyncExitStack()
        self.directory = Directory(online_window_s=self.config.service.online_window_s)
        self.addresses = Addresses(
            self.config.registry, self.config.beacon, self.config.http
        )

    async def __aenter__(self) -> Rendezvous:
        """Load the directory and start to listen.

        Raises:
            InvalidArgument: The store's URL is wrong.
            StorageError: The store cannot be read.
            AlreadyExists: A port is in use.
            Unavailable: The system refuses an address.
        """
        async with contextlib.AsyncExitStack() as stack:
            store = open_store(self.config.store)
            stack.push_async_callback(store.aclose)
            await self._start(stack, store)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop in the order that the class describes."""
        await self._stack.aclose()

    async def _start(self, stack: contextlib.AsyncExitStack, store: Store) -> None:
        config = self.config
        # The port first: whoever has it already would also share our store.
        beacon = BeaconServer(
            config.beacon,
            config=config.limits,
            clock=self._clock,
            find=self._registered_endpoint,
            is_registered=self._is_registered,
        )
        await stack.enter_async_context(beacon)
        advertised = config.advertised_beacon or _reachable(beacon.address)
        service = RegistryService(
            self.directory,
            store,
            config=replace(config.service, beacon_addr=format_endpoint(advertised)),
            clock=self._clock,
            notify=beacon.notify,
        )
        server = RegistryServer(
            service, config.registry, config=config.server, tls=config.tls
        )
        await service.load()
        stack.push_async_callback(_close_service, service)
        background = {"maintenance": service.run_maintenance}
        if store.is_shared:
            background["watch"] = service.run_watch
        for name, run in background.items():
            await stack.enter_async_context(in_background(name, run))
        await stack.enter_async_context(server)
        http = await self._start_http(stack, service, server, beacon)
        self.addresses = Addresses(server.address, beacon.address, http)

    async def _start_http(
        self,
        stack: contextlib.AsyncExitStack,
        service: RegistryService,
        server: RegistryServer,
        beacon: BeaconServer,
    ) -> Endpoint | None:
        if self.config.http is None:
            return None
        # Late: it is a lot of code that a rendezvous without HTTP does not need.
        from pilotfleet.registry.dashboard.app import Dashboard
        from pilotfleet.registry.dashboard.view import RendezvousView
        from pilotfleet.web.server import HttpServer

        view = RendezvousView(
            directory=self.directory,
            stats=server.stats,
            beacon=beacon.counters,
            connections=lambda: server.connection_count,
            beacon_nodes=lambda: beacon.node_count,
            clock=self._clock,
            started=self._clock.now(),
            watches=service.watch_stats,
        )
        dashboard = Dashboard(view, self.config.dashboard, bind=self.config.http)
        await stack.enter_async_context(dashboard)
        http = HttpServer(dashboard.app, self.config.http)
        await stack.enter_async_context(http)
        return http.address

    def _is_registered(self, node: int) -> bool:
        return self.directory.nodes.get_live(node) is not None

    def _registered_endpoint(self, node: int) -> Endpoint | None:
        """Return where a node registered, if that is sure to be its own address.

        A node may register any public address, also that of somebody else, who
        must not get its relayed traffic. A private one is always the address
        that the registration came from (registry.md section 6.1).
        """
        found = self.directory.nodes.get_live(node)
        if found is None:
            return None
        try:
            host, port = parse_endpoint(found.record.endpoint)
        except DecodeError:
            return None
        return (host, port) if is_private(host) and port else None


async def _close_service(service: RegistryService) -> None:
    try:
        await service.aclose()
    except StorageError as error:
        logger.error("the last changes were not stored: %s", error)


def _reachable(endpoint: Endpoint) -> Endpoint:
    """Return an endpoint that others can use, for one that listens everywhere."""
    host, port = endpoint
    if host not in WILDCARDS:
        return endpoint
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(ELSEWHERE)
            host = probe.getsockname()[0]
        except OSError:
            host = "127.0.0.1"
    return host, port
