"""Messages about the members of a network (registry.md section 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.protocol.registry.messages import (
    Reply,
    Request,
    flag,
    network_number,
    node_number,
)
from pilotfleet.registry.directory.member_rules import (
    INVITE_LIFE_S,
    decide_demote,
    decide_invite,
    decide_kick,
    decide_promote,
    decide_respond_invite,
    decide_set_member_tags,
    decide_transfer,
    require_member,
)
from pilotfleet.registry.directory.network_rules import (
    ADMIN,
    OWNER,
    guard_backbone,
    require_enterprise,
)
from pilotfleet.registry.handlers.names import checked_tags

if TYPE_CHECKING:
    from pilotfleet.registry.context import PeerContext
    from pilotfleet.registry.desk import Desk, Handler
    from pilotfleet.registry.directory.decision import Decision
    from pilotfleet.registry.directory.networks import Network

__all__ = ["HANDLERS"]


def invite_to_network(desk: Desk, request: Request, peer: PeerContext) -> Decision:
    """Invite a node."""
    network = desk.directory.network(network_number(request))
    inviter = node_number(request, "inviter_id")
    desk.signed_node(request, peer, inviter)
    target = node_number(request, "target_node_id")
    now = int(desk.clock.wall())
    return decide_invite(desk.directory, network, inviter, target, now=now)


def poll_invites(desk: Desk, request: Request, peer: PeerContext) -> Reply:
    """Tell which invitations wait; they go on waiting."""
    number = node_number(request)
    desk.signed_node(request, peer, number)
    oldest = desk.clock.wall() - INVITE_LIFE_S
    invites = desk.directory.networks.invites.get(number, {})
    return {
        "type": "poll_invites_ok",
        "invites": [
            {
                "network_id": network,
                "inviter_id": invite.record.inviter,
                "timestamp": invite.record.at,
            }
            for network, invite in sorted(invites.items())
            if invite.record.at >= oldest
        ],
    }


def respond_invite(desk: Desk, request: Request, peer: PeerContext) -> Decision:
    """Accept or decline an invitation."""
    number = node_number(request)
    desk.signed_node(request, peer, number)
    return decide_respond_invite(
        desk.directory,
        desk.directory.network(network_number(request)),
        number,
        accept=flag(request, "accept"),
        now=int(desk.clock.wall()),
    )


def kick_member(desk: Desk, request: Request, _: PeerContext) -> Decision:
    """Put a member out."""
    guard_backbone(network_number(request), "kick from")
    network = _administered(desk, request, (OWNER, ADMIN))
    require_enterprise(network)
    return decide_kick(network, node_number(request, "target_node_id"))


def promote_member(desk: Desk, request: Request, _: PeerContext) -> Decision:
    """Make a member an admin."""
    network = _administered(desk, request, (OWNER,))
    require_enterprise(network)
    return decide_promote(network, node_number(request, "target_node_id"))


def demote_member(desk: Desk, request: Request, _: PeerContext) -> Decision:
    """Make an admin a member."""
    network = _administered(desk, request, (OWNER,))
    require_enterprise(network)
    return decide_demote(network, node_number(request, "target_node_id"))


def transfer_ownership(desk: Desk, request: Request, _: PeerContext) -> Decision:
    """Make another member the owner."""
    network = _administered(desk, request, (OWNER,))
    require_enterprise(network)
    owner = node_number(request)
    if network.role(owner) != OWNER:
        # Sent with an admin token, which needs no node.
        members = network.members.items()
        owner = next((n for n, m in members if m.record.role == OWNER), 0)
    return decide_transfer(network, owner, node_number(request, "new_owner_id"))


def get_member_role(desk: Desk, request: Request, _: PeerContext) -> Reply:
    """Tell the role of a member."""
    network = desk.directory.network(network_number(request))
    target = node_number(request, "target_node_id")
    return {
        "type": "get_member_role_ok",
        "network_id": network.record.id,
        "target_node_id": target,
        "role": require_member(network, target).record.role,
    }


def set_member_tags(desk: Desk, request: Request, _: PeerContext) -> Decision:
    """Give a member tags within the network."""
    tags = checked_tags(request)
    network = _administered(desk, request, (OWNER, ADMIN))
    target = node_number(request, "target_node_id")
    return decide_set_member_tags(network, target, tags)


def get_member_tags(desk: Desk, request: Request, _: PeerContext) -> Reply:
    """Tell the tags of one member or of all."""
    network = desk.directory.network(network_number(request))
    target = node_number(request, "target_node_id")
    reply: Reply = {"type": "get_member_tags_ok", "network_id": network.record.id}
    if target:
        reply["target_node_id"] = target
        reply["tags"] = list(require_member(network, target).record.tags)
    else:
        members = network.members.items()
        reply["members"] = {str(n): list(member.record.tags) for n, member in members}
    return reply


def _administered(desk: Desk, request: Request, roles: tuple[str, ...]) -> Network:
    network = desk.directory.network(network_number(request))
    desk.require_role(network, request, node_number(request), roles)
    return network


HANDLERS: Final[dict[str, Handler]] = {
    "invite_to_network": invite_to_network,
    "poll_invites": poll_invites,
    "respond_invite": respond_invite,
    "kick_member": kick_member,
    "promote_member": promote_member,
    "demote_member": demote_member,
    "transfer_ownership": transfer_ownership,
    "get_member_role": get_member_role,
    "set_member_tags": set_member_tags,
    "get_member_tags": get_member_tags,
}
