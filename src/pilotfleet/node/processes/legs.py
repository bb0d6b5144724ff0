"""The connections to other processes that one client of this one needs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import NotRunning

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pilotfleet.client.daemon import DaemonClient
    from pilotfleet.node.ipc.session import IpcSession

__all__ = ["Legs"]

PUSH_RETRY_S: Final = 0.02
"""Between tries to hand a push to a client that reads slowly."""


class Legs:
    """The legs of one client.

    Args:
        session: The client's.
        connect: Makes a connection to a process.
    """

    def __init__(
        self, session: IpcSession, connect: Callable[[int], Awaitable[DaemonClient]]
    ) -> None:
        self._session = session
        self._connect = connect
        self._legs: dict[int, DaemonClient] = {}
        self._pumps: dict[int, asyncio.Task[None]] = {}
        self._opening = asyncio.Lock()
        self._is_closed = False

    @property
    def open(self) -> list[int]:
        """The processes that there are legs to."""
        return sorted(self._legs)

    async def get(self, to: int) -> DaemonClient:
        """Return the leg to a process; it is made when it is needed first."""
        async with self._opening:
            leg = self._legs.get(to)
            if leg is None:
                leg = self._legs[to] = await self._connect(to)
                pump = self._pump(leg)
                name = f"pushes of process {to}"
                self._pumps[to] = asyncio.create_task(pump, name=name)
        if self._is_closed:
            await leg.close()
            raise NotRunning("the connection is closed")
        return leg

    async def call_all(self, op: str, params: dict[str, Any]) -> None:
        """Call an operation on every leg."""
        await asyncio.gather(*(leg.call(op, **params) for leg in self._legs.values()))

    async def aclose(self) -> None:
        """Close the legs: what was kept for the client there is let go of."""
        self._is_closed = True
        for pump in self._pumps.values():
            pump.cancel()
        # A copy: one that was being made may still be added, and is closed there.
        for leg in list(self._legs.values()):
            await leg.close()
        await asyncio.gather(*self._pumps.values(), return_exceptions=True)

    async def _pump(self, leg: DaemonClient) -> None:
        """Hand on what the other process pushes, until it is gone."""
        session = self._session
        async for push in leg.pushes():
            while not session.push(push):
                if session.is_closed:
                    return
                await asyncio.sleep(PUSH_RETRY_S)
        session.close()
