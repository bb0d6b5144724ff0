"""How search and watch show an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pilotfleet.registry.privacy import rfc3339

if TYPE_CHECKING:
    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.directory.nodes import Node

__all__ = ["agent_row"]


def agent_row(directory: Directory, node: Node) -> dict[str, Any]:
    """Return an agent's row, for one who may see it."""
    record = node.record
    return {
        "node_id": record.id,
        "address": node.address,
        "hostname": node.hostname,
        "tags": list(record.tags),
        "polo": directory.polo_score(record.id),
        "online": directory.is_online(record.id),
        "last_seen": rfc3339(node.last_seen),
    }
