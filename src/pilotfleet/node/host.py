"""Many agents in one process.

What agents share lives here: the connections to the registry, one timer wheel,
one receive buffer, one random source, the built-in services, the IPC socket,
and every task. What an agent does in its handlers is its own affair: an
exception there is logged, and its neighbours go on.

Shutdown has this order: no new stream is served; what was written is delivered,
as long as ``drain_s`` allows; local clients are disconnected; tasks are cancelled
and awaited; every stream that is left ends; sockets are closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import random
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pilotfleet.client.registry import RegistryClient
from pilotfleet.errors import (
    ConfigError,
    ConnectionFailed,
    InvalidArgument,
    NotFound,
    PilotError,
    Unavailable,
)
from pilotfleet.node import reports
from pilotfleet.node.config import DEFAULT_BEACON_PORT, MAX_HOSTED_AGENTS
from pilotfleet.node.discovery import Discovery
from pilotfleet.node.filelimit import require_open_files
from pilotfleet.node.gate import Gate
from pilotfleet.node.gathering import Gathering
from pilotfleet.node.home import lock_identity, make_folder
from pilotfleet.node.ipc.server import IpcServer
from pilotfleet.node.local import local_ipv4_addresses
from pilotfleet.node.opening import open_agents
from pilotfleet.node.portpolicy import PortPolicies
from pilotfleet.node.progress import StartLog
from pilotfleet.node.registration import Registrar
from pilotfleet.node.rotation import KeyRotation
from pilotfleet.node.routing import Routing
from pilotfleet.node.supervisor import Supervisor
from pilotfleet.node.watches import Watches
from pilotfleet.protocol.services.events import EVENT_PORT
from pilotfleet.protocol.services.webhook import Counters
from pilotfleet.protocol.stream.config import StreamConfig
from pilotfleet.protocol.stream.state import State
from pilotfleet.protocol.tunnel.config import TunnelConfig
from pilotfleet.transport.udp import RECEIVE_BUFFER_SIZE
from pilotfleet.transport.wheel import TimerWheel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.config import AgentSpec, HostConfig
    from pilotfleet.node.engine import Engine
    from pilotfleet.node.ipc.session import IpcSession
    from pilotfleet.node.stream import Stream
    from pilotfleet.node.trust import TrustService, TrustStore
    from pilotfleet.protocol.address import Endpoint

__all__ = ["EventSink", "ExtensionHandler", "Host", "ServiceHandler"]

logger = logging.getLogger(__name__)

ServiceHandler: TypeAlias = "Callable[[Agent, Stream], Awaitable[None]]"
"""Serves one inbound stream; the stream is closed when it returns."""
ExtensionHandler: TypeAlias = (
    "Callable[[IpcSession, Agent, dict[str, Any]], Awaitable[dict[str, Any]]]"
)
"""Serves one extension request of a local program."""
EventSink: TypeAlias = "Callable[[Agent, str, dict[str, Any]], None]"
"""Takes what happened to an agent: the event's name and its data."""

SHARED_FILES: Final = 256
"""Open files beside the agents' sockets: registry, IPC clients, databases."""
BROKER_SHARE: Final = 16
"""A whole fleet publishes at its broker: so many times the connections of a port, and
new streams in a second, of what another agent takes."""
DRAIN_POLL_S: Final = 0.02


class Host:
    """Runs agents. An async context manager: inside, they are registered.

    Services and extensions are put in before it is entered.
    """

    now = staticmethod(time.monotonic)
    """Returns the monotonic time. The function itself, for it is called most of all."""

    def __init__(self, config: HostConfig) -> None:
        _check(config)
        self.config = config
        self.services: dict[int, ServiceHandler] = {}
        """Virtual port to what serves it, for all agents."""
        self.is_served = self.services.__contains__
        """Whether a port is served for every agent; one object for all of them."""
        self.extensions: dict[str, ExtensionHandler] = {}
        """IPC operations beyond the official ones (ipc 0x80)."""
        self.doors: list[Callable[[], AbstractAsyncContextManager[object]]] = []
        """Ways in for local programs beside the configured socket, open as long."""
        self.trust_service: TrustService | None = None
        self.on_trust_change: Callable[[TrustStore], None] | None = None
        """Called when a trust list has changed and is to be saved."""
        self.event_sink: EventSink | None = None
        """Called at once with each event; it must not block or raise."""
        self.webhook_counters: Callable[[Agent], Counters] = _no_webhook
        """What became of the events that an agent's webhook was to get."""
        self.agents: dict[str, Agent] = {}
        self.by_node: dict[int, Agent] = {}
        self.on_progress: Callable[[int, int], None] = StartLog(self.now)
        """Called during the start: agents registered, agents in all."""
        self.is_started = False
        """Whether every agent has been registered, or tried for the first time."""
        self.is_draining = False
        self.started_at = 0.0
        self.packets_refused = 0
        """Stream packets that a full tunnel queue did not take."""
        self.packets_misaddressed = 0
        """Packets for another node than the one that received them."""
        self.random_bytes = os.urandom
        self.rng = random.Random(os.urandom(32))
        self.tunnel_config = TunnelConfig(
            reply_whitelist=config.reply_whitelist,
            rekey_whitelist=config.rekey_whitelist,
        )
        self._stream_config = StreamConfig(
            residence_s=config.time_wait_s,
            max_connections=config.max_connections,
            max_connections_per_port=config.max_connections_per_port,
            syn_rate=config.syn_rate,
            syn_whitelist=config.syn_whitelist,
            idle_timeout_s=config.idle_timeout_s,
        )
        self._broker_stream_config = replace(
            self._stream_config,
            max_connections_on={
                EVENT_PORT: BROKER_SHARE * config.max_connections_per_port
            },
            syn_rate=BROKER_SHARE * config.syn_rate,
        )
        self.receive_buffer = bytearray(RECEIVE_BUFFER_SIZE)
        self.local_addresses: tuple[str, ...] = ()
        self.is_local_registry = False
        self.beacon: Endpoint = ("", 0)
        self.gate = Gate(self)
        self.port_policies = PortPolicies(self)
        self.routing = Routing(self)
        self.gathering = Gathering(self)
        self.discovery = Discovery(self)
        self.watches = Watches(self)
        self.registrar = Registrar(self)
        self.rotation = KeyRotation(self)
        self._supervisor = Supervisor()
        self._stack = contextlib.AsyncExitStack()
        self._dirty: list[Engine] = []
        self.loop: asyncio.AbstractEventLoop
        self.wheel: TimerWheel
        self.registry: RegistryClient

    async def __aenter__(self) -> Self:
        """Open everything and register every agent.

        Raises:
            PilotError: What is missing, and what to do about it.
        """
        try:
            await self._start()
        except BaseException:
            await self.aclose(drain=False)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose(drain=error is None)

    @property
    def default_agent(self) -> Agent:
        """The agent that a local program means when it names none."""
        return self.agents[self.config.agents[0].name]

    def find_agent(self, name: str) -> Agent:
        """Return a hosted agent by its name.

        Raises:
            NotFound: This host has none of that name.
            Unavailable: It is not registered yet, as the host has only just started.
        """
        agent = self.agents.get(name)
        if agent is not None and (agent.node_id or self.is_started):
            return agent
        if any(spec.name == name for spec in self.config.agents):
            raise Unavailable(
                f"agent {name!r} is still starting", hint="try again in some seconds"
            )
        raise NotFound(f"no agent {name!r} on this daemon", hint="see: pilotctl agents")

    def wall(self) -> float:
        """Return the Unix time."""
        return time.time()

    def spawn(self, coro: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run a task that the host owns; its failure is logged, nothing more."""
        return self._supervisor.spawn(coro, name=name)

    def stream_config(self, spec: AgentSpec) -> StreamConfig:
        """Return the limits of an agent's streams."""
        is_broker = {spec.name, spec.hostname} & set(self.config.brokers)
        return self._broker_stream_config if is_broker else self._stream_config

    def serve(self, agent: Agent, stream: Stream) -> None:
        """Have the built-in service of the stream's port serve it."""
        handler = self.services.get(stream.local_port)
        if handler is None or self.is_draining:
            stream.close_nowait()
            return
        name = f"port {stream.local_port} of {agent.name}"
        self.spawn(self._serve(handler, agent, stream), name=name)

    def flush_soon(self, agent: Engine) -> None:
        """Send what ``agent`` has ready at the end of this turn of the loop."""
        self._dirty.append(agent)
        if len(self._dirty) == 1:
            self.loop.call_soon(self._flush)

    async def aclose(self, *, drain: bool = True) -> None:
        """Stop everything, in the order of the module's docstring."""
        if not self.is_draining and self.by_node:
            reports.shutting_down(self)
        self.is_draining = True
        try:
            if drain:
                await self._drain()
        finally:
            await self._stack.aclose()

    # Private

    async def _start(self) -> None:
        config = self.config
        self.loop = asyncio.get_running_loop()
        self.started_at = self.now()
        sockets = 1 if config.agent_sockets is None else 2
        require_open_files(sockets * len(config.agents) + SHARED_FILES)
        make_folder(config.home)
        self._stack.enter_context(lock_identity(config.agents[0].identity_path))
        self.local_addresses = local_ipv4_addresses()
        registry = await self._look_up(config.registry)
        self.is_local_registry = ipaddress.ip_address(registry[0]).is_loopback
        self.beacon = (registry[0], DEFAULT_BEACON_PORT)
        if config.beacon is not None:
            self.beacon = await self._look_up(config.beacon)
        self.wheel = TimerWheel(self.loop)
        self._stack.callback(self.wheel.close)
        self._stack.callback(self._close_agents)
        self.registry = await self._stack.enter_async_context(
            RegistryClient(
                registry, connections=config.registry_connections, tls=config.tls
            )
        )
        self._stack.push_async_callback(self._supervisor.aclose)
        async with contextlib.aclosing(open_agents(self)) as agents:
            await self._register(agents)

    async def _register(self, agents: AsyncIterator[Agent]) -> None:
        """Register agents while further ones are opened."""
        await self.registrar.start_first(await anext(agents))
        total = len(self.config.agents)
        self.on_progress(1, total)
        # As with the official daemon, whoever finds the socket finds a node.
        if self.config.socket is not None:
            await self._open_ipc(self.config.socket, None)
        for door in self.doors:
            await self._stack.enter_async_context(door())
        await self.registrar.start_others(
            agents,
            total=total - 1,
            on_progress=lambda done: self.on_progress(done + 1, total),
        )
        self.is_started = True
        if self.config.agent_sockets is not None:
            make_folder(self.config.agent_sockets)
            for agent in self.agents.values():
                path = self.config.agent_sockets / f"{agent.name}.sock"
                await self._open_ipc(path, agent)

    async def _open_ipc(self, path: Path, agent: Agent | None) -> None:
        await self._stack.enter_async_context(IpcServer(self, path, agent=agent))

    async def _look_up(self, endpoint: Endpoint) -> Endpoint:
        """Return the endpoint with an IP address in place of a name."""
        host, port = endpoint
        try:
            found = await self.loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ConnectionFailed(f"cannot look up host {host!r}: {error}") from error
        return str(found[0][4][0]), port

    async def _serve(
        self, handler: ServiceHandler, agent: Agent, stream: Stream
    ) -> None:
        """Run one service on one stream; its failure is its own."""
        try:
            await handler(agent, stream)
        except (PilotError, TimeoutError) as error:
            logger.debug("port %d of %s: %s", stream.local_port, agent.name, error)
        finally:
            stream.close_nowait()

    def _flush(self) -> None:
        agents, self._dirty = self._dirty, []
        for agent in agents:
            try:
                agent.flush()
            except Exception:  # A defect here must not stop the neighbours.
                logger.exception("agent %s failed to send", agent.name)

    async def _drain(self) -> None:
        """End every stream and wait until what was written has arrived."""
        deadline = self.now() + self.config.drain_s
        for agent in self.agents.values():
            agent.finish_streams()
        while self.now() < deadline and self._has_unfinished():  # noqa: ASYNC110
            # Nobody is told of a FIN that leaves, and this happens once.
            await asyncio.sleep(DRAIN_POLL_S)

    def _has_unfinished(self) -> bool:
        return any(
            connection.state is State.LINGER
            for agent in self.agents.values()
            for connection in agent.streams.connections()
        )

    def _close_agents(self) -> None:
        for agent in self.agents.values():
            agent.shut_streams_down()
        self._flush()
        for agent in self.agents.values():
            agent.close()


def _check(config: HostConfig) -> None:
    if not config.agents:
        raise InvalidArgument("a host needs at least one agent")
    if len(config.agents) > MAX_HOSTED_AGENTS:
        raise InvalidArgument(
            f"{len(config.agents)} agents on one host (max {MAX_HOSTED_AGENTS})"
        )
    names = {spec.name for spec in config.agents}
    if len(names) != len(config.agents):
        raise ConfigError("two agents of this host have the same name")


def _no_webhook(agent: Agent) -> Counters:
    return Counters()
