"""Answers to searches, kept for a moment.

For programs that ask the same in a loop, or many that start together, and say that an
answer of a moment ago will do (``cached``): they get one answer of the registry.
Questions that are out are shared, and an answer holds for about two seconds. Never
longer than it is true as far as this host knows: whatever one of its agents changes at
the registry (tags, name, visibility, memberships, trust) forgets all answers. An answer
without a match is not kept, for somebody may be waiting for the first one.

What an agent of another host changes is seen after two seconds at the latest. Who
cannot have that asks without, and gets what the registry says from then on.

A running watch does not answer searches, though it knows the rows: it is not told when
an agent was last seen, and a search says so.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from pilotfleet.errors import PilotError
from pilotfleet.node.cache import ExpiringCache

if TYPE_CHECKING:
    from pilotfleet.node.agent import Agent
    from pilotfleet.node.host import Host

__all__ = ["CHANGING_TYPES", "Discovery"]

KEEP_S: Final = 2.0
JITTER: Final = 0.25
"""Up to this part of ``KEEP_S`` is taken off, so that programs that poll in step get
out of it, and do not all ask at the same moment again."""
MAX_ANSWERS: Final = 128
MAX_ROWS: Final = 100
"""Of an answer that is kept; a longer one is a page of somebody who reads them all."""

CHANGING_TYPES: Final = frozenset(
    {
        "deregister",
        "join_network",
        "leave_network",
        "register",
        "report_trust",
        "respond_handshake",
        "respond_invite",
        "revoke_trust",
        "set_hostname",
        "set_tags",
        "set_visibility",
    }
)
"""Requests after which a search may find others, or find them different."""

_Key: TypeAlias = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class _Answer:
    body: dict[str, Any]
    at: float


class Discovery:
    """The searches of a host's agents."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._answers: ExpiringCache[_Key, _Answer] = ExpiringCache(MAX_ANSWERS)
        self._flights: dict[_Key, asyncio.Task[_Answer | PilotError]] = {}
        self._generation = 0

    async def search(
        self, agent: Agent, query: dict[str, Any], *, cached: bool = False
    ) -> dict[str, Any]:
        """Return the body of ``search_ok``; from memory, its age is in ``age_s``.

        Args:
            agent: Who asks.
            query: The fields of the question.
            cached: An equal question's answer of the last two seconds will do.

        Raises:
            PilotError: As the registry's client does.
        """
        key = agent.name, msgspec.json.encode(query, order="deterministic")
        if not cached:
            return (await self._ask_afresh(agent, key, query)).body
        now = self._host.now()
        known = self._answers.get(key, now)
        if known is not None:
            return {**known.body, "age_s": round(now - known.at, 3)}
        flight = self._flights.get(key)
        if flight is None:
            name = f"search of {agent.name}"
            flight = self._host.spawn(self._fly(agent, key, query), name=name)
            self._flights[key] = flight
        # Shielded: who gives up must not take the answer from the others.
        answer = await asyncio.shield(flight)
        if isinstance(answer, PilotError):
            raise answer
        return answer.body

    def clear(self) -> None:
        """Forget all answers, those under way included: something has changed."""
        self._generation += 1
        self._answers = ExpiringCache(MAX_ANSWERS)
        self._flights = {}

    async def _fly(
        self, agent: Agent, key: _Key, query: dict[str, Any]
    ) -> _Answer | PilotError:
        task = asyncio.current_task()
        try:
            answer = await self._ask(agent, query)
            # Overtaken, it may be older than what is known.
            if self._flights.get(key) is task:
                self._keep(key, answer)
            return answer
        except PilotError as error:
            # Returned: all who wait raise it, and none of them may be there any more.
            return error
        finally:
            if self._flights.get(key) is task:
                del self._flights[key]

    async def _ask_afresh(
        self, agent: Agent, key: _Key, query: dict[str, Any]
    ) -> _Answer:
        # Whoever asks after this one shall not be told by an older question.
        self._flights.pop(key, None)
        generation = self._generation
        answer = await self._ask(agent, query)
        # A change of our own meanwhile: the registry may have answered before it.
        if generation == self._generation:
            self._keep(key, answer)
        return answer

    async def _ask(self, agent: Agent, query: dict[str, Any]) -> _Answer:
        asked = self._host.now()
        body = await agent.registry("search", requester_id=agent.node_id, **query)
        return _Answer(body, asked)

    def _keep(self, key: _Key, answer: _Answer) -> None:
        known = self._answers.get(key, answer.at)
        if known is not None and known.at > answer.at:
            return
        self._answers.discard(key)
        rows = answer.body.get("agents")
        if isinstance(rows, list) and 0 < len(rows) <= MAX_ROWS:
            keep_s = KEEP_S * self._host.rng.uniform(1 - JITTER, 1.0)
            self._answers.put(key, answer, answer.at + keep_s)
