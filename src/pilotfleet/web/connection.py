"""One connection of the HTTP server, with limits on how slow it may be.

uvicorn has a time limit between two requests only. A client that sends its request
byte by byte, or does not read its answer, would keep its place for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pilotfleet.web.lifetime import LOCAL
from pilotfleet.web.limits import network_of

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
CROWD_PER_CLIENT: Final = 200
"""The same of one address elsewhere, so that it takes many to keep all others out.
This host may have all, and with it a proxy."""


class PatientProtocol(H11Protocol):
    """uvicorn's connection, whose patience ends."""

    _patience: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None
    _network = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._network = network_of(self.client[0] if self.client else "")
        if len(self.connections) > CROWD or self._is_crowding():
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

    def _is_crowding(self) -> bool:
        if self._network in LOCAL:
            return False
        networks = [getattr(other, "_network", "") for other in self.connections]
        return networks.count(self._network) > CROWD_PER_CLIENT

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
