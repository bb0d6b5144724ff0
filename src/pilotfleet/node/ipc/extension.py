"""The extension's own operations, and the way to those of the services."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pilotfleet.errors import InvalidArgument, NotSupported, PermissionDenied
from pilotfleet.node.ipc.hosted import describe_agent, list_agents
from pilotfleet.node.ipc.watch import unwatch, watch
from pilotfleet.protocol.ipc.listing import OP_AGENTS

if TYPE_CHECKING:
    from pilotfleet.node.agent import Agent
    from pilotfleet.node.ipc.session import IpcSession

__all__ = ["ExtensionHandler", "run_extension"]

ExtensionHandler: TypeAlias = Callable[
    ["IpcSession", "Agent", dict[str, Any]], Awaitable[dict[str, Any]]
]

_SEARCH_FIELDS: Final = frozenset(
    {"tags", "any", "hostname_prefix", "online", "limit", "cursor"}
)
_TRUST_FIELDS: Final = frozenset({"generation", "limit", "cursor"})


async def run_extension(
    session: IpcSession, op: str, params: dict[str, Any]
) -> dict[str, Any]:
    """Run one operation for the client.

    ``agent`` in the parameters names the agent that the operation acts for;
    otherwise it is the client's selected one.

    Raises:
        NotSupported: No such operation.
        NotFound: No such agent.
        Unavailable: That agent is still starting.
        PilotError: What the operation raises.
    """
    handler = _BUILT_IN.get(op) or session.server.host.extensions.get(op)
    if handler is None:
        raise NotSupported(f"the daemon has no operation {op!r}")
    agent = session.agent
    if params.get("agent") is not None:
        agent = _find_agent(session, params["agent"])
    return await handler(session, agent, params)


def _find_agent(session: IpcSession, name: object) -> Agent:
    if not isinstance(name, str):
        raise InvalidArgument("agent must be a text")
    agent = session.server.host.find_agent(name)
    bound = session.server.agent
    if bound is not None and agent is not bound:
        raise PermissionDenied(f"this socket is for agent {bound.name!r} only")
    return agent


async def _select_agent(
    session: IpcSession, agent: Agent, params: dict[str, Any]
) -> dict[str, Any]:
    """Make all later frames of this connection act as another agent."""
    chosen = _find_agent(session, params.get("name"))
    if chosen is not session.agent:
        if session.streams or session.ports or session.dials:
            # Connection ids and ports belong to the agent they were made for.
            raise InvalidArgument("close all streams and ports to select an agent")
        session.server.move(session, chosen)
    return describe_agent(chosen)


async def _search(
    session: IpcSession, agent: Agent, params: dict[str, Any]
) -> dict[str, Any]:
    """Search the registry for agents by tag."""
    query = {key: params[key] for key in _SEARCH_FIELDS & params.keys()}
    return await agent.search(cached=params.get("cached") is True, **query)


async def _list_trust(
    session: IpcSession, agent: Agent, params: dict[str, Any]
) -> dict[str, Any]:
    """List who trusts whom, as far as the agent may know."""
    query = {key: params[key] for key in _TRUST_FIELDS & params.keys()}
    return await agent.list_trust(**query)


async def _broker(
    session: IpcSession, agent: Agent, params: dict[str, Any]
) -> dict[str, Any]:
    """Name the fleet's event brokers: where to publish, and where to subscribe.

    Where sub-brokers roll up, the ones above have the events of all of them.
    """
    config = session.server.host.config
    return {
        "broker": config.broker,
        "brokers": list(config.brokers),
        "subscribe": list(config.roll_up or config.brokers),
    }


_BUILT_IN: Final[dict[str, ExtensionHandler]] = {
    "select-agent": _select_agent,
    OP_AGENTS: list_agents,
    "search": _search,
    "watch": watch,
    "unwatch": unwatch,
    "list_trust": _list_trust,
    "broker": _broker,
}
