"""Which error codes each command can give (cli.md section 2.2).

For programs: ``pilotctl context`` lists them with the command, so that a caller knows
what to handle. Codes that any command can give, because the disk is full or the
program is at fault (``internal``), are not repeated everywhere.
"""

from __future__ import annotations

from typing import Final

__all__ = ["ERRORS", "EXPLAINED"]

EXPLAINED: Final = {
    "already_exists": "the daemon, gateway, name or port is there already",
    "auth_required": "the admin token is missing",
    "broadcast_failed": "the daemon refused a broadcast",
    "connection_failed": "the daemon or registry refused, or a peer cannot be reached"
    " (may retry)",
    "expired": "the task was not answered in time",
    "internal": "an unexpected failure of this machine or program",
    "invalid_argument": "bad input or usage (do not retry)",
    "invalid_state": "the task is not in a state that allows it",
    "io_error": "a file that was named cannot be read",
    "not_found": "a name does not resolve, or the thing does not exist",
    "not_implemented": "the daemon does not offer it",
    "not_running": "no daemon, or no gateway, answers",
    "not_supported": "left out of this program on purpose (do not retry)",
    "permission_denied": "refused by policy, verification or the system",
    "timeout": "no answer in time (retry with a longer --timeout)",
    "trust_required": "the peer is private and does not trust this node",
    "usage": "bad arguments of broadcast",
}
"""Every code, and what it means."""

_LOCAL: Final = ("invalid_argument", "internal")
_DAEMON: Final = ("not_running", "connection_failed")
_OURS: Final = (*_DAEMON, "not_implemented", "not_found")
_NODE: Final = ("invalid_argument", "not_found", *_DAEMON)
_PEER: Final = (*_NODE, "trust_required", "timeout")
_REGISTRY: Final = ("invalid_argument", "connection_failed")
_ADMIN: Final = (*_REGISTRY, "auth_required")
_ADMIN_NODE: Final = (*_ADMIN, "not_found", "not_running")
_TASK: Final = ("invalid_argument", "not_found", "invalid_state", *_OURS)

ERRORS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("quickstart", "version", "trusted list"), ()),
    **dict.fromkeys(("init", "config"), _LOCAL),
    "context": ("not_found",),
    "daemon start": ("invalid_argument", "already_exists", "timeout", "internal"),
    "daemon stop": ("not_running",),
    "daemon status": (),
    "agents": _OURS,
    "find-agents": ("invalid_argument", *_OURS),
    "skill install": ("invalid_argument", "already_exists"),
    "skill uninstall": ("invalid_argument", "already_exists", "not_found"),
    "skill path": ("invalid_argument",),
    "skill show": (),
    "fleet": (
        *("invalid_argument", "invalid_state", "already_exists", "auth_required"),
        *("not_found", "not_running", "connection_failed", "timeout"),
    ),
    "find": _NODE,
    "lookup": _NODE,
    **dict.fromkeys(("set-hostname", "set-tags"), ("invalid_argument", *_DAEMON)),
    **dict.fromkeys(
        (
            *("clear-hostname", "clear-tags", "deregister", "rotate-key"),
            *("set-public", "set-private", "enable-tasks", "disable-tasks", "my-polo"),
            *("pending", "trust", "info", "health", "connections"),
            *("network list", "network invites"),
        ),
        _DAEMON,
    ),
    "register": ("connection_failed",),
    **dict.fromkeys(("handshake", "approve", "reject", "untrust"), _NODE),
    "prefer-direct": (*_NODE, "not_implemented"),
    "peers": ("invalid_argument", *_DAEMON),
    "disconnect": ("invalid_argument", *_DAEMON),
    **dict.fromkeys(("ping", "bench"), _PEER),
    "traceroute": ("invalid_argument", *_DAEMON),
    "sign-request": ("invalid_argument", "not_found", *_DAEMON),
    "verify-request": ("invalid_argument", *_DAEMON),
    **dict.fromkeys(("connect", "send", "publish", "subscribe"), _PEER),
    **dict.fromkeys(("recv", "listen"), ("invalid_argument", *_DAEMON)),
    "dgram": (*_PEER, "permission_denied"),
    "broadcast": (
        *("usage", "invalid_argument", "auth_required", "broadcast_failed"),
        "not_running",
    ),
    **dict.fromkeys(
        ("events subscribe", "events publish"), (*_PEER, "not_implemented")
    ),
    "events status": _OURS,
    "task submit": (*_PEER, "not_implemented"),
    "task show": ("invalid_argument", *_OURS),
    "polo show": (*_NODE, "permission_denied"),
    **dict.fromkeys(("polo receipts", "polo claim"), ("invalid_argument", *_OURS)),
    "polo audit": (*_OURS, "invalid_argument", "auth_required"),
    "task accept": (*_TASK, "expired"),
    **dict.fromkeys(("task decline", "task send-results", "task cancel"), _TASK),
    "task result": ("invalid_argument", *_OURS),
    **dict.fromkeys(("task execute", "task queue"), _OURS),
    "task list": ("invalid_argument", *_OURS),
    "network join": (*_NODE, "auth_required"),
    **dict.fromkeys(
        ("network leave", "network members", "network accept", "network reject"),
        ("invalid_argument", *_DAEMON),
    ),
    "network invite": _NODE,
    "network create": (*_ADMIN, "not_running"),
    **dict.fromkeys(("network delete", "network rename"), _ADMIN),
    **dict.fromkeys(("network promote", "network demote", "network kick"), _ADMIN_NODE),
    "network role": (*_REGISTRY, "not_found", "not_running"),
    "network policy": _ADMIN,
    **dict.fromkeys(
        ("set-webhook", "clear-webhook"), ("invalid_argument", "connection_failed")
    ),
    **dict.fromkeys(
        ("managed status", "managed cycle", "managed reconcile", "managed rankings"),
        ("invalid_argument", *_DAEMON),
    ),
    "managed score": _NODE,
    "policy get": ("invalid_argument", *_DAEMON),
    "policy set": ("invalid_argument", "io_error", *_DAEMON),
    **dict.fromkeys(
        ("policy validate", "policy test"), ("invalid_argument", "io_error")
    ),
    "member-tags get": _NODE,
    "member-tags set": _NODE,
    "gateway start": (
        *("invalid_argument", "already_exists", "not_found", "timeout", "internal"),
    ),
    "gateway stop": ("not_running",),
    "gateway map": (
        *("invalid_argument", "already_exists", "not_found", "permission_denied"),
        *("not_running", "connection_failed"),
    ),
    "gateway unmap": ("invalid_argument", "not_found", "not_running"),
    "gateway list": (),
    **dict.fromkeys(
        ("audit", "provision", "provision-status", "directory-sync"), _ADMIN
    ),
    "directory-status": _ADMIN,
    "deprovision": (*_ADMIN, "not_found"),
    **dict.fromkeys(("idp", "audit-export"), (*_ADMIN, "not_supported")),
    **dict.fromkeys(("send-message", "send-file"), _PEER),
    **dict.fromkeys(("inbox", "received"), ("invalid_argument", "not_found")),
    **dict.fromkeys(
        (
            *("appstore", "review", "update", "updates", "skills", "verify"),
            *("recovery", "motd", "telemetry"),
        ),
        ("not_supported",),
    ),
}
"""By the command's words: the codes it can give besides ``internal``."""
