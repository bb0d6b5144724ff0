"""Watchers: they follow who belongs to a team, through the real core of both sides.

The registry's side is in ``bench.simulation.waitingroom``. The watcher's side is
:class:`~pilotfleet.client.watching.Watching`, with the pauses of
``pilotfleet.client.pacing``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from bench.simulation.identities import TEAM, team_of
from bench.simulation.links import SimulatedLink
from pilotfleet.client import pacing
from pilotfleet.client.registrywatch import PAGE, Pace
from pilotfleet.client.watching import RowBudget, Watching, WatchQuery
from pilotfleet.registry.context import PeerContext

if TYPE_CHECKING:
    from bench.simulation.kernel import Kernel, Process
    from bench.simulation.rendezvous import SimulatedRendezvous

PACE: Final = Pace()
WATCHERS_IP: Final = "10.255.255.253"


class Watcher:
    """One who watches a team for as long as the run lasts."""

    def __init__(
        self, kernel: Kernel, rendezvous: SimulatedRendezvous, number: int, *, host: int
    ) -> None:
        peer = PeerContext(WATCHERS_IP, host, port=45_000)
        self._kernel = kernel
        self._link = SimulatedLink(kernel, rendezvous, host, peer, attempts=1)
        self._query = WatchQuery.of([team_of(number * TEAM)])
        self._failures = 0
        self.state = Watching(RowBudget(4 * TEAM))
        self.changes = 0
        """That were told to whoever watches."""

    def follow(self) -> Process:
        """Ask again and again, as ``RegistryWatch`` does."""
        while True:
            state = self.state
            wait_s = 0 if state.has_more or not state.watch else PACE.wait_s
            fields = {**self._query.fields(), **state.request()}
            fields |= {"wait_s": wait_s, "limit": PAGE}
            reply = yield partial(self._link.send, {"type": "watch", **fields})
            if reply is not None and "error" not in reply:
                self._failures = 0
                self.changes += len(state.receive(reply))
                continue
            yield self._pause_s(reply)

    def _pause_s(self, reply: dict[str, Any] | None) -> float:
        rng = self._kernel.rng
        if reply is not None and (wait_s := pacing.deferral_s(reply)):
            return pacing.deferral_pause_s(wait_s, rng)
        self._failures += 1
        return pacing.watch_pause_s(
            self._failures,
            first_s=PACE.retry_s,
            longest_s=PACE.longest_retry_s,
            rng=rng,
        )
