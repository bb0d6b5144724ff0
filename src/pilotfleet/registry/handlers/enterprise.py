"""Messages for the administration of many networks (registry.md section 7.1).

What needs services outside this registry (identity providers, audit collectors,
webhooks) is left out: half of it, a setting without the service, would only look as if
somebody were watching.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pilotfleet.protocol.registry.messages import (
    Reply,
    Request,
    flag,
    network_number,
    node_number,
    number,
    text,
)
from pilotfleet.registry.directory.enterprise_rules import (
    DirectoryEntry,
    decide_set_enterprise,
    decide_set_external,
    decide_sync,
    external_of,
)
from pilotfleet.registry.directory.network_rules import guard_backbone
from pilotfleet.registry.directory.provision_rules import Blueprint, decide_provision
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.handlers.networks import checked_policy

if TYPE_CHECKING:
    from pilotfleet.registry.context import PeerContext
    from pilotfleet.registry.desk import Desk, Handler
    from pilotfleet.registry.directory.decision import Decision
    from pilotfleet.registry.directory.networks import Network

__all__ = ["HANDLERS"]

MAX_LIMIT: Final = 1000
DEFAULT_LIMIT: Final = 100
MAX_ENTRIES: Final = 1000
NOT_OFFERED: Final = {
    "set_idp_config": "identity providers",
    "validate_token": "identity providers",
    "set_identity_webhook": "identity webhooks",
    "set_audit_export": "audit export",
    "set_webhook": "registry webhooks",
    "get_webhook": "registry webhooks",
    "get_webhook_dlq": "registry webhooks",
}
_BLUEPRINT_LEFT_OUT: Final = ("identity_provider", "webhooks", "audit_export")


def set_network_enterprise(desk: Desk, request: Request, _: PeerContext) -> Decision:
    """Turn the roles of a network on or off."""
    desk.require_admin(request)
    guard_backbone(network_number(request), "change")
    network = desk.directory.network(network_number(request))
    return decide_set_enterprise(network, enterprise=flag(request, "enterprise"))


def provision_network(desk: Desk, request: Request, _: PeerContext) -> Decision:
    """Make a network, or change it, as a blueprint says."""
    desk.require_admin(request)
    blueprint = request.get("blueprint")
    if not isinstance(blueprint, dict):
        raise Refused("blueprint object is required")
    for name in _BLUEPRINT_LEFT_OUT:
        if blueprint.get(name):
            raise Refused(f"not supported: {name} in a blueprint")
    return decide_provision(
        desk.directory, _blueprint(blueprint), now=int(desk.clock.wall())
    )


def get_provision_status(desk: Desk, request: Request, _: PeerContext) -> Reply:
    """Tell how all networks are set up."""
    desk.require_admin(request)
    networks = sorted(desk.directory.networks.by_id.items())
    rows = [_status(network) for number, network in networks if number]
    return {"type": "get_provision_status_ok", "networks": rows}


def set_external_id(desk: Desk, request: Request, _: PeerContext) -> Decision:
    """Say which external ID a node has."""
    desk.require_admin(request)
    node = desk.directory.node(node_number(request))
    return decide_set_external(node, text(request, "external_id"))


def get_identity(desk: Desk, request: Request, _: PeerContext) -> Reply:
    """Tell a node's external ID and owner."""
    desk.require_admin(request)
    record = desk.directory.node(node_number(request)).record
    return {
        "type": "get_identity_ok",
        "node_id": record.id,
        "external_id": record.external,
        "owner": record.owner,
    }


def get_audit_log(desk: Desk, request: Request, _: PeerContext) -> Reply:
    """Tell what was changed, newest first."""
    desk.require_admin(request)
    limit = number(request, "limit", MAX_LIMIT) or DEFAULT_LIMIT
    entries = desk.audit.newest(network_number(request), limit)
    return {"type": "get_audit_log_ok", "entries": entries}


def directory_sync(desk: Desk, request: Request, _: PeerContext) -> Decision:
    """Make members and roles follow a directory."""
    desk.require_admin(request)
    network = desk.directory.network(network_number(request))
    entries = request.get("entries")
    if not isinstance(entries, list):
        raise Refused("entries array is required")
    if len(entries) > MAX_ENTRIES:
        raise Refused(f"too many entries (max {MAX_ENTRIES})")
    return decide_sync(
        desk.directory,
        network,
        [_entry(entry) for entry in entries],
        remove_unlisted=flag(request, "remove_unlisted"),
    )


def directory_status(desk: Desk, request: Request, _: PeerContext) -> Reply:
    """Tell how many members of a network a directory knows."""
    desk.require_admin(request)
    network = desk.directory.network(network_number(request))
    mapped = sum(bool(external_of(desk.directory, node)) for node in network.members)
    reply: Reply = {
        "type": "directory_status_ok",
        "network_id": network.record.id,
        "total": len(network.members),
        "mapped": mapped,
        "unmapped": len(network.members) - mapped,
        "enterprise": network.record.enterprise,
    }
    if network.record.roles:
        reply["pre_assignments"] = len(network.record.roles)
    return reply


def get_idp_config(desk: Desk, request: Request, _: PeerContext) -> Reply:
    """Tell that there is no identity provider."""
    desk.require_admin(request)
    return {"type": "get_idp_config_ok", "configured": False}


def get_audit_export(desk: Desk, request: Request, _: PeerContext) -> Reply:
    """Tell that the audit log is sent nowhere."""
    desk.require_admin(request)
    return {"type": "get_audit_export_ok", "configured": False}


def refuse(desk: Desk, request: Request, _: PeerContext) -> Reply:
    """Say that something is left out on purpose."""
    desk.require_admin(request)
    kind = text(request, "type")
    if kind == "set_audit_export" and not text(request, "format"):
        # Turning off what is never on.
        return {"type": "set_audit_export_ok", "status": "disabled"}
    raise Refused(f"not supported: this registry has no {NOT_OFFERED[kind]}")


def _entry(value: Any) -> DirectoryEntry:
    entry = value if isinstance(value, dict) else {}
    external = text(entry, "external_id")
    if not external:
        raise Refused("entries: external_id is required")
    name = text(entry, "display_name")
    return DirectoryEntry(external, name, text(entry, "role"), flag(entry, "disabled"))


def _blueprint(value: dict[str, Any]) -> Blueprint:
    listed = value.get("policy")
    policy = listed if isinstance(listed, dict) else None
    roles = value.get("roles")
    rows = roles if isinstance(roles, list) else []
    return Blueprint(
        name=text(value, "name"),
        rule=text(value, "join_rule") or "open",
        token=text(value, "join_token"),
        enterprise=flag(value, "enterprise"),
        admin_token=text(value, "network_admin_token"),
        policy=policy,
        expr_policy=checked_policy(value),
        roles={
            text(row, "external_id"): text(row, "role")
            for row in rows
            if isinstance(row, dict)
        },
    )


def _status(network: Network) -> dict[str, Any]:
    record = network.record
    row: dict[str, Any] = {
        "network_id": record.id,
        "name": record.name,
        "enterprise": record.enterprise,
        "members": len(network.members),
        "join_rule": record.rule,
    }
    if record.max_members:
        row["max_members"] = record.max_members
    if record.ports:
        row["allowed_ports"] = list(record.ports)
    if record.roles:
        row["rbac_pre_assignments"] = len(record.roles)
    return row


HANDLERS: Final[dict[str, Handler]] = {
    "set_network_enterprise": set_network_enterprise,
    "provision_network": provision_network,
    "get_provision_status": get_provision_status,
    "set_external_id": set_external_id,
    "get_identity": get_identity,
    "get_audit_log": get_audit_log,
    "directory_sync": directory_sync,
    "directory_status": directory_status,
    "get_idp_config": get_idp_config,
    "get_audit_export": get_audit_export,
    **dict.fromkeys(NOT_OFFERED, refuse),
}
