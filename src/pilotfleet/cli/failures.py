"""Errors that exist only on the command line (cli.md section 2.2)."""

from __future__ import annotations

from typing import Any

from pilotfleet.errors import PilotError

__all__ = [
    "BroadcastFailed",
    "BroadcastUsage",
    "IoFailure",
    "LeftOut",
    "NotAcknowledged",
    "NotDelivered",
    "UnknownCommand",
    "UsageError",
]


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


class IoFailure(PilotError):
    """A file named on the command line cannot be read."""

    code = "io_error"


class LeftOut(PilotError):
    """The official programs do it; this one leaves it out on purpose."""

    code = "not_supported"


class NotDelivered(PilotError):
    """A receiver did not take a message.

    Args:
        message: What happened.
        hint: What to do next.
        details: What a program gets beside the message.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.details = details or {}


class NotAcknowledged(NotDelivered):
    """A receiver did not say whether it took a message."""

    code = "connection_failed"
