"""The agents that a daemon hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pilotfleet.protocol.ipc.listing import OP_AGENTS, AgentListing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pilotfleet.client.daemon import DaemonClient

__all__ = ["hosted_agents"]


async def hosted_agents(client: DaemonClient) -> AsyncIterator[dict[str, Any]]:
    """Yield the row of each agent of the daemon, its default agent's first.

    They are asked for page by page, as far as the caller reads.

    Raises:
        NotSupported: The daemon is an official one.
        DecodeError: Its answer is no list of agents.
    """
    listing = AgentListing()
    while not listing.is_complete:
        for row in listing.take(await client.call(OP_AGENTS, **listing.params())):
            yield row
