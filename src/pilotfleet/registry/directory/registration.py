"""How nodes come and go (registry.md sections 6.1, 6.2 and 9)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from pilotfleet.protocol.address import BACKBONE, Address
from pilotfleet.protocol.identity import encode_key_text
from pilotfleet.registry.directory.decision import Decision
from pilotfleet.registry.directory.names import hostname_problem
from pilotfleet.registry.directory.records import (
    Claim,
    NodeRecord,
    encode_record,
    host_key,
    invite_key,
    key_key,
    member_key,
    node_key,
    owner_key,
)
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.store.base import Change

if TYPE_CHECKING:
    from pilotfleet.protocol.registry.messages import Reply
    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.directory.nodes import Node

__all__ = ["Registration", "decide_deregister", "decide_reap", "decide_register"]

PROTOCOL_VERSION: Final = 1
DEAD_PER_LIVE: Final = 4
"""Records kept, dead ones included, for each live node that is allowed."""


class Registration(msgspec.Struct, frozen=True, gc=False):
    """A request to register whose form was checked."""

    key: bytes
    endpoint: str
    """What rule 1 says to store."""
    verified: bool
    """The request was signed by ``key``."""
    owner: str = ""
    lan: tuple[str, ...] = ()
    version: str = ""
    relay_only: bool = False
    hostname: str = ""


@dataclass(slots=True)
class _Outcome:
    """A registration while it is being decided."""

    record: NodeRecord
    changes: list[Change] = field(default_factory=list)
    hostname: str = ""
    """The name of the node before the request."""
    reserved: int = 0
    is_new: bool = False
    """The registry knows nothing of the node but this registration."""


def decide_register(
    directory: Directory, asked: Registration, *, now: int, max_nodes: int
) -> Decision:
    """Apply rules 4 and 6 to 9.

    Raises:
        Refused: The key is protected, the owner has another node, or there is
            no room.
    """
    outcome = _decide(directory, asked, now, max_nodes)
    reply = _reply(outcome.record)
    if outcome.is_new:
        reply["new"] = True
    _name(directory, outcome, asked.hostname, reply)
    return Decision(
        reply,
        outcome.changes,
        locks=(node_key(outcome.record.id), key_key(asked.key)),
        seen=outcome.record.id,
        reserved=outcome.reserved,
    )


def decide_deregister(directory: Directory, node: Node) -> Decision:
    """Remove a live node, its name, memberships and invitations.

    The node's record changes last: a repetition of a deregistration that was
    cut short finds the node still there and completes it.
    """
    number = node.record.id
    changes = [Change(member_key(n, number), None, None) for n in node.networks]
    networks = directory.networks
    invited = [invite_key(number, n) for n in networks.invites.get(number, ())]
    sent = [invite_key(*pair) for pair in networks.sent.get(number, ())]
    changes += [Change(key, None, None) for key in {*invited, *sent}]
    changes += _end(node)
    return Decision({"type": "deregister_ok"}, changes, locks=(node_key(number),))


def decide_reap(node: Node, *, is_stale: bool) -> Decision:
    """Remove a node that was not heard for long; it keeps its memberships."""
    changes = _end(node) if is_stale else []
    return Decision({}, changes, locks=(node_key(node.record.id),))


def _end(node: Node) -> list[Change]:
    """Return the changes by which a node dies: nothing but its ID stays."""
    changes = []
    if node.hostname:
        changes.append(Change(host_key(node.hostname), None, None))
    record = node.record
    ended = NodeRecord(
        record.id,
        record.key,
        record.created,
        live=False,
        owner=record.owner,
        verified=record.verified,
        rotated=record.rotated,
        rotations=record.rotations,
        external=record.external,
    )
    return [*changes, _node_change(ended, node.revision)]


def _decide(
    directory: Directory, asked: Registration, now: int, max_nodes: int
) -> _Outcome:
    nodes = directory.nodes
    known = nodes.by_id.get(nodes.by_key.get(asked.key, 0))
    if known is not None and known.record.live:
        return _refresh(directory, known, asked)
    if len(nodes.live) >= max_nodes:
        raise Refused("registry full")
    if known is not None:
        return _revive(directory, known, asked, now)
    bound = nodes.by_id.get(nodes.by_owner.get(asked.owner, 0))
    if bound is not None:
        return _take_over(directory, bound, asked, now)
    # Dead nodes keep their IDs; that memory needs a bound as well.
    if len(nodes.by_id) >= DEAD_PER_LIVE * max_nodes:
        raise Refused("registry full")
    return _create(directory, asked, now)


def _refresh(directory: Directory, node: Node, asked: Registration) -> _Outcome:
    """Rules 4 and 6: the key is known and its node live."""
    record = node.record
    if record.verified and not asked.verified:
        raise Refused(
            f"node {record.id}: unsigned registration cannot modify"
            " a signature-verified key"
        )
    claims: list[Change] = []
    owner = record.owner
    if not owner and asked.owner and asked.owner not in directory.nodes.by_owner:
        owner = asked.owner
        claims = _owner_claim(directory, owner, record.id)
    renewed = msgspec.structs.replace(
        record,
        endpoint=asked.endpoint,
        lan=asked.lan,
        version=asked.version or record.version,
        relay_only=asked.relay_only,
        owner=owner,
        verified=record.verified or asked.verified,
    )
    # Most registrations of a live node repeat the last one: nothing to store.
    if renewed == record:
        return _Outcome(record, hostname=node.hostname)
    changes = [*claims, _node_change(renewed, node.revision)]
    return _Outcome(renewed, changes, node.hostname)


def _revive(
    directory: Directory, node: Node, asked: Registration, now: int
) -> _Outcome:
    """Rule 7: the key is known and its node dead."""
    number = node.record.id
    owner = node.record.owner
    claims: list[Change] = []
    if not owner and asked.owner and asked.owner not in directory.nodes.by_owner:
        owner = asked.owner
        claims = _owner_claim(directory, owner, number)
    record = _new_record(number, asked, owner, now)
    record = msgspec.structs.replace(
        record,
        rotated=node.record.rotated,
        rotations=node.record.rotations,
        external=node.record.external,
    )
    return _Outcome(record, [*claims, *_forget_name(node), _record(node, record)])


def _take_over(
    directory: Directory, node: Node, asked: Registration, now: int
) -> _Outcome:
    """Rule 8: the key is new, the owner known."""
    old = node.record
    if old.live:
        raise Refused(
            f'owner "{asked.owner}" is already bound to node {old.id} with a'
            " different key; use recover_identity to rotate the key"
        )
    record = _new_record(old.id, asked, asked.owner, now)
    changes = [
        _key_claim(directory, asked.key, old.id),
        *_forget_name(node),
        _record(node, record),
        Change(key_key(old.key), None, None),
    ]
    return _Outcome(record, changes)


def _create(directory: Directory, asked: Registration, now: int) -> _Outcome:
    """Rule 9: a node that was never here."""
    nodes = directory.nodes
    # A claim without its node is left when a registration was cut short, or
    # seen while another replica completes it: go on with the same ID.
    orphan = nodes.orphans.get(key_key(asked.key))
    if orphan is not None and orphan.id not in nodes.by_id:
        number, claims, reserved = orphan.id, [], 0
    else:
        number = reserved = nodes.reserve_id()
        claims = [_key_claim(directory, asked.key, number)]
    if asked.owner:
        claims += _owner_claim(directory, asked.owner, number)
    record = _new_record(number, asked, asked.owner, now)
    changes = [*claims, _node_change(record, 0)]
    return _Outcome(record, changes, reserved=reserved, is_new=True)


def _name(directory: Directory, outcome: _Outcome, hostname: str, reply: Reply) -> None:
    """Give the node the hostname it asks for, or say why not."""
    number = outcome.record.id
    name = outcome.hostname
    if hostname and hostname != name:
        problem = hostname_problem(directory, hostname, number)
        if problem:
            reply["hostname_error"] = problem
        else:
            claimed = directory.hosts.get(hostname)
            expected = 0 if claimed is None else claimed.revision
            value = encode_record(Claim(number))
            outcome.changes.append(Change(host_key(hostname), value, expected))
            if name:
                outcome.changes.append(Change(host_key(name), None, None))
            name = hostname
    if name:
        reply["hostname"] = name


def _reply(record: NodeRecord) -> Reply:
    return {
        "type": "register_ok",
        "node_id": record.id,
        "network_id": BACKBONE,
        "address": str(Address(BACKBONE, record.id)),
        "public_key": encode_key_text(record.key),
        "observed_addr": record.endpoint,
        "protocol_version": PROTOCOL_VERSION,
    }


def _new_record(number: int, asked: Registration, owner: str, now: int) -> NodeRecord:
    return NodeRecord(
        number,
        asked.key,
        now,
        owner=owner,
        endpoint=asked.endpoint,
        lan=asked.lan,
        version=asked.version,
        relay_only=asked.relay_only,
        verified=asked.verified,
    )


def _record(node: Node, record: NodeRecord) -> Change:
    return _node_change(record, node.revision)


def _node_change(record: NodeRecord, expected: int) -> Change:
    return Change(node_key(record.id), encode_record(record), expected)


def _forget_name(node: Node) -> list[Change]:
    """Drop a name that outlived its node because a write was cut short."""
    return [Change(host_key(node.hostname), None, None)] if node.hostname else []


def _key_claim(directory: Directory, key: bytes, number: int) -> Change:
    orphan = directory.nodes.orphans.get(key_key(key))
    expected = 0 if orphan is None else orphan.revision
    return Change(key_key(key), encode_record(Claim(number)), expected)


def _owner_claim(directory: Directory, owner: str, number: int) -> list[Change]:
    key = owner_key(owner)
    orphan = directory.nodes.orphans.get(key)
    expected = 0 if orphan is None else orphan.revision
    return [Change(key, encode_record(Claim(number)), expected)]
