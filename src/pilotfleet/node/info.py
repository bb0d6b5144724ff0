"""What an agent tells local programs about itself (ipc.md section 10)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import pilotfleet
from pilotfleet.node.registration import OFFICIAL_VERSION
from pilotfleet.protocol.address import Address
from pilotfleet.protocol.registry.endpoints import format_endpoint

if TYPE_CHECKING:
    from pilotfleet.node.agent import Agent
    from pilotfleet.protocol.tunnel.stats import PeerInfo

__all__ = ["describe_agent", "describe_health"]

FEATURES: Final = ("reply_window", "dial_awaits_key", "key_request", "dgram_confirm")
NOT_LIVE: Final = frozenset({"TIME_WAIT", "CLOSED"})


def describe_agent(agent: Agent) -> dict[str, Any]:
    """Return the body of InfoOK."""
    host, socket, stats = agent.host, agent.socket, agent.tunnels.stats
    peers = [_peer_row(peer) for peer in agent.tunnels.peers()]
    connections = [connection.stats() for connection in agent.streams.connections()]
    return {
        "node_id": agent.node_id,
        "address": str(agent.address),
        "endpoint": format_endpoint(socket.address),
        "hostname": agent.hostname,
        "tags": list(agent.tags),
        "uptime_secs": int(host.now() - host.started_at),
        "connections": _count_live(connections),
        "ports": len(agent.ports),
        **_count_peers(peers),
        "encrypt": True,
        "identity": True,
        "public": agent.is_public,
        "public_key": agent.identity.public_key_text,
        "email": host.config.owner,
        "bytes_sent": socket.bytes_sent,
        "bytes_recv": socket.bytes_received,
        "pkts_sent": socket.datagrams_sent,
        "pkts_recv": socket.datagrams_received,
        "tunnel_encryption_success": stats.packets_received,
        "tunnel_encryption_failure": stats.forged + stats.replayed,
        "handshake_pending_count": len(agent.trust.pending),
        "version": OFFICIAL_VERSION,
        "implementation": f"pilotfleet {pilotfleet.__version__}",
        "networks": _network_rows(agent),
        "peer_list": peers,
        "conn_list": connections,
        **_counters(agent),
        "beacon_addr": format_endpoint(host.beacon),
        "motd": "",
        "features": list(FEATURES),
        "transport": "udp",
        "broker": host.config.broker,
        # Of the whole process: what grows for ever is a leak.
        "host_tasks": len(asyncio.all_tasks(host.loop)),
    }


def describe_health(agent: Agent) -> dict[str, Any]:
    """Return the body of HealthOK; needs nothing but memory."""
    host, socket = agent.host, agent.socket
    connections = [connection.stats() for connection in agent.streams.connections()]
    return {
        "status": "ok",
        "uptime_seconds": int(host.now() - host.started_at),
        "connections": _count_live(connections),
        **_count_peers([_peer_row(peer) for peer in agent.tunnels.peers()]),
        "bytes_sent": socket.bytes_sent,
        "bytes_recv": socket.bytes_received,
        "handshake_pending_count": len(agent.trust.pending),
        **_counters(agent),
        "beacon_addr": format_endpoint(host.beacon),
    }


def _peer_row(peer: PeerInfo) -> dict[str, Any]:
    return {
        "node_id": peer.node,
        "endpoint": format_endpoint(peer.address) if peer.address else "",
        "encrypted": peer.is_established,
        "authenticated": peer.is_authenticated,
        "relay": peer.is_relayed,
    }


def _count_peers(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {
        "peers": len(rows),
        "encrypted_peers": sum(row["encrypted"] for row in rows),
        "authenticated_peers": sum(row["authenticated"] for row in rows),
        "relay_peer_count": sum(row["relay"] for row in rows),
    }


def _count_live(connections: list[dict[str, Any]]) -> int:
    return sum(row["state"] not in NOT_LIVE for row in connections)


def _network_rows(agent: Agent) -> list[dict[str, Any]] | None:
    return [
        {"network_id": network, "address": str(Address(network, agent.node_id))}
        for network in agent.networks
    ] or None


def _counters(agent: Agent) -> dict[str, int]:
    webhook = agent.host.webhook_counters(agent)
    return {
        "accept_queue_drops": agent.streams.accept_drops,
        "webhook_queue_dropped": webhook.dropped,
        "webhook_circuit_skips": webhook.skipped,
    }
