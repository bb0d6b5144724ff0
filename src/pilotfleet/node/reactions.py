"""What an agent does when its protocol cores report something."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pilotfleet.node import reports
from pilotfleet.node.stream import Stream
from pilotfleet.protocol.stream import events as stream_events
from pilotfleet.protocol.tunnel import events as tunnel_events

if TYPE_CHECKING:
    from pilotfleet.node.agent import Agent

__all__ = ["on_stream_event", "on_tunnel_event"]

logger = logging.getLogger(__name__)


def on_tunnel_event(agent: Agent, event: tunnel_events.Event, now: float) -> None:
    """React to anything from the tunnels but a packet."""
    match event:
        case tunnel_events.PathWanted(peer):
            agent.host.routing.path_wanted(agent, peer)
        case tunnel_events.KeyWanted(peer, refresh):
            agent.host.routing.key_wanted(agent, peer, refresh=refresh)
        case tunnel_events.TunnelEstablished(peer, authenticated, relayed, rekeyed):
            agent.streams.tunnel_ready(peer, now)
            if rekeyed:
                agent.streams.doubt_peer(peer, now)
            agent.report(
                "tunnel.established",
                peer_node_id=peer,
                authenticated=authenticated,
                relay=relayed,
                rekeyed=rekeyed,
            )
        case tunnel_events.TunnelFailed(peer, reason):
            agent.streams.tunnel_failed(peer, reason, now)
        case tunnel_events.PongReceived(_, packet):
            agent.on_pong(packet)
        case tunnel_events.PayloadGrew(peer, size):
            _on_payload_grew(agent, peer, size)
        case tunnel_events.HandshakeWaiting():
            if agent.host.trust_service is not None:
                agent.host.trust_service.handshake_waiting(agent)
        case tunnel_events.Reflected(endpoint):
            agent.host.registrar.reflected(agent, endpoint)
        case tunnel_events.RelayActivated(peer):
            agent.report("tunnel.relay_activated", peer_node_id=peer)
        case tunnel_events.ReplayDetected(peer, counter):
            reports.replayed(agent, peer, counter)


def on_stream_event(agent: Agent, event: stream_events.StreamEvent, now: float) -> None:
    """React to what the streams report, but for data."""
    match event:
        case stream_events.Writable(connection):
            if isinstance(connection.owner, Stream):
                connection.owner.on_writable()
        case stream_events.StreamAccepted(connection):
            connection.segment_size = agent.tunnels.max_payload(
                connection.remote.address.node
            )
            reports.accepted(agent, connection)
            _accept(agent, Stream(agent, connection, is_opened=True))
        case stream_events.StreamOpened(connection):
            if isinstance(connection.owner, Stream):
                connection.segment_size = agent.tunnels.max_payload(
                    connection.remote.address.node
                )
                connection.owner.on_opened()
        case stream_events.StreamFailed(connection, reason, refused):
            if refused:
                reports.refused(agent, connection)
            if isinstance(connection.owner, Stream):
                connection.owner.on_failed(reason, refused=refused)
        case stream_events.StreamEnded(connection):
            if isinstance(connection.owner, Stream):
                connection.owner.on_readable()
                connection.owner.on_writable()
        case stream_events.StreamClosed(connection, reason):
            reports.closed(agent, connection, reason)
            if isinstance(connection.owner, Stream):
                connection.owner.on_closed(reason)
        case stream_events.AdmissionWanted(peer, port):
            _on_admission_wanted(agent, peer, port)
        case stream_events.RelayWanted(peer):
            agent.tunnels.use_relay(peer, now)
        case stream_events.SynDropped(packet, cause):
            reports.syn_dropped(agent, packet, cause)


def _accept(agent: Agent, stream: Stream) -> None:
    listener = agent.ports.listener(stream.local_port)
    if listener is None:
        agent.host.serve(agent, stream)
        return
    try:
        listener(stream)
    except Exception:  # A listener is foreign code.
        logger.exception("listener on port %d failed", stream.local_port)
        stream.abort()


def _on_admission_wanted(agent: Agent, peer: int, port: int) -> None:
    def admit(allowed: bool) -> None:
        if not agent.closed:
            if not allowed:
                reports.syn_rejected(agent, port)
            agent.streams.admit(peer, port=port, allowed=allowed, now=agent.host.now())
            agent.mark_dirty()

    gate = agent.host.gate
    if gate.is_reply(agent, peer, port):
        admit(True)
    else:
        gate.ask(agent, peer, admit)


def _on_payload_grew(agent: Agent, peer: int, size: int) -> None:
    for connection in agent.streams.connections():
        if connection.remote.address.node == peer:
            connection.segment_size = size
