"""What the event service needs of the node that it runs in.

As protocols: the broker and the publishers are tested in memory, without a node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from pilotfleet.protocol.address import SocketAddress

__all__ = ["BrokerAgent", "BrokerHost", "BrokerStream"]


class BrokerStream(Protocol):
    """What the broker needs of a connection."""

    @property
    def remote(self) -> SocketAddress:
        """The other side."""

    @property
    def is_open(self) -> bool:
        """Whether the connection can still carry data."""

    async def read(self, limit: int = ...) -> bytes:
        """Return what came in; nothing at the end."""

    async def write(self, data: bytes) -> None:
        """Send, waiting while the window is full."""

    @property
    def unacknowledged_bytes(self) -> int:
        """Bytes written that the other side may not have."""

    async def close(self) -> None:
        """End the connection after what was written."""

    def abort(self) -> None:
        """Break the connection off."""


class BrokerAgent(Protocol):
    """What the broker needs of an agent."""

    @property
    def name(self) -> str:
        """Its name on this host."""

    @property
    def hostname(self) -> str:
        """Its name in the registry, or nothing."""

    @property
    def node_id(self) -> int:
        """Its number in the registry."""

    def report(self, event: str, /, **data: Any) -> None:
        """Tell the agent's webhook what happened."""

    async def dial(self, remote: SocketAddress) -> BrokerStream:
        """Connect to a peer."""

    async def resolve_hostname(self, name: str) -> dict[str, Any]:
        """Ask the registry for a name."""


class BrokerHost(Protocol):
    """What the broker needs of the process it runs in."""

    @property
    def by_node(self) -> Mapping[int, Any]:
        """The hosted agents by node number."""

    @property
    def agents(self) -> Mapping[str, Any]:
        """The hosted agents by name."""

    @property
    def event_sink(self) -> object | None:
        """Whether any agent has a webhook; none costs nothing."""

    def spawn(self, coroutine: Coroutine[Any, Any, None], *, name: str) -> Any:
        """Run a coroutine that the host owns."""
