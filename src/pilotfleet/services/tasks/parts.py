"""What the link to a peer needs of the parts of the task service around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine
    from typing import Any

    from pilotfleet.errors import PilotError
    from pilotfleet.node.cache import ExpiringCache
    from pilotfleet.protocol.address import SocketAddress
    from pilotfleet.protocol.services.tasks import Message
    from pilotfleet.services.tasks.link import PeerLink
    from pilotfleet.services.tasks.record import TaskRecord

__all__ = ["LinkOwner", "TaskAgent", "TaskStream"]


class TaskStream(Protocol):
    """What a link needs of a stream."""

    @property
    def remote(self) -> SocketAddress:
        """The other end."""

    async def read(self, limit: int = ...) -> bytes:
        """Return some bytes, or nothing at the end."""

    async def write(self, data: bytes) -> None:
        """Send bytes."""

    def defer_acks(self, delay_s: float) -> None:
        """Let the stream's own acknowledgements wait for data to carry them."""

    async def close(self) -> None:
        """End the stream."""

    def abort(self) -> None:
        """Break the stream off."""


class TaskAgent(Protocol):
    """What the task service needs of a hosted agent."""

    @property
    def name(self) -> str:
        """The agent's name on its host."""

    async def dial(
        self, remote: SocketAddress, *, timeout: float | None = None
    ) -> TaskStream:
        """Open a stream to a peer."""


class LinkOwner(Protocol):
    """What a link needs of the task service."""

    def now(self) -> float:
        """Return monotonic seconds in which the event loop came round."""

    def spawn(self, coro: Coroutine[Any, Any, Any], *, name: str) -> object:
        """Run a coroutine as an owned task."""

    async def receive(self, agent: str, peer: int, message: Message) -> Message | None:
        """Apply a message; return the answer once its effect is durable."""

    def is_served(self, agent: TaskAgent) -> bool:
        """Return whether a worker program takes the tasks of an agent."""

    def is_watched(self, agent: TaskAgent) -> bool:
        """Return whether a program follows the tasks that an agent has submitted."""

    async def content(self, record: TaskRecord) -> bytes:
        """Return the result of a task."""

    async def message(self, record: TaskRecord) -> Message | None:
        """Return what a peer with task sessions has to be told of a task."""

    def delivery_failed(self, record: TaskRecord, error: PilotError) -> None:
        """Note that a task could not be delivered."""

    def unreachable(self, agent: str, task_ids: list[str]) -> None:
        """Note that the worker of these tasks cannot be reached."""

    def link_idle(self, link: PeerLink) -> None:
        """Note that a link has nothing to do and no session."""

    @property
    def dial_slots(self) -> asyncio.Semaphore:
        """Limits the dials of all links together."""

    @property
    def redial_slots(self) -> asyncio.Semaphore:
        """Limits those to peers that could not be reached the last time."""

    @property
    def official_peers(self) -> ExpiringCache[int, bool]:
        """Peers that have no port 1010."""
