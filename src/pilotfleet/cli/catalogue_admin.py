"""Rows of the command table: the registry's administration and the gateway.

Also what the official program offers and this one leaves out: those commands exist
and say why, so that a script written for the official one fails with a reason.
"""

from __future__ import annotations

from typing import Final

__all__ = ["LEFT_OUT", "ROWS"]

_BODY: Final = "registry reply"
_ROW: Final = "mappings [{local_ip, pilot_addr, ports, connections}]"

LEFT_OUT: Final = {
    "appstore": "apps come from the vendor's store, which pilotfleet does not use",
    "review": "reviews go to the vendor's service, and pilotfleet phones nobody",
    "update": "pilotfleet has no updater; update it as you installed it (pip, git)",
    "updates": "the vendor's changelog is about other programs; see CHANGELOG.md",
    "skills": "pilotfleet writes nothing into the folders of your agent tools",
    "verify": "badges are issued by the vendor's identity service",
    "recovery": "addresses are recovered by the vendor's service; keep a copy of"
    " identity.json",
    "motd": "there is no message of the day: nothing is fetched from a vendor",
    "telemetry": "pilotfleet sends no telemetry, so there is none to configure",
}
"""Commands that are left out on purpose, and why."""

ROWS: Final[dict[str, tuple[str, str, str, str, str]]] = {
    "gateway start": (
        "gateway",
        "gateway:start",
        (
            "[--subnet <cidr>] [--ports <list>] [--max-connections <n>] [--foreground]"
            " [<pilot-addr> [<local-ip>]]..."
        ),
        "Start the IP gateway; with --subnet 127.4.0.0/16 it needs no root",
        f"pid, subnet, {_ROW}",
    ),
    "gateway stop": (
        "gateway",
        "gateway:stop",
        "",
        "Stop the IP gateway and release its addresses",
        "pid",
    ),
    "gateway map": (
        "gateway",
        "gateway:map_address",
        "<pilot-addr> [local-ip]",
        "Give a Pilot address a local IP address",
        "local_ip, pilot_addr",
    ),
    "gateway unmap": (
        "gateway",
        "gateway:unmap",
        "<local-ip>",
        "Release a local IP address",
        "unmapped, pilot_addr",
    ),
    "gateway list": (
        "gateway",
        "gateway:list_mappings",
        "",
        "List the gateway's mappings",
        f"{_ROW}, total",
    ),
    "audit": (
        "admin",
        "administration:audit",
        "[--network <id>] [--limit <n>]",
        "Show what was changed in networks, newest first (admin token)",
        "entries [{timestamp, action, network_id, node_id, details}]",
    ),
    "provision": (
        "admin",
        "administration:provision",
        "<blueprint.json>",
        "Make a network, or change it, as a blueprint says (admin token)",
        "network_id, name, created (bool), actions",
    ),
    "deprovision": (
        "admin",
        "administration:deprovision",
        "<network-name>",
        "Delete the network of a name (admin token)",
        "network_id",
    ),
    "provision-status": (
        "admin",
        "administration:provision_status",
        "",
        "Show how all networks are set up (admin token)",
        (
            "networks [{network_id, name, enterprise, members, join_rule, max_members,"
            " allowed_ports, rbac_pre_assignments}]"
        ),
    ),
    "directory-sync": (
        "admin",
        "administration:directory_sync",
        "<directory.json> [--network <id>] [--remove-unlisted]",
        "Make a network's members and roles follow a directory (admin token)",
        "updated, disabled, mapped, unmapped, actions",
    ),
    "directory-status": (
        "admin",
        "administration:directory_status",
        "<network_id>",
        "Show how many members of a network a directory knows (admin token)",
        "network_id, total, mapped, unmapped, enterprise, pre_assignments",
    ),
    "idp": (
        "admin",
        "administration:idp",
        "<get|set> [options]",
        "Show the identity provider; setting one is not supported (admin token)",
        _BODY,
    ),
    "audit-export": (
        "admin",
        "administration:audit_export",
        "<get|set|disable> [options]",
        "Show where the audit log goes; sending it is not supported (admin token)",
        _BODY,
    ),
    **{
        name: (
            "left out",
            "administration:refuse",
            "",
            f"Not supported: {reason}",
            "an error of the code not_supported",
        )
        for name, reason in LEFT_OUT.items()
    },
}
"""By the command's words: the fields of ``catalogue.Spec``."""
