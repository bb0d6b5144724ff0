"""Replacing and limiting keys (registry.md sections 6.13 and 6.14)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from pilotfleet.protocol.identity import encode_key_text
from pilotfleet.registry.directory.decision import Decision
from pilotfleet.registry.directory.names import change_node
from pilotfleet.registry.directory.records import (
    Claim,
    encode_record,
    key_key,
    node_key,
)
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.store.base import Change

if TYPE_CHECKING:
    from pilotfleet.protocol.registry.messages import Reply
    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.directory.nodes import Node

__all__ = ["decide_rotate_key", "decide_set_key_expiry", "key_age_days"]

DAY_S: Final = 86_400
MAX_EXPIRY_S: Final = 3653 * DAY_S
"""A key may be set to expire at most ten years ahead."""


def key_age_days(node: Node, now: float) -> int:
    """Return the whole days since the key was made or last replaced."""
    since = max(node.record.rotated, node.record.created)
    return max(0, int(now - since)) // DAY_S


def decide_rotate_key(
    directory: Directory, node: Node, new_key: bytes, *, now: int
) -> Decision:
    """Replace the key of ``node``, which its old key has signed.

    Raises:
        Refused: Some node has, or had, the new key.
    """
    old = node.record
    if new_key in directory.nodes.by_key:
        raise Refused("invalid new_public_key: key is already in use")
    orphan = directory.nodes.orphans.get(key_key(new_key))
    record = msgspec.structs.replace(
        old, key=new_key, rotated=now, rotations=old.rotations + 1, verified=True
    )
    claim = encode_record(Claim(old.id))
    changes = [
        Change(key_key(new_key), claim, 0 if orphan is None else orphan.revision),
        Change(node_key(old.id), encode_record(record), node.revision),
        Change(key_key(old.key), None, None),
    ]
    reply = {
        "type": "rotate_key_ok",
        "node_id": old.id,
        "address": node.address,
        "public_key": encode_key_text(new_key),
    }
    return Decision(reply, changes)


def decide_set_key_expiry(
    directory: Directory, node: Node, expires: int, reply: Reply, *, now: float
) -> Decision:
    """Set when the key of ``node`` expires; 0: never.

    Raises:
        Refused: The time is not allowed, or the node in no enterprise network.
    """
    networks = map(directory.network, node.networks)
    if not any(network.record.enterprise for network in networks):
        raise Refused(
            "enterprise feature: key expiry requires enterprise network membership"
        )
    if expires and expires <= now:
        raise Refused("expires_at must be in the future")
    if expires > now + MAX_EXPIRY_S:
        raise Refused("expires_at cannot be more than 10 years away")
    record = msgspec.structs.replace(node.record, expires=expires)
    return change_node(node, record, reply)
