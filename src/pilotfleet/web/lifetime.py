"""What a server tells the applications that it runs: when it ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Lifetime"]

MAX_STREAMS: Final = 100
"""Responses that stay open, of one server."""
MAX_STREAMS_PER_CLIENT: Final = 20
"""Of one address elsewhere; this host, and a proxy on it, may have all."""
LOCAL: Final = frozenset({"127.0.0.1", "::1"})
SCOPE_KEY: Final = "pilotfleet.lifetime"


class Lifetime:
    """The life of one server, as its long responses need to know it."""

    def __init__(self) -> None:
        self.closing = asyncio.Event()
        """Set when the server is about to stop: long responses then end."""
        self._streams: Counter[str] = Counter()
        """Long responses that are open now, by client."""

    @classmethod
    def of(cls, scope: Scope) -> Lifetime:
        """Return that of the server that took a request."""
        lifetime: Lifetime = scope[SCOPE_KEY]
        return lifetime

    def attached(self, app: ASGIApp) -> ASGIApp:
        """Return ``app`` with every request carrying this."""

        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            scope[SCOPE_KEY] = self
            await app(scope, receive, send)

        return run

    def open_stream(self, client: str) -> bool:
        """Count one long response more, if there is room for it."""
        most = MAX_STREAMS if client in LOCAL else MAX_STREAMS_PER_CLIENT
        is_full = self._streams.total() >= MAX_STREAMS
        if is_full or self._streams[client] >= most or self.closing.is_set():
            return False
        self._streams[client] += 1
        return True

    def close_stream(self, client: str) -> None:
        """Count one less."""
        self._streams[client] -= 1
        if not self._streams[client]:
            del self._streams[client]
