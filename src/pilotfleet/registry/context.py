"""Who is asking: the connection that a request came over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pilotfleet.protocol.address import Endpoint

__all__ = ["PeerContext"]

_LOCAL: Final = frozenset({"127.0.0.1", "::1", "::ffff:127.0.0.1"})


class PeerContext:
    """One connection, as far as the rules need to know it."""

    __slots__ = ("connection_id", "ip", "port", "verified_node")

    def __init__(self, ip: str, connection_id: int = 0, *, port: int = 0) -> None:
        self.ip = ip
        self.connection_id = connection_id
        self.port = port
        self.verified_node = 0
        """The node whose signature was verified last; 0: none yet."""

    @property
    def endpoint(self) -> Endpoint:
        """Where the connection comes from."""
        return self.ip, self.port

    @property
    def is_local(self) -> bool:
        """Tell whether the connection comes from this host."""
        return self.ip in _LOCAL
