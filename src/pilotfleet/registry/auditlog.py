"""What was changed in networks, by whom: the newest entries, in memory.

It answers "who changed this just now", not more: entries end with the process, and
each replica has its own.
"""

from __future__ import annotations

import datetime
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.protocol.registry.messages import network_number, node_number

if TYPE_CHECKING:
    from pilotfleet.protocol.registry.messages import Reply, Request

__all__ = ["AuditLog"]

MAX_ENTRIES: Final = 4096
_ACTIONS: Final = {
    "create_network": "network.created",
    "delete_network": "network.deleted",
    "rename_network": "network.renamed",
    "provision_network": "network.provisioned",
    "set_network_policy": "network.policy_changed",
    "set_network_enterprise": "network.enterprise_changed",
    "set_expr_policy": "network.expr_policy_changed",
    "join_network": "member.joined",
    "leave_network": "member.left",
    "kick_member": "member.kicked",
    "promote_member": "member.promoted",
    "demote_member": "member.demoted",
    "transfer_ownership": "member.ownership_transferred",
    "set_member_tags": "member.tags_changed",
    "invite_to_network": "invite.created",
    "respond_invite": "invite.answered",
    "directory_sync": "directory.synced",
    "set_external_id": "identity.changed",
}
"""Requests that leave an entry, and what it is called."""
_DETAILS: Final = ("name", "role", "accepted", "allowed_ports", "max_members")
"""Fields of the reply that say what the change was. None of them is a secret."""


class AuditLog:
    """The newest changes."""

    def __init__(self) -> None:
        self._entries: deque[dict[str, Any]] = deque(maxlen=MAX_ENTRIES)

    def note(self, request: Request, reply: Reply, wall: float) -> None:
        """Add an entry if the request was one of those that leave one."""
        action = _ACTIONS.get(str(request.get("type")))
        if action is None:
            return
        moment = datetime.datetime.fromtimestamp(int(wall), datetime.UTC)
        entry: dict[str, Any] = {
            "timestamp": moment.isoformat().replace("+00:00", "Z"),
            "action": action,
        }
        network = network_number(reply) or network_number(request)
        node = node_number(request, "target_node_id") or node_number(request)
        if network:
            entry["network_id"] = network
        if node:
            entry["node_id"] = node
        details = {key: reply[key] for key in _DETAILS if key in reply}
        if details:
            entry["details"] = details
        self._entries.append(entry)

    def newest(self, network: int, limit: int) -> list[dict[str, Any]]:
        """Return entries, newest first; of one network, or with 0 of all."""
        found: list[dict[str, Any]] = []
        for entry in reversed(self._entries):
            if len(found) == limit:
                break
            if not network or entry.get("network_id") == network:
                found.append(entry)
        return found
