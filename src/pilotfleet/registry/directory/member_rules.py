"""Roles, tags and invitations of network members (registry.md section 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from pilotfleet.registry.directory.decision import Decision
from pilotfleet.registry.directory.network_rules import (
    ADMIN,
    MEMBER,
    OWNER,
    join_changes,
    require_enterprise,
)
from pilotfleet.registry.directory.records import (
    InviteRecord,
    encode_record,
    invite_key,
    member_key,
    network_key,
    node_key,
)
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.store.base import Change

if TYPE_CHECKING:
    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.directory.networks import Member, Network

__all__ = [
    "INVITE_LIFE_S",
    "decide_demote",
    "decide_invite",
    "decide_kick",
    "decide_promote",
    "decide_respond_invite",
    "decide_set_member_tags",
    "decide_transfer",
    "require_member",
]

MAX_INVITES: Final = 100
INVITE_LIFE_S: Final = 30 * 86_400


def require_member(network: Network, node: int) -> Member:
    """Return a membership.

    Raises:
        Refused: The node is no member.
    """
    member = network.members.get(node)
    if member is None:
        raise Refused(f"node {node} is not a member of network {network.record.id}")
    return member


def decide_invite(
    directory: Directory, network: Network, inviter: int, target: int, *, now: int
) -> Decision:
    """Invite ``target`` into an invite-only network.

    Raises:
        Refused: The rule, the inviter's role or the target forbids it.
    """
    number = network.record.id
    if inviter == target:
        raise Refused("cannot invite yourself")
    require_enterprise(network)
    if network.record.rule != "invite":
        rule = network.record.rule
        raise Refused(f"network {number} is not invite-only (rule: {rule})")
    role = network.role(inviter)
    if not role:
        raise Refused(f"inviter {inviter} is not a member of network {number}")
    if role not in (OWNER, ADMIN):
        raise Refused(
            f'rbac: inviter {inviter} has role "{role}", requires owner or admin'
        )
    directory.node(target)
    if target in network.members:
        raise Refused(f"node {target} is already a member of network {number}")
    return _invite(directory, number, inviter, target, now)


def decide_respond_invite(
    directory: Directory, network: Network, node: int, *, accept: bool, now: int
) -> Decision:
    """Accept or decline an invitation. An expired one is dropped unanswered.

    Raises:
        Refused: There is no invitation, or no room in the network.
    """
    number = network.record.id
    invite = directory.networks.invites.get(node, {}).get(number)
    if invite is None:
        raise Refused(f"no pending invite for node {node} to network {number}")
    if now - invite.record.at > INVITE_LIFE_S:
        raise Refused(f"invite for node {node} to network {number} has expired")
    forget = Change(invite_key(node, number), None, None)
    reply = {
        "type": "respond_invite_ok",
        "accepted": accept,
        "network_id": number,
    }
    if not accept:
        return Decision(reply, [forget])
    locks = (node_key(node), network_key(number))
    # The invitation goes last: while it is there, accepting can be repeated.
    joined = [] if node in network.members else join_changes(directory, network, node)
    return Decision(reply, [*joined, forget], locks=locks)


def decide_kick(network: Network, target: int) -> Decision:
    """End the membership of ``target``.

    Raises:
        Refused: It is no member, or the owner.
    """
    if require_member(network, target).record.role == OWNER:
        raise Refused("cannot kick the network owner")
    number = network.record.id
    reply = {
        "type": "kick_member_ok",
        "network_id": number,
        "target_node_id": target,
    }
    change = Change(member_key(number, target), None, None)
    return Decision(reply, [change], locks=(node_key(target),))


def decide_promote(network: Network, target: int) -> Decision:
    """Make a member an admin.

    Raises:
        Refused: It is the owner, an admin or no member.
    """
    role = require_member(network, target).record.role
    if role == OWNER:
        raise Refused("cannot promote the owner")
    if role == ADMIN:
        raise Refused(f"node {target} is already an admin")
    return _give_role(network, target, ADMIN, "promote_member_ok")


def decide_demote(network: Network, target: int) -> Decision:
    """Make an admin a member.

    Raises:
        Refused: It is the owner or no admin.
    """
    role = require_member(network, target).record.role
    if role == OWNER:
        raise Refused("cannot demote the owner")
    if role != ADMIN:
        raise Refused(f"node {target} is already a member")
    return _give_role(network, target, MEMBER, "demote_member_ok")


def decide_transfer(network: Network, owner: int, heir: int) -> Decision:
    """Make ``heir`` the owner and the old owner an admin.

    Raises:
        Refused: The heir is not fit for it.
    """
    if not heir:
        raise Refused("new_owner_id is required")
    require_member(network, heir)
    if network.role(heir) == OWNER:
        raise Refused(f"node {heir} is already the owner")
    changes = [_role_change(network, heir, OWNER)]
    if network.role(owner) == OWNER:
        changes.append(_role_change(network, owner, ADMIN))
    reply = {
        "type": "transfer_ownership_ok",
        "network_id": network.record.id,
        "old_owner": owner,
        "new_owner": heir,
    }
    return Decision(reply, changes, locks=(network_key(network.record.id),))


def decide_set_member_tags(
    network: Network, target: int, tags: tuple[str, ...]
) -> Decision:
    """Give a member tags that were normalised.

    Raises:
        Refused: It is no member.
    """
    member = require_member(network, target)
    record = msgspec.structs.replace(member.record, tags=tags)
    number = network.record.id
    reply = {
        "type": "set_member_tags_ok",
        "network_id": number,
        "target_node_id": target,
        "tags": list(tags),
    }
    key = member_key(number, target)
    return Decision(reply, [Change(key, encode_record(record), member.revision)])


def _invite(
    directory: Directory, network: int, inviter: int, target: int, now: int
) -> Decision:
    reply = {
        "type": "invite_to_network_ok",
        "network_id": network,
        "target_node_id": target,
    }
    waiting = directory.networks.invites.get(target, {})
    old = waiting.get(network)
    if old is not None and now - old.record.at <= INVITE_LIFE_S:
        return Decision({**reply, "status": "already_invited"})
    expired = [
        Change(invite_key(target, other), None, None)
        for other, invite in waiting.items()
        if now - invite.record.at > INVITE_LIFE_S and other != network
    ]
    if old is None and len(waiting) - len(expired) >= MAX_INVITES:
        raise Refused(f"invite inbox full for node {target}")
    record = encode_record(InviteRecord(inviter, now))
    expected = 0 if old is None else old.revision
    changes = [Change(invite_key(target, network), record, expected), *expired]
    # All invitations of a node count towards one bound.
    return Decision(reply, changes, locks=(f"invites.{target}",))


def _give_role(network: Network, node: int, role: str, reply_type: str) -> Decision:
    reply = {
        "type": reply_type,
        "network_id": network.record.id,
        "target_node_id": node,
        "role": role,
    }
    return Decision(reply, [_role_change(network, node, role)])


def _role_change(network: Network, node: int, role: str) -> Change:
    member = network.members[node]
    record = msgspec.structs.replace(member.record, role=role)
    key = member_key(network.record.id, node)
    return Change(key, encode_record(record), member.revision)
