"""Events as the programs of a fleet publish them."""

from __future__ import annotations

import json
from typing import Any

START = 1_800_000_000.0
"""When the fleets of these tests begin."""


def health(agent: str, status: str = "idle", **fields: Any) -> bytes:
    """Return the payload of a health event."""
    return json.dumps({"agent": agent, "status": status, **fields}).encode()


def tasks(*rows: tuple[Any, ...]) -> bytes:
    """Return the payload of a task event: agent, id, whether well, ms, when."""
    return json.dumps(
        {
            "tasks": [
                {
                    "agent": agent,
                    "task_id": task_id,
                    "status": "SUCCEEDED" if ok else "FAILED",
                    "ms": ms,
                    "at": at,
                }
                for agent, task_id, ok, ms, at in rows
            ]
        }
    ).encode()


def node(host: str, **fields: Any) -> bytes:
    """Return the payload of a daemon's report."""
    totals = {
        key: fields.pop(key, 0)
        for key in ("agents", "tunnels", "bytes_sent", "bytes_received")
    }
    rows = fields.pop("rows", [])
    return json.dumps(
        {"host": host, "interval_s": 10, "totals": totals, "agents": rows, **fields}
    ).encode()
