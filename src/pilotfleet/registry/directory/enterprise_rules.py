"""Networks that somebody's directory governs (registry.md section 7.1).

A directory knows people and services by an *external ID*. The administrator says
which node has which; from then on roles follow the directory: those of members at
once, those of others when they join, kept with the network until then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from pilotfleet.registry.directory.decision import Decision
from pilotfleet.registry.directory.names import (
    change_node,
    decide_set_hostname,
    hostname_problem,
)
from pilotfleet.registry.directory.network_rules import (
    ADMIN,
    MEMBER,
    OWNER,
)
from pilotfleet.registry.directory.records import (
    encode_record,
    member_key,
    network_key,
    node_key,
)
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.store.base import Change

if TYPE_CHECKING:
    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.directory.networks import Network
    from pilotfleet.registry.directory.nodes import Node

__all__ = [
    "DirectoryEntry",
    "decide_set_enterprise",
    "decide_set_external",
    "decide_sync",
    "external_of",
    "merge_roles",
]

MAX_EXTERNAL: Final = 256
MAX_ASSIGNED: Final = 1000
_ROLES: Final = frozenset([OWNER, ADMIN, MEMBER])


class DirectoryEntry(NamedTuple):
    """One line of a directory."""

    external: str
    name: str
    role: str
    disabled: bool


def external_of(directory: Directory, node: int) -> str:
    """Return the external ID of a live node; empty when it has none."""
    found = directory.nodes.get_live(node)
    return "" if found is None else found.record.external


def decide_set_external(node: Node, external: str) -> Decision:
    """Say which external ID a node has; empty takes it away.

    Raises:
        Refused: It is too long.
    """
    if len(external) > MAX_EXTERNAL:
        raise Refused(f"external_id too long (max {MAX_EXTERNAL} chars)")
    reply = {
        "type": "set_external_id_ok",
        "node_id": node.record.id,
        "external_id": external,
    }
    return change_node(
        node, msgspec.structs.replace(node.record, external=external), reply
    )


def decide_set_enterprise(network: Network, *, enterprise: bool) -> Decision:
    """Turn roles on, where the first member becomes owner, or off."""
    record = network.record
    reply = {
        "type": "set_network_enterprise_ok",
        "network_id": record.id,
        "enterprise": enterprise,
    }
    if record.enterprise is enterprise:
        return Decision(reply)
    changed = msgspec.structs.replace(record, enterprise=enterprise)
    changes = [Change(network_key(record.id), encode_record(changed), network.revision)]
    has_owner = any(m.record.role == OWNER for m in network.members.values())
    if enterprise and network.members and not has_owner:
        changes.append(_role_change(network, min(network.members), OWNER))
    if not enterprise:
        changes += [
            _role_change(network, node, MEMBER)
            for node, member in network.members.items()
            if member.record.role != MEMBER
        ]
    return Decision(reply, changes)


def merge_roles(
    known: tuple[tuple[str, str], ...], added: dict[str, str]
) -> tuple[tuple[str, str], ...]:
    """Return the roles that are assigned before joining, with others added.

    Raises:
        Refused: A role is unknown or nobody's, or there are too many.
    """
    for external, role in added.items():
        if not external:
            # Whoever has no external ID would be given the role.
            raise Refused("roles: external_id is required")
        if role not in _ROLES:
            raise Refused(f'invalid role "{role[:32]}": must be owner, admin or member')
    merged = {**dict(known), **{key.lower(): role for key, role in added.items()}}
    if len(merged) > MAX_ASSIGNED:
        raise Refused(f"too many role assignments (max {MAX_ASSIGNED})")
    return tuple(sorted(merged.items()))


def decide_sync(
    directory: Directory,
    network: Network,
    entries: list[DirectoryEntry],
    *,
    remove_unlisted: bool,
) -> Decision:
    """Make members, roles and names follow a directory.

    Raises:
        Refused: The network has no roles, or the directory is not acceptable.
    """
    if not network.record.enterprise:
        raise Refused("directory sync requires enterprise network")
    return _Sync(directory, network).decide(entries, remove_unlisted=remove_unlisted)


class _Sync:
    """One run over the entries; gathers the changes and tells what they are."""

    def __init__(self, directory: Directory, network: Network) -> None:
        self._directory = directory
        self._network = network
        self._changes: list[Change] = []
        self._locks: set[str] = set()
        self._actions: list[str] = []
        self._names: set[str] = set()
        self._counts = {"updated": 0, "disabled": 0, "mapped": 0, "unmapped": 0}

    def decide(
        self, entries: list[DirectoryEntry], *, remove_unlisted: bool
    ) -> Decision:
        network = self._network
        members = {
            external_of(self._directory, node).lower(): node for node in network.members
        }
        members.pop("", None)
        assigned: dict[str, str] = {}
        listed = {entry.external.lower() for entry in entries}
        for entry in entries:
            node = members.get(entry.external.lower())
            if node is not None:
                self._counts["mapped"] += 1
                self._follow(node, entry)
                continue
            self._counts["unmapped"] += 1
            if entry.role and not entry.disabled:
                assigned[entry.external] = entry.role
                self._actions.append(f"pre-assigned {entry.role} to {entry.external}")
        if remove_unlisted:
            for external, node in sorted(members.items()):
                if external not in listed:
                    self._remove(node, f"removed node {node}: not listed")
        self._assign(assigned)
        reply: dict[str, Any] = {
            "type": "directory_sync_ok",
            "network_id": network.record.id,
            **self._counts,
            "actions": self._actions,
        }
        return Decision(reply, self._changes, locks=tuple(sorted(self._locks)))

    def _follow(self, node: int, entry: DirectoryEntry) -> None:
        role = self._network.role(node)
        if entry.disabled:
            self._remove(node, f"removed node {node}: {entry.external} is disabled")
            self._counts["disabled"] += 1
            return
        if entry.role not in _ROLES | {""}:
            raise Refused(f'invalid role "{entry.role[:32]}" of {entry.external[:64]}')
        # Who owns a network is its owner's to decide, not a directory's.
        if entry.role and entry.role != role and OWNER not in (entry.role, role):
            self._changes.append(_role_change(self._network, node, entry.role))
            self._counts["updated"] += 1
            self._actions.append(f"set role of node {node} to {entry.role}")
        self._name(node, entry.name)

    def _name(self, number: int, name: str) -> None:
        node = self._directory.nodes.get_live(number)
        if not name or node is None or node.hostname or name in self._names:
            return
        # What is no hostname, or taken, is simply not taken over.
        if hostname_problem(self._directory, name, number):
            return
        self._names.add(name)
        decision = decide_set_hostname(self._directory, node, name)
        self._changes += decision.changes
        self._locks.update(decision.locks)
        self._actions.append(f"named node {number} {name}")

    def _remove(self, node: int, action: str) -> None:
        if self._network.role(node) == OWNER:
            self._actions.append(f"kept node {node}: it owns the network")
            return
        number = self._network.record.id
        self._changes.append(Change(member_key(number, node), None, None))
        self._locks.add(node_key(node))
        self._actions.append(action)

    def _assign(self, assigned: dict[str, str]) -> None:
        record = self._network.record
        roles = merge_roles(record.roles, assigned)
        if roles != record.roles:
            changed = encode_record(msgspec.structs.replace(record, roles=roles))
            key, revision = network_key(record.id), self._network.revision
            self._changes.append(Change(key, changed, revision))


def _role_change(network: Network, node: int, role: str) -> Change:
    member = network.members[node]
    record = msgspec.structs.replace(member.record, role=role)
    key = member_key(network.record.id, node)
    return Change(key, encode_record(record), member.revision)
