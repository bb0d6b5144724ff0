"""Rows of the table of agents: search, filter, order, a window."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import InvalidArgument
from pilotfleet.fleet.monitor.figures import AgentPage, AgentRow, AgentState
from pilotfleet.fleet.monitor.source import MAX_ROWS, SORTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pilotfleet.fleet.monitor.figures import AgentQuery
    from pilotfleet.fleet.monitor.samples import DirectoryAgent
    from pilotfleet.fleet.monitor.view.agents import AgentEntry
    from pilotfleet.fleet.monitor.view.traffic import TrafficBook

__all__ = ["agent_row", "find_agents", "silent_row"]

_SEVERITY: Final = {state: rank for rank, state in enumerate(AgentState)}
_NO_POLO: Final = -(1 << 63)


def find_agents(
    agents: Sequence[AgentEntry], traffic: TrafficBook, query: AgentQuery
) -> AgentPage:
    """Return the rows that a query asks for.

    Args:
        agents: All of them in the order of their names.
        traffic: What their daemons said.
        query: Which.

    Raises:
        InvalidArgument: There is no such order.
    """
    is_reversed = query.sort.startswith("-")
    sort = query.sort.removeprefix("-")
    if sort not in SORTS:
        raise InvalidArgument(f"sort: {sort[:32]!r} is none of {', '.join(SORTS)}")
    found = _matching(agents, query)
    if sort != "name":
        # Equal ones stay in the order of their names, either way round.
        found.sort(key=_key(sort, traffic), reverse=is_reversed)
    elif is_reversed:
        found.reverse()
    offset = max(0, query.offset)
    limit = min(max(0, query.limit), MAX_ROWS)
    window = found[offset : offset + limit]
    rows = tuple(agent_row(agent, traffic) for agent in window)
    return AgentPage(total=len(found), offset=offset, rows=rows)


def agent_row(agent: AgentEntry, traffic: TrafficBook) -> AgentRow:
    """Return the row of an agent."""
    node, info = traffic.node(agent.name), agent.info
    node_id = node.node_id if node is not None and node.node_id else None
    return AgentRow(
        name=agent.name,
        state=agent.state,
        status=agent.status,
        tags=agent.tags,
        polo=info.polo if info is not None else None,
        completed=agent.completed,
        failed=agent.failed,
        tunnels=node.tunnels if node is not None else 0,
        last_seen=agent.last_seen,
        version=traffic.version(agent.name),
        node_id=info.node_id if info is not None else node_id,
    )


def silent_row(node: int, name: str, info: DirectoryAgent | None) -> AgentRow:
    """Return the row of a node that publishes no health, as a hub.

    The registry says whether it is there.
    """
    is_here = info is not None and info.is_online
    return AgentRow(
        name=name,
        state=AgentState.ALIVE if is_here else AgentState.LEFT,
        tags=info.tags if info is not None else (),
        polo=info.polo if info is not None else None,
        node_id=node,
    )


def _matching(agents: Sequence[AgentEntry], query: AgentQuery) -> list[AgentEntry]:
    states = frozenset(query.states)
    if states:
        found = [agent for agent in agents if agent.state in states]
    else:
        found = [agent for agent in agents if agent.state is not AgentState.LEFT]
    if needle := query.search.casefold():
        found = [agent for agent in found if needle in agent.name.casefold()]
    for tag in query.tags:
        found = [agent for agent in found if tag in agent.tags]
    return found


def _key(sort: str, traffic: TrafficBook) -> Callable[[AgentEntry], Any]:
    match sort:
        case "state":
            return lambda agent: _SEVERITY[agent.state]
        case "polo":
            return _polo
        case "tunnels":

            def tunnels(agent: AgentEntry) -> int:
                node = traffic.node(agent.name)
                return node.tunnels if node is not None else 0

            return tunnels
        case _:
            return attrgetter(sort)


def _polo(agent: AgentEntry) -> int:
    info = agent.info
    return info.polo if info is not None and info.polo is not None else _NO_POLO
