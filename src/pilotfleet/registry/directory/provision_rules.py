"""Networks made from a blueprint (registry.md section 7.1).

Provisioning a name again changes the network to what the blueprint says, so a
blueprint can be kept in a repository and applied at every deployment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from pilotfleet.protocol.registry.messages import MAX_NODE, number, text
from pilotfleet.registry.directory.decision import Decision
from pilotfleet.registry.directory.enterprise_rules import merge_roles
from pilotfleet.registry.directory.network_rules import (
    NewNetwork,
    check_policy,
    check_settings,
    decide_create,
)
from pilotfleet.registry.directory.records import (
    NetworkRecord,
    encode_record,
    network_key,
)
from pilotfleet.registry.store.base import Change

if TYPE_CHECKING:
    from pilotfleet.registry.directory.directory import Directory

__all__ = ["Blueprint", "decide_provision"]


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What a network shall be."""

    name: str
    rule: str
    token: str
    enterprise: bool
    admin_token: str
    policy: dict[str, Any] | None
    """Limits as in ``set_network_policy``; none leaves them."""
    expr_policy: str
    roles: dict[str, str]
    """Role by external ID, for nodes that will join."""


def decide_provision(
    directory: Directory, blueprint: Blueprint, *, now: int
) -> Decision:
    """Make a network without members, or change the one of that name.

    Raises:
        Refused: The name, the rule or a limit is not acceptable.
    """
    known = directory.networks.named(blueprint.name)
    asked = NewNetwork(
        blueprint.name,
        blueprint.rule,
        blueprint.token,
        enterprise=blueprint.enterprise
        or (known is not None and known.record.enterprise),
        admin_token=blueprint.admin_token,
        policy=blueprint.expr_policy,
    )
    if known is not None:
        check_settings(asked)
        record = _apply(known.record, blueprint)
        actions = _differences(known.record, record)
        change = Change(network_key(record.id), encode_record(record), known.revision)
        return Decision(
            _reply(record, actions, created=False), [change] if actions else []
        )
    made = decide_create(directory, None, asked, now=now)
    number = made.reply["network_id"]
    fresh = NetworkRecord(number, blueprint.name, blueprint.rule, now)
    record = _apply(fresh, blueprint)
    changes = [
        Change(change.key, encode_record(record), change.expected)
        if change.key == network_key(number)
        else change
        for change in made.changes
    ]
    actions = ["created", *_differences(fresh, record)]
    return Decision(_reply(record, actions, created=True), changes)


def _apply(record: NetworkRecord, blueprint: Blueprint) -> NetworkRecord:
    record = msgspec.structs.replace(
        record,
        rule=blueprint.rule,
        token=blueprint.token or record.token,
        enterprise=blueprint.enterprise or record.enterprise,
        admin_token=blueprint.admin_token or record.admin_token,
        policy=blueprint.expr_policy or record.policy,
        roles=merge_roles(record.roles, blueprint.roles),
    )
    if blueprint.policy is None:
        return record
    ports = blueprint.policy.get("allowed_ports")
    listed = ports if isinstance(ports, list) else []
    limits = (
        number(blueprint.policy, "max_members", MAX_NODE),
        tuple(number({"port": port}, "port", MAX_NODE) for port in listed),
        text(blueprint.policy, "description"),
    )
    check_policy(*limits)
    return msgspec.structs.replace(
        record, max_members=limits[0], ports=limits[1], description=limits[2]
    )


def _differences(before: NetworkRecord, after: NetworkRecord) -> list[str]:
    """Name what changes; values stay unsaid, for some are secrets."""
    fields = {
        "rule": "join rule",
        "token": "join token",
        "enterprise": "enterprise",
        "admin_token": "network admin token",
        "max_members": "max_members",
        "ports": "allowed_ports",
        "description": "description",
        "policy": "expression policy",
        "roles": "role assignments",
    }
    return [
        f"set {shown}"
        for name, shown in fields.items()
        if getattr(before, name) != getattr(after, name)
    ]


def _reply(
    record: NetworkRecord, actions: list[str], *, created: bool
) -> dict[str, Any]:
    return {
        "type": "provision_network_ok",
        "network_id": record.id,
        "name": record.name,
        "created": created,
        "actions": actions,
    }
