"""The beacon's socket: reads datagrams in batches and asks the table."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pilotfleet.errors import AlreadyExists
from pilotfleet.registry.beacon_table import BeaconConfig, BeaconCounters, BeaconTable
from pilotfleet.transport.clock import Clock, SystemClock
from pilotfleet.transport.udp import UdpSocket

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from pilotfleet.protocol.address import Endpoint

__all__ = ["BeaconServer"]


class BeaconServer:
    """A beacon on a UDP port. An async context manager."""

    def __init__(
        self,
        bind: Endpoint,
        *,
        config: BeaconConfig | None = None,
        clock: Clock | None = None,
        find: Callable[[int], Endpoint | None] = lambda node: None,
        is_registered: Callable[[int], bool] = lambda node: True,
    ) -> None:
        """Prepare; ``find`` and ``is_registered`` are the table's."""
        self._bind = bind
        self._clock = clock or SystemClock()
        self._table = BeaconTable(
            config, now=self._clock.now(), find=find, is_registered=is_registered
        )
        self._socket: UdpSocket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    @property
    def address(self) -> Endpoint:
        """Where the beacon is bound."""
        return self._socket.address if self._socket is not None else self._bind

    @property
    def counters(self) -> BeaconCounters:
        """What the beacon has done since its start."""
        return self._table.counters

    @property
    def node_count(self) -> int:
        """How many nodes it knows."""
        return len(self._table)

    def notify(self, node: int) -> None:
        """Tell a node that the registry holds a handshake for it."""
        self._table.notify(node, self._clock.now())
        self._flush()

    async def __aenter__(self) -> BeaconServer:
        """Bind the port.

        Raises:
            AlreadyExists: Somebody else has it.
            Unavailable: The system refuses the address.
        """
        loop = asyncio.get_running_loop()
        try:
            self._socket = UdpSocket(loop, self._bind, self._on_datagrams)
        except AlreadyExists as error:
            error.hint = "stop the other program, or choose a port with --beacon-addr"
            raise
        self._flush()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the port."""
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._socket.close()

    def _on_datagrams(self, datagrams: list[tuple[bytes, Endpoint]]) -> None:
        now = self._clock.now()
        receive = self._table.receive_datagram
        for data, source in datagrams:
            receive(data, source, now)
        self._flush()

    def _on_timer(self) -> None:
        self._timer = None
        self._table.handle_timer(self._clock.now())
        self._flush()

    def _flush(self) -> None:
        """Send what there is and keep the one timer at the next deadline."""
        if self._socket is None or self._socket.is_closed:
            return
        if datagrams := self._table.datagrams_to_send():
            self._socket.send(datagrams)
        loop = asyncio.get_running_loop()
        wait = max(0.0, self._table.next_timer() - self._clock.now())
        when = loop.time() + wait
        if self._timer is not None:
            # Not asked of the timer: uvloop's has no ``when`` if it is due at once.
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._timer_at = when
        self._timer = loop.call_later(wait, self._on_timer)
