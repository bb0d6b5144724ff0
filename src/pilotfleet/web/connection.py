"""One connection of the HTTP server, with limits on how slow it may be.

uvicorn has a time limit between two requests only. A client that sends its request
byte by byte, or does not read its answer, would keep its place for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

__all__ = ["PatientProtocol"]

REQUEST_S: Final = 10.0
"""How long the line and headers of a request may take."""
WRITE_S: Final = 15.0
"""How long a client may take no byte of what waits for it."""
CROWD: Final = 1_200
"""Connections at which the next is closed unheard. Above uvicorn's own limit, from
which on it answers 503: that answer has to fit in too."""


class PatientProtocol(H11Protocol):
    """uvicorn's connection, whose patience ends."""

    _patience: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > CROWD:
            transport.abort()
        else:
            self._expect_request()

    def data_received(self, data: bytes) -> None:
        """Take bytes; a request that is not whole must be so in time."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_patience()
        elif self._patience is None and self.conn.trailing_data[0]:
            self._expect_request()

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        self._stop_stuck()
        self._stuck = self.loop.call_later(WRITE_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that the client reads."""
        self._stop_stuck()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_patience()
        super().connection_lost(exc)
        self._stop_stuck()

    def _expect_request(self) -> None:
        self._patience = self.loop.call_later(REQUEST_S, self.transport.abort)

    def _stop_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _stop_stuck(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
