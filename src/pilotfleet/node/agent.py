"""One virtual agent, as programs and services use it.

An idle agent owns no task, no timer of its own and no table that it does not
need: see `Host` for what all agents share, and `Engine` for its I/O.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import (
    Busy,
    Closed,
    InvalidArgument,
    NotFound,
    NotSupported,
    PilotError,
    TimedOut,
)
from pilotfleet.node import reactions, reports
from pilotfleet.node.discovery import CHANGING_TYPES
from pilotfleet.node.engine import Engine
from pilotfleet.node.info import describe_agent, describe_health
from pilotfleet.node.stream import Stream
from pilotfleet.protocol.address import (
    BACKBONE,
    BROADCAST_NODE,
    Address,
    SocketAddress,
)
from pilotfleet.protocol.packet import MAX_PAYLOAD, Packet, Protocol, encode_packet
from pilotfleet.protocol.registry.messages import TRUST_LINKS_EXTENSION
from pilotfleet.protocol.registry.signatures import (
    SIGNED_TYPES,
    sign_request,
    signed_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.node.config import AgentSpec
    from pilotfleet.node.host import Host
    from pilotfleet.protocol.address import Endpoint
    from pilotfleet.protocol.identity import Identity
    from pilotfleet.protocol.stream import events as stream_events
    from pilotfleet.protocol.tunnel import events as tunnel_events

__all__ = ["Agent", "Datagram"]

logger = logging.getLogger(__name__)

FIRST_EPHEMERAL: Final = 49152
LAST_EPHEMERAL: Final = 65535
MAX_HELD_DATAGRAMS: Final = 64
"""Datagrams that wait for the gate's answer, per agent."""
MAX_PINGS: Final = 1024
REPEATED_TYPES: Final = frozenset({"heartbeat", "list_trust", "poll_handshakes"})
"""Signed texts that hold nothing but the own node id."""
PING_PAYLOAD: Final = b"pilotfleet ping"
PING_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Datagram:
    """A datagram for a program on this host."""

    source: SocketAddress
    port: int
    """The destination port."""
    data: bytes


class Agent(Engine):
    """A node of the overlay, hosted together with others.

    Made by `Host`; usable once it is registered, until the host closes it.
    """

    __slots__ = (
        "_datagram_listeners",
        "_held_datagrams",
        "_next_port",
        "_pings",
        "_signatures",
        "home",
        "hostname",
        "networks",
        "observed_host",
        "registered_at",
        "relay_only",
        "tags",
        "wanted_hostname",
    )

    def __init__(self, host: Host, spec: AgentSpec, identity: Identity) -> None:
        super().__init__(host, spec, identity)
        self.hostname = self.wanted_hostname = spec.hostname
        """What the registry calls it, and what it shall: the name may be taken."""
        self.tags = spec.tags
        self.home = spec.home
        self.relay_only = spec.relay_only
        self.networks: tuple[int, ...] = ()
        """Networks it is a member of, the backbone left out."""
        self.observed_host = ""
        """The IP address that the registry sees; peers with the same are near."""
        self.registered_at = 0.0
        self._datagram_listeners: set[Callable[[Datagram], None]] | None = None
        self._held_datagrams = 0
        self._next_port = FIRST_EPHEMERAL
        self._pings: dict[int, asyncio.Future[bytes]] | None = None
        self._signatures: tuple[tuple[Identity, int], dict[str, str]] | None = None

    def __repr__(self) -> str:
        return f"<Agent {self.name} {self.address}>"

    @property
    def datagram_listeners(self) -> set[Callable[[Datagram], None]]:
        """Called with every datagram that is let in."""
        if self._datagram_listeners is None:
            self._datagram_listeners = set()
        return self._datagram_listeners

    def close(self) -> None:
        """Let go of the socket and of everybody who waits."""
        super().close()
        for pong in (self._pings or {}).values():
            if not pong.done():
                pong.set_exception(Closed(f"agent {self.name} is closed"))

    # Streams

    async def dial(
        self, remote: SocketAddress, *, timeout: float | None = None
    ) -> Stream:
        """Open a stream to a port of a peer. May be cancelled.

        Raises:
            ConnectionRefused: Nothing listens there.
            TimedOut: No answer; a private peer that does not trust us gives none.
            NotFound: No such node.
            TrustRequired: The registry does not tell where a private peer is.
            ConnectionFailed: The peer or the registry cannot be reached.
            Busy: No port or connection is left.
        """
        self._check_open()
        try:
            async with asyncio.timeout(timeout):
                return await self._dial(remote)
        except TimeoutError:
            raise TimedOut("dial timeout") from None

    def listen(self, port: int, on_stream: Callable[[Stream], None]) -> None:
        """Call ``on_stream`` with every stream that a peer opens to ``port``.

        Raises:
            AlreadyExists: The port is taken.
        """
        self._check_open()
        self.ports.bind(port, on_stream)
        self.streams.listen(port)

    def unlisten(self, port: int) -> None:
        """Refuse further streams to ``port``; those accepted live on.

        Raises:
            NotFound: ``listen`` was not called for it.
        """
        self.ports.release(port)
        self.streams.unlisten(port)

    def report(self, event: str, /, **data: Any) -> None:
        """Tell whoever watches this node what happened (services.md 11.3)."""
        sink = self.host.event_sink
        if sink is not None:
            sink(self, event, data)

    def want_large_payload(self, peer: int) -> None:
        """Let the tunnel find out whether ``peer`` takes larger packets."""
        self.tunnels.want_large_payload(peer, self.host.now())
        self.mark_dirty()

    # From the engine

    def on_tunnel_event(self, event: tunnel_events.Event, now: float) -> None:
        """React to anything from the tunnels but a packet."""
        reactions.on_tunnel_event(self, event, now)

    def on_stream_event(self, event: stream_events.StreamEvent, now: float) -> None:
        """React to what the streams report, but for data."""
        reactions.on_stream_event(self, event, now)

    def admits_peer(self, peer: int) -> bool:
        """Tell whether a peer may exchange keys with a strict agent."""
        return self.host.gate.admits_now(self, peer)

    def on_peer_found(self, peer: int, address: Endpoint) -> None:
        """Take note of where a new peer is."""
        reports.peer_added(self, peer, address)

    def on_pong(self, packet: Packet) -> None:
        """Wake who waits for this answer to a ping."""
        pong = (self._pings or {}).get(packet.dst_port)
        if pong is not None and not pong.done():
            pong.set_result(packet.payload)

    def on_datagram(self, packet: Packet) -> None:
        """Deliver a datagram if its sender is let in."""
        admitted = self.host.gate.answer(self, packet.src_node)
        if admitted:
            self._deliver(packet)
        elif admitted is not None:
            reports.datagram_rejected(self, packet)
        elif self._held_datagrams < MAX_HELD_DATAGRAMS:
            self._held_datagrams += 1

            def decide(allowed: bool) -> None:
                self._held_datagrams -= 1
                if self.closed:
                    return
                if allowed:
                    self._deliver(packet)
                else:
                    reports.datagram_rejected(self, packet)

            self.host.gate.ask(self, packet.src_node, decide)

    # Private

    def _repeated_signature(self, request: dict[str, Any]) -> str:
        """Return the signature of a request that is sent every minute.

        It stays the same as long as key and number do, and to make one takes as
        long as all the rest of such a request.
        """
        signer = (self.identity, self.node_id)
        if self._signatures is None or self._signatures[0] != signer:
            self._signatures = (signer, {})
        known = self._signatures[1]
        kind = request["type"]
        if kind not in known:
            known[kind] = self.identity.sign_text(signed_text(request))
        return known[kind]

    async def _dial(self, remote: SocketAddress) -> Stream:
        peer = remote.address.node
        await self._require_port(remote)
        await self._ensure_path(peer)
        self.host.gate.note_contact(self, peer)
        connection = self.streams.connect(remote, self.host.now())
        stream = Stream(self, connection, is_opened=False)
        self.mark_dirty()
        try:
            await stream.wait_opened()
        except PilotError as error:
            raise self._take_path_error(peer) or error from None
        except BaseException:
            stream.abort()
            raise
        return stream

    async def _require_port(self, remote: SocketAddress) -> None:
        """Raise what the policy of the addressed network says against the port."""
        if remote.address.network != BACKBONE:
            policies = self.host.port_policies
            await policies.require(remote.address.network, remote.port)

    async def _ensure_path(self, peer: int) -> None:
        """Raise the registry's refusal before anything is sent to ``peer``."""
        if peer in (0, BROADCAST_NODE):
            raise InvalidArgument(f"node {peer} cannot be reached")
        if peer == self.node_id or self.tunnels.has_session(peer):
            return
        await self.host.routing.find_path(self, peer)
        self._check_open()

    # Datagrams and pings

    async def send_datagram(self, remote: SocketAddress, data: bytes) -> None:
        """Hand a datagram to the tunnel; whether it arrives, nobody tells.

        Raises:
            InvalidArgument: Empty, too large, or to a broadcast address.
            NotFound: No such node.
            TrustRequired: The registry does not tell where a private peer is.
            Busy: Too many packets wait for the tunnel.
        """
        self._check_open()
        if not 0 < len(data) <= MAX_PAYLOAD:
            raise InvalidArgument(
                f"marshal: payload too large: {len(data)} bytes (max {MAX_PAYLOAD})"
                if data
                else "datagram is empty"
            )
        peer = remote.address.node
        await self._require_port(remote)
        await self._ensure_path(peer)
        self.host.gate.note_contact(self, peer)
        packet = Packet(
            Protocol.DATAGRAM,
            0,
            remote.address.network,
            self.node_id,
            remote.address.network,
            peer,
            self._ephemeral_port(),
            remote.port,
            payload=data,
        )
        self.tunnels.send_packet(peer, encode_packet(packet), self.host.now())
        self.mark_dirty()

    async def ping(
        self,
        peer: int,
        payload: bytes = PING_PAYLOAD,
        *,
        timeout: float = PING_TIMEOUT_S,
    ) -> float:
        """Send a control ping; return the round trip in seconds.

        Raises:
            TimedOut: No pong.
            NotFound: No such node.
            TrustRequired: The registry does not tell where a private peer is.
            Busy: Too many pings are under way.
        """
        self._check_open()
        await self._ensure_path(peer)
        pings = self._pings = self._pings or {}
        if len(pings) >= MAX_PINGS:
            raise Busy(f"{MAX_PINGS} pings are under way")
        port = self._ephemeral_port()
        pong = self.host.loop.create_future()
        pings[port] = pong
        sent = self.host.now()
        try:
            self.tunnels.ping(peer, payload, src_port=port, seq=port, now=sent)
            self.mark_dirty()
            async with asyncio.timeout(timeout):
                await pong
        except TimeoutError:
            raise TimedOut(f"no pong from node {peer}") from None
        finally:
            del pings[port]
        return self.host.now() - sent

    # Registry

    async def registry(self, type: str, /, **fields: Any) -> dict[str, Any]:
        """Ask the registry, signed by this agent where the type is signed.

        Raises:
            RegistryError: The registry answered with an error.
            ConnectionFailed: It cannot be reached.
            TimedOut: It did not answer.
        """
        try:
            return await self.host.registry.request(self.signed(type, **fields))
        finally:
            self._note_change(type)

    async def gathered(self, type: str, /, **fields: Any) -> dict[str, Any]:
        """Ask as `registry` does, together with what other agents ask now.

        For what all agents do at their start and every minute: one of many gets its
        answer when all have theirs.

        Raises:
            RegistryError: The registry answered with an error.
            ConnectionFailed: It cannot be reached.
            TimedOut: It did not answer.
        """
        try:
            return await self.host.gathering.request(self.signed(type, **fields))
        finally:
            self._note_change(type)

    def signed(self, type: str, /, **fields: Any) -> dict[str, Any]:
        """Return a request, signed by this agent where the type is signed."""
        request = {"type": type, **fields}
        if type in REPEATED_TYPES:
            request["signature"] = self._repeated_signature(request)
        elif type in SIGNED_TYPES:
            request = sign_request(self.identity, request)
        return request

    async def resolve_hostname(self, name: str) -> dict[str, Any]:
        """Return the registry's answer for ``name``; kept for 60 s.

        Raises:
            RegistryError: No such name, or not for us.
        """
        return await self.host.routing.resolve_hostname(self, name)

    async def search(self, *, cached: bool = False, **query: Any) -> dict[str, Any]:
        """Search agents by tags (extension); see ``RegistryClient.search``.

        With ``cached`` the answer to an equal question of the last two seconds, from
        memory, will do; see `Discovery`.
        """
        return await self.host.discovery.search(self, query, cached=cached)

    async def list_trust(self, **query: Any) -> dict[str, Any]:
        """List who trusts whom (extension); see ``RegistryClient.list_trust``.

        Raises:
            NotSupported: The registry has no such extension.
        """
        if TRUST_LINKS_EXTENSION not in self.host.registry.extensions:
            raise NotSupported("the registry does not tell who trusts whom")
        return await self.registry("list_trust", node_id=self.node_id, **query)

    async def join_network(self, network: int, token: str = "") -> dict[str, Any]:
        """Become a member of a network; return the registry's answer.

        Raises:
            RegistryError: The registry refuses.
        """
        answer = await self.gathered(
            "join_network", node_id=self.node_id, network_id=network, token=token
        )
        self.networks = tuple(sorted({*self.networks, network}))
        return answer

    async def leave_network(self, network: int) -> dict[str, Any]:
        """End the membership in a network; return the registry's answer.

        Raises:
            RegistryError: The registry refuses.
        """
        answer = await self.registry(
            "leave_network", node_id=self.node_id, network_id=network
        )
        self.networks = tuple(known for known in self.networks if known != network)
        return answer

    def info(self) -> dict[str, Any]:
        """Return the body of InfoOK (ipc.md section 10.1)."""
        return describe_agent(self)

    def health(self) -> dict[str, Any]:
        """Return the body of HealthOK (ipc.md section 10.4)."""
        return describe_health(self)

    def _note_change(self, type: str) -> None:
        # Also after a failure: the registry may have done it all the same.
        if type in CHANGING_TYPES:
            self.host.discovery.clear()

    def _deliver(self, packet: Packet) -> None:
        if self.host.event_sink is not None:
            reports.datagram(self, packet)
        source = Address(packet.src_network, packet.src_node)
        datagram = Datagram(
            SocketAddress(source, packet.src_port), packet.dst_port, packet.payload
        )
        for listener in tuple(self._datagram_listeners or ()):
            try:
                listener(datagram)
            except Exception:  # A listener is foreign code.
                logger.exception("a datagram listener of %s failed", self.name)

    def _ephemeral_port(self) -> int:
        port = self._next_port
        self._next_port = FIRST_EPHEMERAL if port == LAST_EPHEMERAL else port + 1
        return port

    def _take_path_error(self, peer: int) -> PilotError | None:
        return None if self._path_errors is None else self._path_errors.pop(peer, None)

    def _check_open(self) -> None:
        if self.closed:
            raise Closed(f"agent {self.name} is closed")
        if not self.node_id:
            raise NotFound(f"agent {self.name} is not registered yet")
