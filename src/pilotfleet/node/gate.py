"""Whom a private agent lets in (wire.md section 14)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import PilotError
from pilotfleet.node.cache import ExpiringCache

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.host import Host

__all__ = ["Gate"]

logger = logging.getLogger(__name__)

# From the specification.
REPLY_WINDOW_S: Final = 300.0
REPLY_PORTS: Final = frozenset({444, 1001})

# Of our choosing.
ADMITTED_TTL_S: Final = 60.0
"""A revocation at the registry takes effect within this time."""
REFUSED_TTL_S: Final = 5.0
MAX_CACHED: Final = 65_536
MAX_QUESTIONS: Final = 1024
"""Questions to the registry under way; further ones count as refused."""


class Gate:
    """Answers for all agents of a host whether a peer is admitted."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._answers: ExpiringCache[tuple[int, int], bool] = ExpiringCache(MAX_CACHED)
        self._contacted: ExpiringCache[tuple[int, int], bool] = ExpiringCache(
            MAX_CACHED
        )
        self._asking: dict[tuple[int, int], list[Callable[[bool], None]]] = {}
        self.refused = 0

    def note_contact(self, agent: Agent, peer: int) -> None:
        """Open the reply window: the agent dialled, or asked for trust."""
        if not agent.is_public:
            expires = self._host.now() + REPLY_WINDOW_S
            self._contacted.put((agent.node_id, peer), True, expires)

    def forget(self, agent: Agent, peer: int) -> None:
        """Ask again the next time, reply or not; for changes of trust."""
        self._answers.discard((agent.node_id, peer))
        self._contacted.discard((agent.node_id, peer))

    def is_reply(self, agent: Agent, peer: int, port: int) -> bool:
        """Tell whether the reply window admits a stream to ``port``."""
        key = (agent.node_id, peer)
        return port in REPLY_PORTS and bool(self._contacted.get(key, self._host.now()))

    def admits_now(self, agent: Agent, peer: int) -> bool:
        """Tell whether ``peer`` may exchange keys with a strict agent.

        A peer that the registry must be asked about is refused for now. It repeats
        its frame, and then the answer is there.
        """
        known = self.answer(agent, peer)
        if known is None:
            self.ask(agent, peer, _ignore)
        key = (agent.node_id, peer)
        return bool(known or self._contacted.get(key, self._host.now()))

    def answer(self, agent: Agent, peer: int) -> bool | None:
        """Tell whether ``peer`` is admitted; None if the registry must be asked."""
        if agent.is_public or peer == agent.node_id or agent.trust.is_trusted(peer):
            return True
        return self._answers.get((agent.node_id, peer), self._host.now())

    def ask(self, agent: Agent, peer: int, on_answer: Callable[[bool], None]) -> None:
        """Call ``on_answer`` once it is known whether ``peer`` is admitted."""
        known = self.answer(agent, peer)
        if known is not None:
            on_answer(known)
            return
        key = (agent.node_id, peer)
        waiting = self._asking.get(key)
        if waiting is not None:
            waiting.append(on_answer)
        elif len(self._asking) >= MAX_QUESTIONS:
            on_answer(False)
        else:
            self._asking[key] = [on_answer]
            self._host.spawn(self._check_trust(agent, peer), name=f"trust of {peer}")

    async def _check_trust(self, agent: Agent, peer: int) -> None:
        admitted = False
        try:
            admitted = await self._ask_registry(agent, peer)
        finally:
            for on_answer in self._asking.pop((agent.node_id, peer), ()):
                on_answer(admitted)

    async def _ask_registry(self, agent: Agent, peer: int) -> bool:
        try:
            answer = await agent.registry(
                "check_trust", node_id=agent.node_id, peer_id=peer
            )
        except PilotError as error:
            # An unreachable registry means no (wire.md section 14).
            logger.debug("check_trust %d %d: %s", agent.node_id, peer, error)
            return False
        admitted = answer.get("trusted") is True
        ttl = ADMITTED_TTL_S if admitted else REFUSED_TTL_S
        self._answers.put((agent.node_id, peer), admitted, self._host.now() + ttl)
        self.refused += not admitted
        return admitted


def _ignore(admitted: bool) -> None:
    """Take an answer that only the cache needs."""
