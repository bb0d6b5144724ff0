"""Messages about networks as such (registry.md section 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.protocol.registry.messages import (
    MAX_NODE,
    Reply,
    Request,
    flag,
    network_number,
    node_number,
    number,
    text,
)
from pilotfleet.registry.directory.network_rules import (
    ADMIN,
    OWNER,
    NewNetwork,
    decide_create,
    decide_delete,
    decide_join,
    decide_leave,
    decide_rename,
    decide_set_expr_policy,
    decide_set_policy,
    guard_backbone,
    require_enterprise,
)
from pilotfleet.registry.directory.refusal import Refused

if TYPE_CHECKING:
    from pilotfleet.registry.context import PeerContext
    from pilotfleet.registry.desk import Desk, Handler
    from pilotfleet.registry.directory.decision import Decision
    from pilotfleet.registry.directory.networks import Network

__all__ = ["HANDLERS", "checked_policy"]

OWNER_ONLY: Final = (OWNER,)
OWNER_OR_ADMIN: Final = (OWNER, ADMIN)


def create_network(desk: Desk, request: Request, _: PeerContext) -> Decision:
    """Make a network."""
    desk.require_admin(request)
    if request.get("rules"):
        raise Refused("rules: not supported: managed networks are not offered")
    asked = NewNetwork(
        text(request, "name"),
        text(request, "join_rule") or "open",
        text(request, "token"),
        flag(request, "enterprise"),
        text(request, "network_admin_token"),
        checked_policy(request),
    )
    now = int(desk.clock.wall())
    return decide_create(desk.directory, node_number(request), asked, now=now)


def join_network(desk: Desk, request: Request, peer: PeerContext) -> Decision:
    """Become a member."""
    guard_backbone(network_number(request), "join")
    network = _network(desk, request)
    node = desk.directory.node(node_number(request))
    desk.require_signature_or_admin(node, request, peer)
    return decide_join(desk.directory, network, node.record.id, text(request, "token"))


def leave_network(desk: Desk, request: Request, peer: PeerContext) -> Decision:
    """End a membership."""
    guard_backbone(network_number(request), "leave")
    node = desk.directory.node(node_number(request))
    desk.require_signature_or_admin(node, request, peer)
    return decide_leave(desk.directory, _network(desk, request), node.record.id)


def delete_network(desk: Desk, request: Request, _: PeerContext) -> Decision:
    """End a network."""
    guard_backbone(network_number(request), "delete")
    network = _network(desk, request)
    desk.require_role(network, request, node_number(request), OWNER_ONLY)
    return decide_delete(network)


def rename_network(desk: Desk, request: Request, _: PeerContext) -> Decision:
    """Give a network another name."""
    guard_backbone(network_number(request), "rename")
    network = _network(desk, request)
    desk.require_role(network, request, node_number(request), OWNER_OR_ADMIN)
    return decide_rename(desk.directory, network, text(request, "name"))


def list_networks(desk: Desk, request: Request, _: PeerContext) -> Reply:
    """Tell which networks there are."""
    admin = desk.is_admin(request)
    networks = sorted(desk.directory.networks.by_id.items())
    rows = [_network_row(desk, network, admin=admin) for _, network in networks]
    return {"type": "list_networks_ok", "networks": rows}


def set_network_policy(desk: Desk, request: Request, _: PeerContext) -> Decision:
    """Change the policy of a network; what is not named stays as it is."""
    network = _network(desk, request)
    desk.require_role(network, request, node_number(request), OWNER_OR_ADMIN)
    require_enterprise(network)
    kept = network.record
    members, ports, description = kept.max_members, kept.ports, kept.description
    if "max_members" in request:
        members = number(request, "max_members", MAX_NODE)
    if "allowed_ports" in request:
        listed = request["allowed_ports"]
        # What is no port at all becomes 0 and is refused there.
        ports = tuple(
            number({"port": port}, "port", MAX_NODE)
            for port in (listed if isinstance(listed, list) else ())
        )
    if "description" in request:
        description = text(request, "description")
    return decide_set_policy(network, members, ports, description)


def get_network_policy(desk: Desk, request: Request, _: PeerContext) -> Reply:
    """Tell the policy of a network."""
    record = _network(desk, request).record
    return {
        "type": "get_network_policy_ok",
        "network_id": record.id,
        "max_members": record.max_members,
        "allowed_ports": list(record.ports),
        "description": record.description,
    }


def set_expr_policy(desk: Desk, request: Request, _: PeerContext) -> Decision:
    """Store or clear the expression policy of a network."""
    network = _network(desk, request)
    desk.require_role(network, request, node_number(request), OWNER_OR_ADMIN)
    guard_backbone(network.record.id, "set a policy for")
    return decide_set_expr_policy(network, checked_policy(request))


def get_expr_policy(desk: Desk, request: Request, _: PeerContext) -> Reply:
    """Tell the expression policy of a network."""
    record = _network(desk, request).record
    reply: Reply = {"type": "get_expr_policy_ok", "network_id": record.id}
    if record.policy:
        reply["expr_policy"] = record.policy
    return reply


def _network(desk: Desk, request: Request) -> Network:
    return desk.directory.network(network_number(request))


def _network_row(desk: Desk, network: Network, *, admin: bool) -> dict[str, Any]:
    record = network.record
    row: dict[str, Any] = {
        "id": record.id,
        "name": record.name,
        "join_rule": record.rule,
        "enterprise": record.enterprise,
        "created": record.created,
    }
    if admin and record.id:
        row["members"] = len(network.members)
    elif admin:
        row["members"] = len(desk.directory.nodes.live)
    if record.max_members:
        row["max_members"] = record.max_members
    if record.description:
        row["description"] = record.description
    if record.policy:
        row["has_expr_policy"] = True
    return row


def checked_policy(request: Request) -> str:
    """Return the expression policy as text; empty when there is none.

    Raises:
        Refused: It is none that a daemon could read.
    """
    value = request.get("expr_policy")
    if value in (None, "", "null"):
        return ""
    try:
        policy = msgspec.json.decode(value) if isinstance(value, str) else value
    except (msgspec.DecodeError, RecursionError, ValueError):
        raise Refused("expr_policy: invalid JSON") from None
    if not isinstance(policy, dict) or policy.get("version") != 1:
        raise Refused("expr_policy: invalid version, must be 1")
    if not policy.get("rules"):
        raise Refused("expr_policy: requires rules")
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


HANDLERS: Final[dict[str, Handler]] = {
    "create_network": create_network,
    "join_network": join_network,
    "leave_network": leave_network,
    "delete_network": delete_network,
    "rename_network": rename_network,
    "list_networks": list_networks,
    "set_network_policy": set_network_policy,
    "get_network_policy": get_network_policy,
    "set_expr_policy": set_expr_policy,
    "get_expr_policy": get_expr_policy,
}
