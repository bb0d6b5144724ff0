"""Who may submit tasks to an agent."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol

from pilotfleet.errors import PilotError
from pilotfleet.node.cache import ExpiringCache

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GateMode", "GatedAgent", "TaskGate"]

# Of our choosing.
ALLOWED_TTL_S: Final = 60.0
REFUSED_TTL_S: Final = 5.0
MAX_CACHED: Final = 65_536
NOT_TRUSTED: Final = "Task rejected: submitter is not trusted"


class GateMode(StrEnum):
    """How an agent decides."""

    TRUSTED = "trusted"
    """Peers that are trusted or share a network with it."""
    OFF = "off"
    """Whoever reaches its ports."""


class GatedAgent(Protocol):
    """What the gate needs of an agent."""

    @property
    def node_id(self) -> int:
        """Its number in the registry."""

    @property
    def is_public(self) -> bool:
        """True when the node admits every peer to its ports."""

    @property
    def trust(self) -> Any:
        """Its trust list, with ``is_trusted``."""

    async def registry(self, kind: str, /, **fields: Any) -> dict[str, Any]:
        """Ask the registry, signed by the agent."""


class TaskGate:
    """Decides for all agents of a host; remembers what the registry said."""

    def __init__(
        self, mode: GateMode = GateMode.TRUSTED, *, clock: Callable[[], float]
    ) -> None:
        self._mode = mode
        self._clock = clock
        self._answers: ExpiringCache[tuple[int, int], bool] = ExpiringCache(MAX_CACHED)

    async def refusal(self, agent: GatedAgent, peer: int) -> str | None:
        """Return why a peer may not submit, or None when it may."""
        # The ports of a private node admit trusted peers only, so whoever got here is
        # trusted. A public node admits everybody and must look again (section 6.4).
        if self._mode is GateMode.OFF or not agent.is_public or peer == agent.node_id:
            return None
        if agent.trust.is_trusted(peer):
            return None
        key = (agent.node_id, peer)
        allowed = self._answers.get(key, self._clock())
        if allowed is None:
            allowed = await self._ask(agent, peer)
            ttl = ALLOWED_TTL_S if allowed else REFUSED_TTL_S
            self._answers.put(key, allowed, self._clock() + ttl)
        return None if allowed else NOT_TRUSTED

    async def _ask(self, agent: GatedAgent, peer: int) -> bool:
        try:
            answer = await agent.registry(
                "check_trust", node_id=agent.node_id, peer_id=peer
            )
        except PilotError:
            # Without an answer there is no trust, as at the ports.
            return False
        return answer.get("trusted") is True
