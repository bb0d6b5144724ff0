"""Find out that a part of a fleet runs on another machine already.

A part has the names of its agents, whichever machine it runs on. Two machines that
were given the same part would each bring agents of their own, and those that come
second would go on without names. So who comes second is told, and does not start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.client.hosted import hosted_agents
from pilotfleet.errors import AlreadyExists
from pilotfleet.protocol.ipc.commands import Command

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from pilotfleet.fleet.plan import Part

__all__ = ["check_names", "clear_tags"]


async def check_names(socket: Path, hosts: Collection[str], part: Part) -> None:
    """Check that no other machine has the names of a daemon's agents.

    Names of agents that are offline were left by a machine which is gone, and do not
    count: that another one takes its part over is what somebody wants.

    Args:
        socket: The daemon's.
        hosts: What its agents should be called.
        part: What is being started.

    Raises:
        AlreadyExists: Another machine has them. The agents of this one cannot be
            found any more.
    """
    async with await DaemonClient.connect(socket) as client:
        rows = [row async for row in hosted_agents(client)]
        named = {row.get("hostname") for row in rows}
        missing = next((name for name in hosts if name not in named), None)
        if missing is None:
            return
        found = await client.call("search", hostname_prefix=missing, online=True)
        holders = [
            row for row in found.get("agents", []) if row.get("hostname") == missing
        ]
    if not holders:
        return
    await clear_tags(socket, [str(row["name"]) for row in rows])
    raise AlreadyExists(
        f"{missing} is the name of another agent, {holders[0].get('address')}:"
        f" part {part} of the fleet runs on another machine, or did until now",
        hint="give each machine a part of its own; one that takes the place of a"
        " machine that is gone can start three minutes after its end",
    )


async def clear_tags(socket: Path, agents: Iterable[str]) -> None:
    """Have nobody find these agents of a daemon by tag any more."""
    async with await DaemonClient.connect(socket) as client:
        for agent in agents:
            await client.call("select-agent", name=agent)
            await client.request_json(Command.SET_TAGS, b"[]")
