"""Whether an agent takes a task, by the scores at the registry.

tasks-and-polo.md section 6.3: the worker's daemon asks its registry before it keeps a
submission. Answers hold for a few seconds, and what several submissions of one peer
want to know at once is asked once.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from pilotfleet.errors import PilotError, RegistryError
from pilotfleet.node.cache import ExpiringCache

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["PoloGate", "PoloGateConfig", "ScoredAgent"]

logger = logging.getLogger(__name__)

# From the specification (section 2.1).
REJECTED: Final = "Task rejected by polo gate: "
NOT_AUTHORIZED: Final = "Failed to authorize task"
NO_REGISTRY: Final = "Registry unavailable, cannot verify polo gate"

# Of our choosing.
ANSWER_TTL_S: Final = 3.0
ASK_LIMIT_S: Final = 5.0
"""For the registry's answer: the peer's other messages wait behind its submission."""
MAX_CACHED: Final = 65_536
MAX_ASKED: Final = 1_024
"""Questions under way; a submission beyond them is refused."""
_MAX_REASON: Final = 400


@dataclass(frozen=True, slots=True)
class PoloGateConfig:
    """What the gate of a host asks for."""

    is_on: bool = True
    min_polo: int | None = None
    """A submitter needs this score; None: at least that of the worker."""


class ScoredAgent(Protocol):
    """What the gate needs of an agent."""

    @property
    def node_id(self) -> int:
        """Its number in the registry."""

    async def registry(self, kind: str, /, **fields: Any) -> dict[str, Any]:
        """Ask the registry, signed by the agent."""


class PoloGate:
    """Decides for all agents of a host."""

    def __init__(
        self,
        config: PoloGateConfig,
        *,
        clock: Callable[[], float],
        spawn: Callable[[Coroutine[Any, Any, str]], asyncio.Task[str]],
    ) -> None:
        self._config = config
        self._clock = clock
        self._spawn = spawn
        self._answers: ExpiringCache[tuple[int, int], str] = ExpiringCache(MAX_CACHED)
        self._asking: dict[tuple[int, int], asyncio.Task[str]] = {}
        self._has_warned = False

    async def refusal(self, agent: ScoredAgent, peer: int) -> str | None:
        """Return why the score of a peer is too low, or None when it is not."""
        if not self._config.is_on or peer == agent.node_id:
            return None
        key = (agent.node_id, peer)
        answer = self._answers.get(key, self._clock())
        if answer is None:
            task = self._asking.get(key)
            if task is None:
                if len(self._asking) >= MAX_ASKED:
                    return NOT_AUTHORIZED
                task = self._spawn(self._ask(agent, peer))
                self._asking[key] = task
                task.add_done_callback(lambda _: self._asking.pop(key, None))
            # Others may wait for the same answer, so it outlives a cancelled one.
            answer = await asyncio.shield(task)
        return answer or None

    def forget(self, node: int, other: int) -> None:
        """Ask again about these two nodes: their scores have changed."""
        self._answers.discard((node, other))
        self._answers.discard((other, node))

    async def _ask(self, agent: ScoredAgent, peer: int) -> str:
        """Return the refusal, empty for none."""
        answer = await self._answer(agent, peer)
        self._answers.put((agent.node_id, peer), answer, self._clock() + ANSWER_TTL_S)
        return answer

    async def _answer(self, agent: ScoredAgent, peer: int) -> str:
        fields: dict[str, Any] = {
            "caller_node_id": agent.node_id,
            "submitter_node_id": peer,
            "receiver_node_id": agent.node_id,
        }
        if self._config.min_polo is not None:
            fields["min_polo"] = self._config.min_polo
        try:
            async with asyncio.timeout(ASK_LIMIT_S):
                reply = await agent.registry("authorize_task_submit", **fields)
        except RegistryError as error:
            self._warn(error)
            return NOT_AUTHORIZED
        except (PilotError, TimeoutError):
            return NO_REGISTRY
        if reply.get("authorized") is True:
            return ""
        return REJECTED + str(reply.get("reason", "not authorized"))[:_MAX_REASON]

    def _warn(self, error: RegistryError) -> None:
        """Say once what to do with a registry that has no scores."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "the registry does not authorize tasks (%s); agents refuse them"
                " unless the daemon runs with --polo-gate off",
                error,
            )
