"""What the registry's directory says of the agents of a fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.fleet.monitor.samples import DirectoryAgent
from pilotfleet.fleet.monitor.view.intake import MAX_NAME, clean
from pilotfleet.protocol.address import BACKBONE, Address

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DirectoryBook"]

MAX_TAGS: Final = 32
"""Of one agent."""


class DirectoryBook:
    """The agents of the last complete pass over the directory."""

    def __init__(self, *, max_agents: int) -> None:
        self._max_agents = max_agents
        self._agents: dict[str, DirectoryAgent] = {}
        self._nodes: dict[int, DirectoryAgent] = {}
        self._heard: dict[int, str] = {}
        """Names by what daemons report, for whom the directory does not know."""

    def take(self, rows: Iterable[DirectoryAgent]) -> None:
        """Take a complete pass."""
        before, self._agents, self._nodes = self._nodes, {}, {}
        # Many agents have the same tags: each text is kept once.
        known: dict[tuple[str, ...], tuple[str, ...]] = {}
        for row in rows:
            if len(self._nodes) >= self._max_agents:
                break
            agent = before.get(row.node_id)
            if agent is None or agent != row:
                agent = _sound(row, known)
            self._nodes[agent.node_id] = agent
            if agent.name:
                self._agents[agent.name] = agent

    def get(self, name: str) -> DirectoryAgent | None:
        """Return what it says of an agent."""
        return self._agents.get(name)

    def node(self, node_id: int) -> DirectoryAgent | None:
        """Return what it says of a node."""
        return self._nodes.get(node_id)

    def heard(self, node_id: int, name: str) -> None:
        """Remember how a daemon calls a node."""
        if node_id and node_id not in self._nodes:
            self._heard.pop(node_id, None)
            self._heard[node_id] = name
            if len(self._heard) > self._max_agents:
                del self._heard[next(iter(self._heard))]

    def name_of(self, node_id: int) -> str:
        """Return the name of a node, or its address if it has none."""
        agent = self._nodes.get(node_id)
        if agent is not None and agent.name:
            return agent.name
        return self._heard.get(node_id) or str(Address(BACKBONE, node_id))

    def save(self) -> list[DirectoryAgent]:
        """Return it as it is kept over a restart; :meth:`take` takes it back."""
        return list(self._nodes.values())


def _sound(
    row: DirectoryAgent, known: dict[tuple[str, ...], tuple[str, ...]]
) -> DirectoryAgent:
    tags = known.get(row.tags)
    if tags is None:
        tags = known[row.tags] = _sound_tags(row.tags)
    return DirectoryAgent(
        node_id=row.node_id,
        address=clean(row.address, MAX_NAME),
        name=clean(row.name, MAX_NAME),
        tags=tags,
        polo=row.polo,
        is_online=row.is_online,
    )


def _sound_tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    sound = dict.fromkeys(
        tag for tag in tags if 0 < len(tag) <= MAX_NAME and tag.isprintable()
    )
    return tuple(sound)[:MAX_TAGS]
