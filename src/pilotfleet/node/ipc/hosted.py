"""The agents of a daemon: the row of each, and all of them in pages.

The order is that of the configuration, or the one that the processes of a divided
daemon agree on. A cursor is the name of the agent that the page before ended with.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.errors import InvalidArgument
from pilotfleet.protocol.ipc.framing import MAX_JSON
from pilotfleet.protocol.ipc.listing import MAX_PAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.ipc.session import IpcSession

__all__ = ["PageQuery", "check_size", "describe_agent", "list_agents", "read_query"]

ENVELOPE: Final = 4096
"""What an answer has beside its rows, at most."""


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which agents a program asks for."""

    cursor: str
    limit: int
    is_whole: bool
    """Whether it knows nothing of pages and means all agents in one answer."""


def read_query(params: dict[str, Any]) -> PageQuery:
    """Read the fields of the operation ``agents``.

    Raises:
        InvalidArgument: They are none of its.
    """
    cursor, limit = params.get("cursor"), params.get("limit")
    is_whole = cursor is None and limit is None
    cursor = "" if cursor is None else cursor
    limit = MAX_PAGE if limit is None else limit
    if not isinstance(cursor, str):
        raise InvalidArgument("agents: cursor must be a text")
    if type(limit) is not int or limit < 1:
        raise InvalidArgument("agents: limit must be a number from 1 on")
    return PageQuery(cursor, min(limit, MAX_PAGE), is_whole)


async def list_agents(
    session: IpcSession, agent: Agent, params: dict[str, Any]
) -> dict[str, Any]:
    """List the agents of this daemon, or a page of them."""
    query = read_query(params)
    server = session.server
    hosted: dict[str, Agent] = server.host.agents
    if server.agent is not None:
        hosted = {server.agent.name: server.agent}
    names, start = list(hosted), 0
    if server.others is not None:
        order = server.others.order
        names.sort(key=order)
        # Whoever hosts that agent: the cursor is one for all processes.
        start = bisect_right(names, order(query.cursor), key=order)
        start = start if query.cursor else 0
    elif query.cursor:
        start = _place_after(names, query.cursor)
    end = len(names) if query.is_whole else start + query.limit
    rows = [describe_agent(hosted[name]) for name in names[start:end]]
    if query.is_whole:
        check_size(rows)
    cursor = names[end - 1] if end < len(names) else ""
    return {"agents": rows, "total": len(names), "next_cursor": cursor}


def check_size(rows: Sequence[dict[str, Any]]) -> None:
    """Check that all agents fit one answer.

    Raises:
        InvalidArgument: They do not.
    """
    if len(rows) > MAX_PAGE:
        size = len(msgspec.json.encode(rows)) + ENVELOPE
        if size > MAX_JSON:
            raise InvalidArgument(
                f"agents: {len(rows)} agents do not fit one answer",
                hint="ask for pages, with limit and cursor, as newer clients do",
            )


def describe_agent(agent: Agent) -> dict[str, Any]:
    """Return the row of a hosted agent."""
    return {
        "name": agent.name,
        "node_id": agent.node_id,
        "address": str(agent.address),
        "hostname": agent.hostname,
        "tags": list(agent.tags),
        "state": _state(agent),
    }


def _place_after(names: list[str], cursor: str) -> int:
    try:
        return names.index(cursor) + 1
    except ValueError:
        raise InvalidArgument(
            f"agents: invalid cursor {cursor[:80]!r}",
            hint="it is next_cursor of the page before",
        ) from None


def _state(agent: Agent) -> str:
    if agent.closed:
        return "closed"
    return "online" if agent.node_id else "starting"
