"""Waiting for the answer to a message, which comes as a message to the own inbox.

services.md section 4.9. A message answers ours when its ``reply_to`` is our ID, never
when it names another one. A peer that knows no IDs answers with a message that names
none; if it used ``reply_to`` before, such a message has to wait a moment, in case the
one that names our ID follows.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.cli.mailfolder import (
    list_folder,
    message_ids,
    sender_of,
    try_message,
)
from pilotfleet.errors import PilotError

if TYPE_CHECKING:
    from pilotfleet.cli.connection import Deadline

__all__ = ["ReplyWatch"]

# From the specification.
HOLD_S: Final = 0.75

# Of our choosing.
SHORTEST_PAUSE_S: Final = 0.02
LONGEST_PAUSE_S: Final = 0.2
MAX_HISTORY: Final = 256
"""Earlier messages that are read to learn whether a peer uses ``reply_to``."""


class ReplyWatch:
    """Finds the answer among what arrives in an inbox.

    Made before the message is sent: what is there already answers nothing.
    """

    def __init__(self, inbox: str, *, node: int, message_id: str) -> None:
        self._inbox = inbox
        self._node = node
        self._message_id = message_id
        self._old = set(self._names())
        self._passed = set(self._old)
        self._held: tuple[float, dict[str, Any]] | None = None

    def wait(self, deadline: Deadline) -> dict[str, Any] | None:
        """Return the answer's record, or none when the deadline passes."""
        pause = SHORTEST_PAUSE_S
        while True:
            reply = self.find(time.monotonic())
            if reply is not None:
                return reply
            remaining = deadline.remaining
            if remaining is not None and remaining <= 0:
                # Better an answer that names nothing than none.
                return None if self._held is None else self._held[1]
            time.sleep(pause if remaining is None else min(pause, remaining))
            pause = min(pause * 1.2, LONGEST_PAUSE_S)

    def find(self, now: float) -> dict[str, Any] | None:
        """Look at what is new and return the answer if it is clear by now."""
        for message_id in reversed(self._names()):
            if message_id in self._passed:
                continue
            record = try_message(self._inbox, message_id)
            if record is None:
                # It is still being written, or gone; look again.
                continue
            self._passed.add(message_id)
            if sender_of(record) != self._node:
                continue
            answered = record.get("reply_to")
            if answered == self._message_id:
                return record
            if not answered and self._held is None:
                hold = HOLD_S if self._uses_reply_to() else 0.0
                self._held = (now + hold, record)
        if self._held is not None and now >= self._held[0]:
            return self._held[1]
        return None

    def _uses_reply_to(self) -> bool:
        for message_id in self._names()[:MAX_HISTORY]:
            record = try_message(self._inbox, message_id) or {}
            if record.get("reply_to") and sender_of(record) == self._node:
                return True
        return False

    def _names(self) -> list[str]:
        """Return the IDs of all messages, newest first."""
        try:
            return message_ids(list_folder(self._inbox) or ())
        except PilotError:
            return []
