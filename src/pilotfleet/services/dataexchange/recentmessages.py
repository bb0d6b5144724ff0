"""Which messages were stored lately, so that a repeated one is stored once.

A sender that got no answer sends the message again with the same ID
(services.md section 4.5). One table serves all agents of a host, with a bound for
each agent, so that nobody's repetitions are forgotten for somebody else's traffic.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

__all__ = ["Outcome", "RecentMessages"]

# From the specification.
REMEMBERED_S: Final = 600.0
MAX_REMEMBERED: Final = 8192
"""For each agent."""

# Of our choosing.
SWEEP_S: Final = 60.0
"""How often, at most, the tables of all agents are looked through."""


class Outcome(NamedTuple):
    """What became of a message, with the answer that its sender gets."""

    is_stored: bool
    answer: str


class _Agent:
    __slots__ = ("pending", "stored")

    def __init__(self) -> None:
        self.stored: dict[bytes, tuple[float, str]] = {}
        """When it was stored, and the answer; the oldest first."""
        self.pending: dict[bytes, asyncio.Future[None]] = {}


class RecentMessages:
    """The messages that were stored in the last ten minutes.

    Args:
        clock: Seconds of a clock that never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._agents: dict[Hashable, _Agent] = {}
        self._swept_at = clock()

    def __len__(self) -> int:
        return sum(len(agent.stored) for agent in self._agents.values())

    async def once(
        self, owner: Hashable, key: bytes, store: Callable[[], Awaitable[Outcome]]
    ) -> tuple[str, bool]:
        """Store a message unless it is stored already.

        While the first copy is being stored, the second waits; if the first
        fails, the second is stored.

        Args:
            owner: The agent that receives.
            key: The same for the same message.
            store: Stores it.

        Returns:
            The answer to the first copy, and whether this one is the first, so that
            ``store`` was called.
        """
        while (pending := self._agent(owner).pending.get(key)) is not None:
            # Shielded: it belongs to the first copy.
            await asyncio.shield(pending)
        # Only now: a sweep may have taken the table away meanwhile.
        agent = self._agent(owner)
        known = agent.stored.get(key)
        if known is not None and self._clock() - known[0] < REMEMBERED_S:
            return known[1], False
        finished = asyncio.get_running_loop().create_future()
        agent.pending[key] = finished
        try:
            outcome = await store()
            if outcome.is_stored:
                self._remember(agent, key, outcome.answer)
            return outcome.answer, True
        finally:
            del agent.pending[key]
            finished.set_result(None)

    def _agent(self, owner: Hashable) -> _Agent:
        return self._agents.setdefault(owner, _Agent())

    def _remember(self, agent: _Agent, key: bytes, answer: str) -> None:
        now = self._clock()
        # Anew at the end, as the order is that of time.
        agent.stored.pop(key, None)
        agent.stored[key] = (now, answer)
        if len(agent.stored) > MAX_REMEMBERED:
            del agent.stored[next(iter(agent.stored))]
        if now - self._swept_at >= SWEEP_S:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        """Forget what is old, also of agents that receive nothing any more."""
        self._swept_at = now
        for owner, agent in list(self._agents.items()):
            for key, (stored_at, _) in list(agent.stored.items()):
                if now - stored_at < REMEMBERED_S:
                    break
                del agent.stored[key]
            if not agent.stored and not agent.pending:
                del self._agents[owner]
