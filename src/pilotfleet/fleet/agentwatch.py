"""Agents that come, change and go, as they do it.

Beside the iterator for programs there is :class:`WatchState`, which puts the pushes of
a daemon together to what is there now.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from pilotfleet.errors import (
    Closed,
    ConnectionFailed,
    NotSupported,
    PilotError,
    error_from_fields,
)
from pilotfleet.fleet.targets import FoundAgent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from types import TracebackType

    from pilotfleet.client.daemon import DaemonClient

__all__ = ["AgentChange", "AgentWatch", "WatchState", "changes_of"]

KINDS: Final[tuple[Literal["added", "changed", "removed"], ...]] = (
    "removed",
    "added",
    "changed",
)


@dataclass(frozen=True, slots=True)
class AgentChange:
    """One agent came, is different now, or went."""

    kind: Literal["added", "changed", "removed"]
    agent: FoundAgent
    """What it is like now; of one that went, what it was like."""


def changes_of(push: Mapping[str, Any]) -> list[AgentChange]:
    """Return the changes that a push of a daemon tells."""
    return [
        AgentChange(kind, FoundAgent.from_row(row))
        for kind in KINDS
        for row in push.get(kind) or ()
    ]


class WatchState:
    """The agents that a watch shows now."""

    def __init__(self) -> None:
        self.agents: dict[int, FoundAgent] = {}
        """By node id."""
        self.is_complete = False
        """Whether all of them have been told."""

    def take(self, push: Mapping[str, Any]) -> list[AgentChange]:
        """Take a push of the watch; return its changes.

        Raises:
            PilotError: The watch has ended, for this reason.
        """
        error = push.get("error")
        if isinstance(error, dict):
            raise error_from_fields(error)
        changes = changes_of(push)
        for change in changes:
            if change.kind == "removed":
                self.agents.pop(change.agent.node_id, None)
            else:
                self.agents[change.agent.node_id] = change.agent
        self.is_complete = push.get("complete") is True
        return changes


class AgentWatch:
    """Iterate over it for changes; what is there at first is told as added.

    An asynchronous context manager that ends it. It has a connection to the daemon of
    its own, so a slow reader holds up nothing else. For one reader.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[DaemonClient]],
        query: Mapping[str, Any],
        *,
        on_closed: Callable[[AgentWatch], object] | None = None,
    ) -> None:
        """For :meth:`Agent.watch`."""
        self._connect = connect
        self._query = query
        self._on_closed = on_closed
        self._client: DaemonClient | None = None
        self._pushes: AsyncIterator[dict[str, Any]] | None = None
        self._waiting: deque[AgentChange] = deque()
        self._state = WatchState()
        self._is_closed = False
        self.is_live = False
        """Whether changes come when they happen: the registry has the extension. If
        not, it is searched every half minute."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def agents(self) -> Mapping[int, FoundAgent]:
        """The agents that fit, by node id, as far as the daemon has told."""
        return self._state.agents

    @property
    def is_complete(self) -> bool:
        """Whether ``agents`` are all of them."""
        return self._state.is_complete

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AgentChange:
        """Return the next change. May be cancelled without losing one.

        Raises:
            NotSupported: The daemon is an official one, or too old.
            ConnectionFailed: The daemon, or at the beginning the registry, is away.
            InvalidArgument: The registry refuses the question.
        """
        while not self._waiting:
            if self._is_closed:
                raise StopAsyncIteration
            self._waiting += await self._receive()
        return self._waiting.popleft()

    async def receive(self) -> None:
        """Wait for news of the daemon and take it to ``agents``.

        For who only wants to know what is there; what is taken so is not iterated
        over. May be cancelled, and raises, as iterating.
        """
        await self._receive()

    async def close(self) -> None:
        """End it, and whoever iterates."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._on_closed is not None:
            self._on_closed(self)
        if self._client is not None:
            await self._client.close()

    async def _receive(self) -> list[AgentChange]:
        if self._is_closed:
            raise Closed("the watch is closed")
        try:
            client = self._client or await self._open()
            push = await self._next_push(client)
            if push is None:
                return []
            return self._state.take(push) if push.get("push") == "watch" else []
        except PilotError:
            if self._is_closed:
                return []
            await self.close()
            raise

    async def _next_push(self, client: DaemonClient) -> dict[str, Any] | None:
        if self._pushes is None:
            self._pushes = client.pushes()
        try:
            return await anext(self._pushes)
        except StopAsyncIteration:
            if self._is_closed:
                return None
            raise ConnectionFailed("the daemon closed the connection") from None
        except asyncio.CancelledError:
            # It ends the generator, but not the connection.
            self._pushes = None
            raise

    async def _open(self) -> DaemonClient:
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(await self._connect())
            try:
                answer = await client.call("watch", **self._query)
                if self._is_closed:
                    raise Closed("the watch is closed")
            except NotSupported as error:
                raise NotSupported(
                    "the daemon cannot watch the registry",
                    hint="it needs pilotfleet's pilot-daemon",
                ) from error
            self.is_live = answer.get("live") is True
            stack.pop_all()
        self._client = client
        return client
