"""Errors that exist only on the command line (cli.md section 2.2)."""

from __future__ import annotations

from pilotfleet.errors import PilotError

__all__ = ["BroadcastFailed", "BroadcastUsage", "UnknownCommand", "UsageError"]


class UsageError(PilotError):
    """A command was given too few arguments."""

    code = "invalid_argument"


class UnknownCommand(PilotError):
    """No command of that name exists."""

    code = "invalid_argument"


class BroadcastUsage(PilotError):
    """Bad arguments of ``broadcast``, which alone has a code of its own."""

    code = "usage"


class BroadcastFailed(PilotError):
    """The daemon refused a broadcast."""

    code = "broadcast_failed"
