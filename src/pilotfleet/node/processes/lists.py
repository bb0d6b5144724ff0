"""The list of a divided daemon's agents, made from the lists of its processes.

Every process has its agents in the same order, and a cursor is a place in that order.
So each page is the first rows of what all processes have behind the cursor.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pilotfleet.client.hosted import hosted_agents
from pilotfleet.errors import Unavailable
from pilotfleet.node.ipc.hosted import check_size
from pilotfleet.protocol.ipc.listing import OP_AGENTS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from pilotfleet.client.daemon import DaemonClient
    from pilotfleet.node.ipc.hosted import PageQuery

__all__ = ["ask_for_agents", "merge_agents"]

LIST_S: Final = 10.0
"""How long another process may take to list its agents."""

_Page: TypeAlias = dict[str, Any]


async def ask_for_agents(
    connecting: Awaitable[DaemonClient], query: PageQuery
) -> _Page | None:
    """Return another process's page; None while it does not run."""
    try:
        async with asyncio.timeout(LIST_S), await connecting as leg:
            if not query.is_whole:
                return await leg.call(OP_AGENTS, cursor=query.cursor, limit=query.limit)
            rows = [row async for row in hosted_agents(leg)]
    except (Unavailable, TimeoutError):
        return None
    return {"agents": rows, "total": len(rows), "next_cursor": ""}


def merge_agents(
    pages: Mapping[int, _Page | None],
    query: PageQuery,
    *,
    order: Callable[[str], tuple[Any, ...]],
) -> _Page:
    """Return the page of a whole daemon.

    Args:
        pages: That of each process by its number; None while it does not run.
        query: What was asked for.
        order: Where an agent comes in the list, by its name.

    Raises:
        InvalidArgument: All agents were to come in one answer, and do not fit it.
    """
    there = [page for page in pages.values() if page is not None]
    rows = [row for page in there for row in page["agents"]]
    rows.sort(key=lambda row: order(row["name"]))
    has_more = any(page["next_cursor"] for page in there)
    if query.is_whole:
        check_size(rows)
    elif len(rows) > query.limit:
        rows, has_more = rows[: query.limit], True
    result = {
        "agents": rows,
        "total": sum(page["total"] for page in there),
        "next_cursor": rows[-1]["name"] if has_more else "",
    }
    missing = [number for number, page in pages.items() if page is None]
    return {**result, "missing_processes": missing} if missing else result
