"""How networks are made, changed and ended (registry.md section 7)."""

from __future__ import annotations

from dataclasses import dataclass
from hmac import compare_digest
from typing import TYPE_CHECKING, Final

import msgspec

from pilotfleet.errors import InvalidArgument
from pilotfleet.protocol.address import BACKBONE, Address
from pilotfleet.protocol.registry.names import check_network_name
from pilotfleet.registry.directory.decision import Decision
from pilotfleet.registry.directory.records import (
    Claim,
    MemberRecord,
    NetworkRecord,
    encode_record,
    invite_key,
    member_key,
    netname_key,
    network_key,
    node_key,
)
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.store.base import Change

if TYPE_CHECKING:
    from pilotfleet.protocol.registry.messages import Reply
    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.directory.networks import Network

__all__ = [
    "ADMIN",
    "MEMBER",
    "OWNER",
    "NewNetwork",
    "check_policy",
    "check_settings",
    "decide_create",
    "decide_delete",
    "decide_join",
    "decide_leave",
    "decide_rename",
    "decide_set_expr_policy",
    "decide_set_policy",
    "guard_backbone",
    "join_changes",
    "require_enterprise",
    "same_secret",
]

OWNER: Final = "owner"
ADMIN: Final = "admin"
MEMBER: Final = "member"

RULES: Final = ("open", "token", "invite")
MAX_MEMBERS: Final = 10_000
MAX_PORTS: Final = 100
MAX_DESCRIPTION: Final = 256
MAX_TOKEN: Final = 1024
MAX_POLICY: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class NewNetwork:
    """A request to create a network."""

    name: str
    rule: str
    token: str
    enterprise: bool
    admin_token: str
    policy: str = ""
    """Expression policy."""


def same_secret(given: str, expected: str) -> bool:
    """Compare in constant time; an empty expectation is met by nothing."""
    return bool(expected) and compare_digest(given.encode(), expected.encode())


def guard_backbone(network: int, verb: str) -> None:
    """Refuse what cannot be done with the backbone."""
    if network == BACKBONE:
        raise Refused(f"cannot {verb} the backbone network")


def require_enterprise(network: Network) -> None:
    """Refuse what needs an enterprise network."""
    if not network.record.enterprise:
        raise Refused("enterprise feature: requires enterprise network")


def decide_create(
    directory: Directory, creator: int | None, asked: NewNetwork, *, now: int
) -> Decision:
    """Create a network; its creator becomes the owner, if it has one.

    Raises:
        Refused: The creator, the name or the rule is not acceptable.
    """
    _check_name(directory, asked.name)
    if creator is not None and directory.nodes.get_live(creator) is None:
        raise Refused(f"node {creator} not registered")
    check_settings(asked)
    number = directory.networks.reserve_id()
    record = NetworkRecord(
        number,
        asked.name,
        asked.rule,
        now,
        token=asked.token,
        admin_token=asked.admin_token,
        enterprise=asked.enterprise,
        policy=asked.policy,
    )
    changes = [
        _name_claim(directory, asked.name, number),
        Change(network_key(number), encode_record(record), 0),
    ]
    locks: tuple[str, ...] = ()
    if creator is not None:
        owner = encode_record(MemberRecord(OWNER))
        changes.append(Change(member_key(number, creator), owner, 0))
        locks = (node_key(creator),)
    reply = {
        "type": "create_network_ok",
        "network_id": number,
        "name": asked.name,
        "enterprise": asked.enterprise,
    }
    return Decision(reply, changes, locks=locks)


def decide_join(
    directory: Directory, network: Network, node: int, token: str
) -> Decision:
    """Make ``node`` a member.

    Raises:
        Refused: The join rule, the limit, or it is one already.
    """
    record = network.record
    if record.rule == "token" and not same_secret(token, record.token):
        raise Refused(f"invalid token for network {record.id}")
    if record.rule == "invite":
        raise Refused(
            "invite-only networks require invite_to_network + respond_invite flow"
        )
    reply = {
        "type": "join_network_ok",
        "network_id": record.id,
        "address": str(Address(record.id, node)),
    }
    changes = join_changes(directory, network, node)
    return Decision(reply, changes, locks=_join_locks(network, node))


def join_changes(directory: Directory, network: Network, node: int) -> list[Change]:
    """Return what makes ``node`` a member, in the role that waits for it.

    Raises:
        Refused: The network is full, or the node a member.
    """
    record = network.record
    if node in network.members:
        raise Refused(f"node {node} already in network {record.id}")
    if record.max_members and len(network.members) >= record.max_members:
        raise Refused("network membership limit reached")
    member = MemberRecord(_assigned_role(directory, network, node))
    return [Change(member_key(record.id, node), encode_record(member), 0)]


def decide_leave(directory: Directory, network: Network, node: int) -> Decision:
    """End a membership, and the node's invitations to and from the network.

    Raises:
        Refused: It is no member, or the owner of an enterprise network.
    """
    number = network.record.id
    if node not in network.members:
        raise Refused(f"node {node} is not a member of network {number}")
    if network.record.enterprise and network.role(node) == OWNER:
        raise Refused("cannot leave network: owner must transfer ownership first")
    networks = directory.networks
    invites = {pair for pair in networks.sent.get(node, ()) if pair[1] == number}
    if number in networks.invites.get(node, ()):
        invites.add((node, number))
    changes = [Change(invite_key(*pair), None, None) for pair in sorted(invites)]
    changes.append(Change(member_key(number, node), None, None))
    reply = {"type": "leave_network_ok", "network_id": number}
    return Decision(reply, changes, locks=(node_key(node),))


def decide_delete(network: Network) -> Decision:
    """End a network.

    Only its tombstone is written: what hangs on the network is void from then
    on and deleted in the background, since there may be 100,000 memberships.
    """
    record = network.record
    tombstone = encode_record(NetworkRecord(record.id, deleted=True))
    changes = [
        Change(network_key(record.id), tombstone, network.revision),
        Change(netname_key(record.name), None, None),
    ]
    return Decision({"type": "delete_network_ok", "network_id": record.id}, changes)


def decide_rename(directory: Directory, network: Network, name: str) -> Decision:
    """Give a network another name.

    Raises:
        Refused: The name is not allowed or taken.
    """
    record = network.record
    reply = {"type": "rename_network_ok", "network_id": record.id, "name": name}
    if name == record.name:
        return Decision(reply)
    _check_name(directory, name)
    renamed = encode_record(msgspec.structs.replace(record, name=name))
    changes = [
        _name_claim(directory, name, record.id),
        Change(network_key(record.id), renamed, network.revision),
        Change(netname_key(record.name), None, None),
    ]
    return Decision(reply, changes)


def decide_set_policy(
    network: Network, max_members: int, ports: tuple[int, ...], description: str
) -> Decision:
    """Replace the policy of a network.

    Raises:
        Refused: A value is out of its range.
    """
    check_policy(max_members, ports, description)
    record = msgspec.structs.replace(
        network.record,
        max_members=max_members,
        ports=ports,
        description=description,
    )
    reply = {
        "type": "set_network_policy_ok",
        "network_id": record.id,
        "max_members": max_members,
        "allowed_ports": list(ports),
        "description": description,
    }
    return _change(network, record, reply)


def check_settings(asked: NewNetwork) -> None:
    """Check what a network is made with, but for its name.

    Raises:
        Refused: The rule is unknown or not to be had, or a text is too long.
    """
    if asked.rule not in RULES:
        raise Refused(f'invalid join rule "{asked.rule[:32]}"')
    if asked.rule == "invite" and not asked.enterprise:
        raise Refused(
            "enterprise feature: invite-only networks require the enterprise flag"
        )
    if max(len(asked.token), len(asked.admin_token)) > MAX_TOKEN:
        raise Refused(f"token too long (max {MAX_TOKEN} chars)")
    _check_expr_policy(asked.policy)


def check_policy(max_members: int, ports: tuple[int, ...], description: str) -> None:
    """Check the limits of a network.

    Raises:
        Refused: A value is out of its range.
    """
    if max_members > MAX_MEMBERS:
        raise Refused(f"invalid max_members: must be 0 to {MAX_MEMBERS}")
    if len(ports) > MAX_PORTS:
        raise Refused(f"too many allowed_ports (max {MAX_PORTS})")
    if not all(0 < port <= 0xFFFF for port in ports):
        raise Refused("invalid allowed_ports: must be 1 to 65535")
    if len(description.encode()) > MAX_DESCRIPTION:
        raise Refused(f"description too long (max {MAX_DESCRIPTION} chars)")


def decide_set_expr_policy(network: Network, policy: str) -> Decision:
    """Store an expression policy unread; empty clears it.

    Raises:
        Refused: It is too long.
    """
    _check_expr_policy(policy)
    record = msgspec.structs.replace(network.record, policy=policy)
    reply: Reply = {"type": "set_expr_policy_ok", "network_id": record.id}
    if not policy:
        reply["cleared"] = True
    return _change(network, record, reply)


def _change(network: Network, record: NetworkRecord, reply: Reply) -> Decision:
    if record == network.record:
        return Decision(reply)
    change = Change(network_key(record.id), encode_record(record), network.revision)
    return Decision(reply, [change])


def _check_expr_policy(policy: str) -> None:
    if len(policy.encode()) > MAX_POLICY:
        raise Refused(f"expr_policy: too long (max {MAX_POLICY} bytes)")


def _check_name(directory: Directory, name: str) -> None:
    try:
        check_network_name(name)
    except InvalidArgument as error:
        raise Refused(str(error)) from None
    if directory.networks.named(name) is not None:
        raise Refused(f'network "{name}" already exists')


def _name_claim(directory: Directory, name: str, number: int) -> Change:
    expected = directory.networks.name_revision(name)
    return Change(netname_key(name), encode_record(Claim(number)), expected)


def _assigned_role(directory: Directory, network: Network, node: int) -> str:
    """Return the role that the administrator has kept for a node's external ID."""
    found = directory.nodes.get_live(node)
    if not network.record.roles or found is None:
        return MEMBER
    role = dict(network.record.roles).get(found.record.external.lower(), MEMBER)
    owned = any(member.record.role == OWNER for member in network.members.values())
    return ADMIN if role == OWNER and owned else role


def _join_locks(network: Network, node: int) -> tuple[str, ...]:
    # A limit is kept by admitting one at a time; without one, a whole fleet
    # joins in parallel.
    own = (node_key(node),)
    limited = network.record.max_members
    return (*own, network_key(network.record.id)) if limited else own
