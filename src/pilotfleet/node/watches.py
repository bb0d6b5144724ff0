"""Watches of the registry's directory for the programs of this host.

Equal questions of one agent are one watch at the registry, however many programs want
to know. Each program has a :class:`Follower`, which knows what it was told and what it
was not told yet. It keeps no list of changes: an agent that changes ten times while a
program is slow is told once, as it is then.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.client.registrywatch import Pace, RegistryWatch, WatchLink
from pilotfleet.client.watching import (
    WATCH_EXTENSION,
    Change,
    ChangeKind,
    RowBudget,
    WatchQuery,
)
from pilotfleet.errors import Busy, Closed, NotFound, PilotError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pilotfleet.client.watching import Row
    from pilotfleet.node.agent import Agent
    from pilotfleet.node.host import Host

__all__ = ["Follower", "News", "Watches"]

MAX_WATCHES: Final = 64
"""Questions that one host follows; each has a connection to the registry."""
MAX_FOLLOWERS: Final = 512
"""Programs, or parts of programs, that follow them."""
MAX_ROWS: Final = 500_000
"""Agents that all watches know and all followers were told, together. A watched agent
takes about 600 bytes, and 100 more for each follower."""


@dataclass(frozen=True, slots=True)
class News:
    """What a follower is told next."""

    changes: tuple[Change, ...]
    is_complete: bool
    """Whether it knows now all there is to know."""


class Follower:
    """One reader of a watch. Close it at the end."""

    def __init__(self, watch: SharedWatch, rows: RowBudget) -> None:
        """For :meth:`Watches.follow`."""
        self._watch = watch
        self._rows = rows
        self._told: dict[int, Row] = {}
        # Also what is there now is news to it.
        self._untold = dict.fromkeys(watch.known)
        self._was_complete = False
        self._error: PilotError | None = None
        self._changed = asyncio.Event()

    @property
    def is_live(self) -> bool:
        """Whether changes come when they happen, not at the next search."""
        return self._watch.is_live

    async def wait(self) -> None:
        """Return when there is news.

        Raises:
            PilotError: There will be no more.
        """
        while self._error is None and not self._has_news():
            self._changed.clear()
            await self._changed.wait()
        self._check_open()

    def take(self, limit: int) -> News:
        """Return the news, at most ``limit`` changes of it.

        Raises:
            TooManyRows: Too many agents are watched on this host.
            PilotError: There will be no more.
        """
        self._check_open()
        changes: list[Change] = []
        while self._untold and len(changes) < limit:
            node = next(iter(self._untold))
            del self._untold[node]
            change = self._tell(node)
            if change is not None:
                changes.append(change)
        self._was_complete = self._watch.is_complete and not self._untold
        return News(tuple(changes), self._was_complete)

    def note(self, changes: list[Change]) -> None:
        """Take note of what is to be told."""
        for change in changes:
            self._untold[change.row.node_id] = None
        self._changed.set()

    def fail(self, error: PilotError) -> None:
        """Have nothing more come."""
        self._error = error
        self._changed.set()

    def close(self) -> None:
        """Follow no longer. May be called again."""
        self._rows.give(len(self._told))
        self._told, self._untold = {}, {}
        self._watch.release(self)

    def _check_open(self) -> None:
        # First of all: a watch that has ended knows nobody, and so removes nobody.
        if self._error is not None:
            raise self._error

    def _has_news(self) -> bool:
        return bool(self._untold) or self._watch.is_complete != self._was_complete

    def _tell(self, node: int) -> Change | None:
        before, now = self._told.get(node), self._watch.known.get(node)
        if now is None:
            if before is None:
                return None
            del self._told[node]
            self._rows.give(1)
            return Change(ChangeKind.REMOVED, before)
        if before is None:
            self._rows.take()
        self._told[node] = now
        if before is None:
            return Change(ChangeKind.ADDED, now)
        # It may have changed, and changed back.
        return None if before.is_same(now) else Change(ChangeKind.CHANGED, now)


class SharedWatch:
    """One watch at the registry and its followers. Asks as one agent."""

    def __init__(self, watches: Watches, agent: Agent, query: WatchQuery) -> None:
        host = agent.host
        self._watches = watches
        self._agent = agent
        self._link = WatchLink(
            host.registry.endpoint, tls=host.config.tls, pace=watches.pace
        )
        self._watch = RegistryWatch(query, self, watches.rows, pace=watches.pace)
        self.followers: set[Follower] = set()
        self._begun: asyncio.Future[None] = host.loop.create_future()
        name = f"watch of {agent.name}"
        self._task = host.spawn(self._run(), name=name)

    @property
    def query(self) -> WatchQuery:
        """What is watched."""
        return self._watch.query

    @property
    def agent(self) -> Agent:
        """Who watches."""
        return self._agent

    @property
    def known(self) -> Mapping[int, Row]:
        """The agents that fit, by node id."""
        return self._watch.state.known

    @property
    def is_complete(self) -> bool:
        """Whether all of them are known."""
        return self._watch.state.is_complete

    @property
    def is_live(self) -> bool:
        """Whether changes come when they happen, not at the next search."""
        return self._watch.is_live

    async def wait_begun(self) -> None:
        """Return when the registry has answered for the first time.

        Raises:
            PilotError: It refuses, or cannot be reached.
        """
        await asyncio.shield(self._begun)

    def release(self, follower: Follower) -> None:
        """End with the last follower."""
        self.followers.discard(follower)
        if not self.followers:
            self._watches.forget(self)
            self._task.cancel()

    def reset(self) -> None:
        """Connect anew."""
        self._link.reset()

    # For the watch: who asks, and how

    def offers_watch(self) -> bool:
        """Tell whether the registry has the extension ``watch``."""
        return self._agent.host.registry.offers(WATCH_EXTENSION)

    async def ask(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Send a ``watch`` with these fields once; return the reply."""
        agent = self._agent
        request = agent.signed("watch", requester_id=agent.node_id, **fields)
        return await self._link.ask(request)

    async def search(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Send a ``search`` with these fields; return the page."""
        agent = self._agent
        return await agent.registry("search", requester_id=agent.node_id, **fields)

    # Private

    async def _run(self) -> None:
        failure: PilotError = Closed("the watch has ended")
        try:
            await self._watch.run(self._on_changes)
        except PilotError as error:
            failure = error
        finally:
            self._link.close()
            self._watches.forget(self)
            for follower in self.followers:
                follower.fail(failure)
            if not self._begun.done():
                self._begun.set_exception(failure)
                # Nobody may be there any more who asks for it.
                self._begun.exception()

    def _on_changes(self, changes: list[Change]) -> None:
        for follower in self.followers:
            follower.note(changes)
        if not self._begun.done():
            self._begun.set_result(None)


class Watches:
    """All watches of a host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._shared: dict[tuple[str, WatchQuery], SharedWatch] = {}
        self.rows = RowBudget(MAX_ROWS)
        """What all of them keep."""
        self.pace = Pace()

    def __len__(self) -> int:
        """Return how many questions are followed."""
        return len(self._shared)

    async def follow(self, agent: Agent, query: WatchQuery) -> Follower:
        """Follow a question as an agent. May be cancelled.

        Raises:
            NotFound: The agent is not registered yet.
            Busy: Too many questions or programs, or too many agents that fit.
            RegistryError: The registry refuses the question.
            Unavailable: It cannot be reached.
        """
        if not agent.node_id:
            raise NotFound(f"agent {agent.name} is not registered yet")
        shared = self._shared.get((agent.name, query))
        self._check_room(is_new=shared is None)
        if shared is None:
            shared = SharedWatch(self, agent, query)
            self._shared[agent.name, query] = shared
        follower = Follower(shared, self.rows)
        shared.followers.add(follower)
        try:
            await shared.wait_begun()
        except BaseException:
            follower.close()
            raise
        return follower

    def reconnect(self) -> None:
        """Dial anew, as after a change of this machine's address."""
        for shared in self._shared.values():
            shared.reset()

    def forget(self, shared: SharedWatch) -> None:
        """Let the next one who asks have a watch of his own."""
        key = shared.agent.name, shared.query
        if self._shared.get(key) is shared:
            del self._shared[key]

    def _check_room(self, *, is_new: bool) -> None:
        if is_new and len(self._shared) >= MAX_WATCHES:
            raise Busy(
                f"this daemon follows {MAX_WATCHES} different questions already",
                hint="end a watch, or ask what another one asks",
            )
        if sum(len(each.followers) for each in self._shared.values()) >= MAX_FOLLOWERS:
            raise Busy(f"{MAX_FOLLOWERS} watches are open on this daemon")
