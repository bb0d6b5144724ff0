"""Who serves which virtual port of an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfleet.errors import AlreadyExists, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pilotfleet.node.stream import Stream

__all__ = ["PortTable"]


class PortTable:
    """Ports of one agent: its own listeners, and the services of its host.

    Services belong to the host and are the same for all agents, so that an
    agent without listeners of its own holds no table at all.
    """

    __slots__ = ("_listeners", "_services")

    def __init__(self, services: Mapping[int, object]) -> None:
        self._services = services
        self._listeners: dict[int, Callable[[Stream], None]] | None = None

    def __len__(self) -> int:
        """Return the number of bound ports, built-in services included."""
        return len(self._services) + len(self._listeners or ())

    def bind(self, port: int, on_stream: Callable[[Stream], None]) -> None:
        """Claim ``port``.

        Raises:
            AlreadyExists: A listener or a service has it.
        """
        if self._listeners is None:
            self._listeners = {}
        if port in self._services or port in self._listeners:
            raise AlreadyExists(f"port {port} already bound")
        self._listeners[port] = on_stream

    def release(self, port: int) -> None:
        """Give ``port`` up.

        Raises:
            NotFound: No listener has it.
        """
        if self._listeners is None or port not in self._listeners:
            raise NotFound(f"port {port} is not bound")
        del self._listeners[port]

    def listener(self, port: int) -> Callable[[Stream], None] | None:
        """Return the agent's own listener on ``port``."""
        return None if self._listeners is None else self._listeners.get(port)
