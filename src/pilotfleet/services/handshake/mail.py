"""When agents look for handshakes that wait at the registry (trust.md section 5).

The official way to look empties the box there. So a poll is a task of the host,
which no caller's impatience cancels, and what it brings is saved before anything is
done with it. A registry that has the extension ``mailbox-ack`` keeps its box until
we say that we have saved and done it all; what a crash leaves is brought again, and
everything here bears being done twice.

An agent that was never polled has no state here, and none has a timer of its own:
the deadlines of agents that expect an answer are at the host's wheel.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import PilotError, StorageError
from pilotfleet.protocol.limits import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.host import Host

__all__ = ["Mailbox", "Mailroom"]

logger = logging.getLogger(__name__)

# From the specification.
POLL_INTERVAL_S: Final = 2.0
"""Never two polls of one agent within this time."""
EXPECT_S: Final = 120.0
"""How long polls follow each other after a request was sent."""
MAX_EXPECTED: Final = 64
"""Peers whose answers are polled for; of more, the keepalive's poll will do."""
CALLER_WAIT_S: Final = 3.0
"""How long a local command waits for a poll."""
POKES: Final = 3
POKE_RATE: Final = 1 / 5
"""Per second, after that many at once."""

MAILBOX_ACK: Final = "mailbox-ack"
"""The extension, as the registry names it."""


class Mailbox:
    """The polls of one agent. An owner at the host's timer wheel."""

    __slots__ = (
        "_agent",
        "_expected",
        "_is_stale",
        "_last",
        "_pokes",
        "_room",
        "_task",
    )

    def __init__(self, room: Mailroom, agent: Agent) -> None:
        self._room = room
        self._agent = agent
        self._last = float("-inf")
        self._expected: dict[int, float] = {}
        self._is_stale = False
        self._pokes = TokenBucket(POKES, POKE_RATE, 0.0)
        self._task: asyncio.Task[None] | None = None

    def poll(self, now: float) -> asyncio.Task[None] | None:
        """Start a poll, unless one has just been; return the one that runs."""
        if self._task is None and now - self._last >= POLL_INTERVAL_S:
            self._last = now
            self._task = self._room.host.spawn(
                self._run(), name=f"handshakes of {self._agent.name}"
            )
        return self._task

    def poke(self, now: float) -> None:
        """Poll because the beacon says so; anybody can send that, so bounded."""
        if not self._pokes.take(now):
            return
        if self._task is not None:
            # The registry may have answered it before what the beacon tells of came.
            self._is_stale = True
        elif self.poll(now) is None:
            self._schedule(self._last + POLL_INTERVAL_S)

    def expect(self, node: int, now: float) -> None:
        """Poll again and again for a while: ``node`` was asked for trust."""
        self._expected.pop(node, None)
        if len(self._expected) >= MAX_EXPECTED:
            del self._expected[next(iter(self._expected))]
        self._expected[node] = now + EXPECT_S
        self._schedule(now + POLL_INTERVAL_S)

    def handle_timer(self, now: float) -> None:
        """Poll, and go on while an answer is expected."""
        if self._agent.closed:
            return
        self.poll(now)
        outgoing = self._agent.trust.outgoing
        self._expected = {
            node: until
            for node, until in self._expected.items()
            if until > now and node in outgoing
        }
        if self._expected:
            self._schedule(now + POLL_INTERVAL_S)

    def _schedule(self, deadline: float) -> None:
        self._room.host.wheel.schedule(self, deadline)

    async def _run(self) -> None:
        try:
            await self._room.fetch(self._agent)
        finally:
            self._task = None
            if self._is_stale:
                self._is_stale = False
                self._schedule(self._last + POLL_INTERVAL_S)


class Mailroom:
    """The mailboxes of all agents of a host."""

    def __init__(
        self, host: Host, on_mail: Callable[[Agent, _Rows, _Rows], Awaitable[None]]
    ) -> None:
        self.host = host
        self._on_mail = on_mail
        self._boxes: dict[Agent, Mailbox] = {}

    def box(self, agent: Agent) -> Mailbox:
        """Return the mailbox of ``agent``."""
        box = self._boxes.get(agent)
        if box is None:
            box = self._boxes[agent] = Mailbox(self, agent)
        return box

    async def look(self, agent: Agent) -> None:
        """Poll for a local command; it waits a short time only."""
        task = self.box(agent).poll(self.host.now())
        if task is not None:
            await asyncio.wait([task], timeout=CALLER_WAIT_S)

    async def fetch(self, agent: Agent) -> None:
        """Take what waits for the agent and hand it on.

        It leaves the registry when it has been seen to: an exception of who sees to
        it, as for a full disk, leaves it there.
        """
        keep = MAILBOX_ACK in self.host.registry.extensions
        # An official registry, which would empty the box all the same, is not asked.
        fields = {"keep": True} if keep else {}
        try:
            # With each keepalive, so for many agents at a time.
            answer = await agent.gathered(
                "poll_handshakes", node_id=agent.node_id, **fields
            )
            requests, responses = _rows(answer, "requests"), _rows(answer, "responses")
            if not requests and not responses:
                return
            await self._on_mail(agent, requests, responses)
            if keep:
                ids = [str(row.get("id")) for row in (*requests, *responses)]
                await agent.registry("ack_handshakes", node_id=agent.node_id, ids=ids)
        except StorageError as error:
            logger.warning("handshakes of agent %s are not kept: %s", agent.name, error)
        except PilotError as error:
            logger.debug("poll_handshakes of %d: %s", agent.node_id, error)


_Rows = list[dict[str, Any]]


def _rows(answer: dict[str, Any], name: str) -> _Rows:
    """Return the rows that name a node; the registry is not trusted for form."""
    rows = answer.get(name)
    return [
        row
        for row in (rows if isinstance(rows, list) else ())
        if isinstance(row, dict) and isinstance(row.get("from_node_id"), int)
    ]
