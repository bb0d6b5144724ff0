"""Who is asking: the connection that a request came over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.protocol.address import Endpoint

__all__ = ["PeerContext"]

_LOCAL: Final = frozenset({"127.0.0.1", "::1", "::ffff:127.0.0.1"})


class PeerContext:
    """One connection, as far as the rules need to know it."""

    __slots__ = (
        "_waits",
        "connection_id",
        "ip",
        "is_ending",
        "is_gone",
        "port",
        "verified_node",
    )

    def __init__(self, ip: str, connection_id: int = 0, *, port: int = 0) -> None:
        self.ip = ip
        self.connection_id = connection_id
        self.port = port
        self.verified_node = 0
        """The node whose signature was verified last; 0: none yet."""
        self.is_ending = False
        """The connection is over, or the server stops: nothing may wait for long."""
        self.is_gone = False
        """The connection is over: nobody reads an answer."""
        self._waits: set[Callable[[], None]] | None = None

    @property
    def endpoint(self) -> Endpoint:
        """Where the connection comes from."""
        return self.ip, self.port

    @property
    def is_local(self) -> bool:
        """Tell whether the connection comes from this host."""
        return self.ip in _LOCAL

    def add_wait(self, end: Callable[[], None]) -> None:
        """Have a wait for something new ended by ``end_waits``."""
        if self._waits is None:
            self._waits = set()
        self._waits.add(end)

    def remove_wait(self, end: Callable[[], None]) -> None:
        """Note that a wait has ended by itself."""
        if self._waits is not None:
            self._waits.discard(end)

    def end_waits(self) -> None:
        """End what waits, and let nothing wait from now on."""
        self.is_ending = True
        for end in tuple(self._waits or ()):
            end()
