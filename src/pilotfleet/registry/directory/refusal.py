"""The error by which a rule of the directory refuses a request."""

from __future__ import annotations

from typing import Any

from pilotfleet.errors import PilotError

__all__ = ["Refused"]


class Refused(PilotError):
    """A request is not granted; the text goes out as the answer's ``error``."""

    code = "permission_denied"

    def __init__(self, text: str, **facts: Any) -> None:
        super().__init__(text)
        self.facts = facts
        """Further fields of the answer, such as ``retry_after``."""
