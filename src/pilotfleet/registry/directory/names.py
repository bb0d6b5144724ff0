"""Hostnames, tags and flags of nodes (registry.md section 6.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from pilotfleet.errors import InvalidArgument
from pilotfleet.protocol.registry.names import check_hostname
from pilotfleet.registry.directory.decision import Decision
from pilotfleet.registry.directory.records import (
    Claim,
    encode_record,
    host_key,
    node_key,
)
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.store.base import Change

if TYPE_CHECKING:
    from pilotfleet.protocol.registry.messages import Reply
    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.directory.nodes import Node
    from pilotfleet.registry.directory.records import NodeRecord

__all__ = [
    "change_node",
    "decide_set_hostname",
    "decide_set_tags",
    "decide_set_task_exec",
    "decide_set_visibility",
    "hostname_holder",
    "hostname_problem",
]


def hostname_holder(directory: Directory, name: str) -> Node | None:
    """Return the live node that has a hostname."""
    claim = directory.hosts.get(name)
    node = None if claim is None else directory.nodes.get_live(claim.node)
    # A node shows its newest name; an older claim is what a renaming that was
    # cut short has left, and free.
    return node if node is not None and node.hostname == name else None


def hostname_problem(directory: Directory, name: str, node: int) -> str:
    """Return why ``node`` cannot have ``name``; empty when it can."""
    try:
        check_hostname(name)
    except InvalidArgument as error:
        return str(error)
    holder = hostname_holder(directory, name)
    if holder is None or holder.record.id == node:
        return ""
    return f'hostname "{name}" already in use'


def decide_set_hostname(directory: Directory, node: Node, name: str) -> Decision:
    """Give ``node`` a hostname whose form was checked; empty clears it.

    Raises:
        Refused: Another live node has it.
    """
    number = node.record.id
    holder = hostname_holder(directory, name)
    if holder is not None and holder is not node:
        other = holder.record.id
        raise Refused(f'hostname "{name}" already in use by node {other}')
    changes = []
    if name and name != node.hostname:
        claim = directory.hosts.get(name)
        expected = 0 if claim is None else claim.revision
        changes.append(Change(host_key(name), encode_record(Claim(number)), expected))
    if node.hostname and name != node.hostname:
        changes.append(Change(host_key(node.hostname), None, None))
    reply = {"type": "set_hostname_ok", "node_id": number, "hostname": name}
    return Decision(reply, changes, locks=(node_key(number),))


def decide_set_tags(node: Node, tags: tuple[str, ...]) -> Decision:
    """Give ``node`` tags that were normalised."""
    number = node.record.id
    reply = {"type": "set_tags_ok", "node_id": number, "tags": list(tags)}
    return change_node(node, msgspec.structs.replace(node.record, tags=tags), reply)


def decide_set_visibility(node: Node, *, public: bool) -> Decision:
    """Make ``node`` public or private."""
    reply = {
        "type": "set_visibility_ok",
        "node_id": node.record.id,
        "visibility": "public" if public else "private",
    }
    record = msgspec.structs.replace(node.record, public=public)
    return change_node(node, record, reply)


def decide_set_task_exec(node: Node, *, enabled: bool) -> Decision:
    """Say whether ``node`` executes tasks."""
    reply = {
        "type": "set_task_exec_ok",
        "node_id": node.record.id,
        "task_exec": enabled,
    }
    record = msgspec.structs.replace(node.record, task_exec=enabled)
    return change_node(node, record, reply)


def change_node(node: Node, record: NodeRecord, reply: Reply) -> Decision:
    """Decide to replace a node's record, if that makes a difference."""
    key = node_key(record.id)
    if record == node.record:
        return Decision(reply, locks=(key,))
    return Decision(reply, [Change(key, encode_record(record), node.revision)])
