"""What webhooks are told of an agent's life on the network (services.md 11.3).

Each function names one or a few events and their data as the official daemon does;
what it says differently from release to release is as in 1.18.0. All of them cost a
comparison while nobody listens.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.protocol.address import Address
from pilotfleet.protocol.registry.endpoints import format_endpoint
from pilotfleet.protocol.services.dataexchange import DATA_EXCHANGE_PORT
from pilotfleet.protocol.stream.events import IDLE, PEER_SILENT, SynCause

if TYPE_CHECKING:
    from pilotfleet.node.agent import Agent
    from pilotfleet.node.host import Host
    from pilotfleet.protocol.address import Endpoint
    from pilotfleet.protocol.packet import Packet
    from pilotfleet.protocol.stream.connection import StreamConnection

__all__ = [
    "accepted",
    "closed",
    "datagram",
    "datagram_rejected",
    "heartbeat",
    "peer_added",
    "refused",
    "registered",
    "replayed",
    "shutting_down",
    "syn_dropped",
    "syn_rejected",
]

_HASH_DIGITS: Final = 16
_ENDS: Final = {PEER_SILENT: "conn.dead_peer", IDLE: "conn.idle_timeout"}


def registered(agent: Agent, reflected: Endpoint | None, *, is_first: bool) -> None:
    """The registry knows the agent, for the first time or again.

    Args:
        agent: Who was registered.
        reflected: The endpoint that the beacon saw, if that was registered.
        is_first: Whether it is the first time since the daemon's start.
    """
    if agent.host.event_sink is None:
        return
    address = str(agent.address)
    if is_first:
        told = agent.spec.advertise or reflected or agent.socket.address
        where = {"address": address, "endpoint": format_endpoint(told)}
        agent.report("node.registered", **where)
        agent.report("agent.registered", node_id=agent.node_id, **where)
    else:
        agent.report("node.reregistered", address=address)
        agent.report(
            "agent.registered",
            node_id=agent.node_id,
            address=address,
            reregistered=True,
        )


def heartbeat(agent: Agent) -> None:
    """The registry took a heartbeat."""
    if agent.host.event_sink is not None:
        agent.report(
            "agent.heartbeat", node_id=agent.node_id, address=str(agent.address)
        )


def shutting_down(host: Host) -> None:
    """The daemon stops, and with it each of its agents."""
    if host.event_sink is None:
        return
    uptime = int(host.now() - host.started_at)
    for agent in host.agents.values():
        if agent.node_id:
            agent.report(
                "daemon.shutting_down",
                uptime_seconds=uptime,
                known_peers=len(agent.tunnels.peers()),
                open_connections=agent.streams.open_count,
            )


def peer_added(agent: Agent, peer: int, address: Endpoint) -> None:
    """It is known now where a peer is."""
    if agent.host.event_sink is not None:
        agent.report(
            "tunnel.peer_added", peer_node_id=peer, endpoint=format_endpoint(address)
        )


def accepted(agent: Agent, connection: StreamConnection) -> None:
    """A peer opened a stream. The responder is open with its answer (wire.md 11.3)."""
    if agent.host.event_sink is None:
        return
    remote = connection.remote
    for event in ("conn.syn_received", "conn.established"):
        agent.report(
            event,
            conn_id=connection.id,
            src_addr=str(remote.address),
            src_port=remote.port,
            dst_port=connection.local_port,
        )


def closed(agent: Agent, connection: StreamConnection, reason: str | None) -> None:
    """A stream ended: in good order, by a RST, or because nobody answered."""
    if agent.host.event_sink is None:
        return
    if reason is None and connection.remote.port == DATA_EXCHANGE_PORT:
        agent.report("file.delivered", **_remote(connection))
    ends = _ends(connection)
    if reason in _ENDS:
        agent.report(_ENDS[reason], **ends)
    is_fin = reason is None or reason in _ENDS
    agent.report("conn.fin" if is_fin else "conn.rst", **ends)


def refused(agent: Agent, connection: StreamConnection) -> None:
    """A peer answered our dial with a RST."""
    if agent.host.event_sink is not None:
        agent.report("conn.rst", **_ends(connection))


def syn_rejected(agent: Agent, port: int) -> None:
    """A private agent does not let a peer in."""
    agent.report("syn.rejected", dst_port=port)


def syn_dropped(agent: Agent, packet: Packet, cause: SynCause) -> None:
    """A trusted peer ran into one of our limits."""
    if agent.host.event_sink is None:
        return
    source = str(Address(packet.src_network, packet.src_node))
    match cause:
        case SynCause.RATE:
            agent.report(
                "security.syn_rate_limited",
                src_addr_hash=_hash(source),
                src_port=packet.src_port,
            )
        case SynCause.POLICY:
            agent.report("syn.port_rejected", dst_port=packet.dst_port)
        case SynCause.BACKLOG:
            agent.report(
                "conn.accept_queue_full",
                src_addr=source,
                src_port=packet.src_port,
                dst_port=packet.dst_port,
            )


def datagram(agent: Agent, packet: Packet) -> None:
    """A datagram was delivered."""
    agent.report(
        "data.datagram",
        src_addr=str(Address(packet.src_network, packet.src_node)),
        src_port=packet.src_port,
        dst_port=packet.dst_port,
        size=len(packet.payload),
    )


def datagram_rejected(agent: Agent, packet: Packet) -> None:
    """A private agent does not take a datagram of this peer."""
    agent.report("datagram.rejected", dst_port=packet.dst_port)


def replayed(agent: Agent, peer: int, counter: int) -> None:
    """A frame came twice: somebody records and repeats, or a path duplicates."""
    if agent.host.event_sink is not None:
        agent.report(
            "security.nonce_replay", peer_hash=_hash(str(peer)), counter=counter
        )


def _ends(connection: StreamConnection) -> dict[str, Any]:
    return {**_remote(connection), "local_port": connection.local_port}


def _remote(connection: StreamConnection) -> dict[str, Any]:
    remote = connection.remote
    return {
        "conn_id": connection.id,
        "remote_addr": str(remote.address),
        "remote_port": remote.port,
    }


def _hash(text: str) -> str:
    """Return what the official daemon writes instead of a suspect's name."""
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]
