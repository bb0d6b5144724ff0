"""The list of a daemon's agents, which a program asks for page by page.

A daemon with thousands of agents cannot list them in one frame. A daemon from before
there were pages knows nothing of ``limit`` and ``cursor``: its one answer is all.
"""

from __future__ import annotations

from typing import Any, Final

from pilotfleet.errors import DecodeError

__all__ = ["MAX_PAGE", "OP_AGENTS", "AgentListing"]

OP_AGENTS: Final = "agents"
MAX_PAGE: Final = 1000
"""Agents in one answer: with the longest names and tags they fit a frame."""


class AgentListing:
    """What has been asked for and what is left. Performs no I/O.

    Call the operation ``agents`` with :meth:`params` and give the answer to
    :meth:`take`, until :attr:`is_complete`.
    """

    def __init__(self) -> None:
        self.is_complete = False
        self.missing_processes: list[int] = []
        """Processes of the daemon that are being restarted; their agents are left
        out."""
        self._cursor = ""

    def params(self) -> dict[str, Any]:
        """Return the fields of the next request."""
        return {"limit": MAX_PAGE, "cursor": self._cursor}

    def take(self, answer: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the rows of an answer.

        Raises:
            DecodeError: It is no such answer, or leads nowhere.
        """
        # An empty list may come as null.
        rows, cursor = answer.get("agents") or [], answer.get("next_cursor") or ""
        missing = answer.get("missing_processes") or []
        if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
            raise DecodeError("the daemon's list of agents is none")
        if not isinstance(cursor, str) or (cursor and cursor == self._cursor):
            raise DecodeError("the daemon's list of agents has no end")
        if not isinstance(missing, list):
            raise DecodeError("the daemon's list of missing processes is none")
        news = (n for n in missing if n not in self.missing_processes)
        self.missing_processes += news
        self._cursor = cursor
        self.is_complete = not cursor
        return rows
