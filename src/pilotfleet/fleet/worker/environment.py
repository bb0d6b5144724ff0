"""The environment of what runs tasks: ours, without what it must not have."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["FLEET_SECRETS", "task_environment"]

FLEET_SECRETS: Final = ("PILOT_ADMIN_TOKEN", "PILOT_JOIN_TOKEN", "PILOT_WEBHOOK_SECRET")
"""No worker needs these. Whoever may give a task must not get them from what it
prints."""
_GATEWAYS: Final = ("OPENCLAW_GATEWAY_TOKEN", "OPENCLAW_GATEWAY_PASSWORD")
_OURS: Final = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "INVOCATION_ID")
"""What systemd told the worker alone."""


def task_environment() -> dict[str, str]:
    """Return a copy of our environment without secrets."""
    hidden = {*FLEET_SECRETS, *_GATEWAYS, *_OURS}
    return {name: value for name, value in os.environ.items() if name not in hidden}
