"""Which requests are answered in one step."""

from __future__ import annotations

from typing import Final

__all__ = ["LONG", "QUICK"]

QUICK: Final = frozenset(
    {
        "authorize_task_submit",
        "beacon_list",
        "check_trust",
        "get_network_policy",
        "get_polo_score",
        "heartbeat",
        "list_networks",
        "lookup",
        "resolve",
        "resolve_hostname",
        "search",
    }
)
"""Requests that never wait for the store, so a task each would be a waste."""

LONG: Final = frozenset(
    {
        "get_audit_log",
        "list_nodes",
        "list_receipts",
        "list_trust",
        "search",
        "watch",
    }
)
"""Requests whose reply may be hundreds of kilobytes, and take milliseconds."""
