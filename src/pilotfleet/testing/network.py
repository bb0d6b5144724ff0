"""A network in memory that loses, delays, reorders and duplicates by seed.

Participants attach under a name, which may be any hashable value, such as an IP
endpoint. What they send is opaque. The network moves the clock itself: from one
delivery or timer to the next, so an hour of silence takes no time.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from pilotfleet.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable

__all__ = ["PERFECT", "Conditions", "FakeNetwork", "Participant"]

Receive: TypeAlias = "Callable[[bytes, Hashable, float], None]"
"""Called with the datagram, the name of its sender, and the time."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the network does to datagrams."""

    loss: float = 0.0
    """Share that never arrives."""
    duplication: float = 0.0
    """Share that arrives twice."""
    delay_s: float = 0.001
    jitter_s: float = 0.0
    """Up to this much is added to the delay, so datagrams overtake each other."""


PERFECT: Final = Conditions()


class Participant(Protocol):
    """A core with its shell: everything on the network that has timers."""

    def next_timer(self) -> float | None:
        """Return when ``handle_timer`` wants to be called."""

    def handle_timer(self, now: float) -> None:
        """Do what is due, and send what follows from it."""


class FakeNetwork:
    """Carries datagrams between named participants, always the same by seed."""

    def __init__(
        self,
        clock: FakeClock | None = None,
        *,
        seed: int = 0,
        conditions: Conditions = PERFECT,
    ) -> None:
        self.clock = clock if clock is not None else FakeClock()
        self.conditions = conditions
        """May be changed at any time; datagrams under way are not affected."""
        self.filter: Callable[[bytes, Hashable, Hashable], bool] | None = None
        """Says whether a datagram (data, source, destination) goes through."""
        self.sent = self.lost = self.delivered = 0
        self._random = random.Random(seed)
        self._receivers: dict[Hashable, Receive] = {}
        self._participants: list[Participant] = []
        self._groups: list[frozenset[Hashable]] = []
        self._under_way: list[tuple[float, int, bytes, Hashable, Hashable]] = []
        self._ticket = 0

    # Set-up.

    def attach(
        self, name: Hashable, receive: Receive, participant: Participant | None = None
    ) -> None:
        """Add a receiver, and the timers of whoever is behind it."""
        self._receivers[name] = receive
        if participant is not None:
            self._participants.append(participant)

    def detach(self, name: Hashable) -> None:
        """Take a receiver away; what is sent to it is lost."""
        self._receivers.pop(name, None)

    def partition(self, *groups: Collection[Hashable]) -> None:
        """Let datagrams through only within each group."""
        self._groups = [frozenset(group) for group in groups]

    def heal(self) -> None:
        """End a partition."""
        self._groups = []

    # Traffic.

    def send(self, data: bytes, source: Hashable, destination: Hashable) -> None:
        """Take a datagram; it arrives later, twice, or never."""
        self.sent += 1
        chance, conditions = self._random.random, self.conditions
        if self._is_cut_off(data, source, destination) or chance() < conditions.loss:
            self.lost += 1
            return
        copies = 2 if chance() < conditions.duplication else 1
        for _ in range(copies):
            delay = conditions.delay_s + conditions.jitter_s * chance()
            self._ticket += 1
            moment = self.clock.now + delay
            item = (moment, self._ticket, data, source, destination)
            heappush(self._under_way, item)

    def next_moment(self) -> float | None:
        """Return when something happens next: an arrival or a timer."""
        moments = [self._under_way[0][0]] if self._under_way else []
        for participant in self._participants:
            deadline = participant.next_timer()
            if deadline is not None:
                moments.append(deadline)
        return min(moments, default=None)

    def step(self) -> bool:
        """Go to the next moment and let it happen; False if there is none."""
        moment = self.next_moment()
        if moment is None:
            return False
        now = self.clock.advance_to(moment)
        self._deliver_due(now)
        self._run_timers(now)
        return True

    def run(
        self, *, until: Callable[[], bool] | None = None, limit_s: float = 60.0
    ) -> bool:
        """Run until a condition holds; False if ``limit_s`` passed without it.

        The clock ends at the limit if nothing happens before.
        """
        end = self.clock.now + limit_s
        while until is None or not until():
            moment = self.next_moment()
            if moment is None or moment > end:
                self.clock.advance_to(end)
                return until is not None and until()
            self.step()
        return True

    # Private helpers.

    def _is_cut_off(self, data: bytes, source: Hashable, destination: Hashable) -> bool:
        if self.filter is not None and not self.filter(data, source, destination):
            return True
        return bool(self._groups) and not any(
            source in group and destination in group for group in self._groups
        )

    def _deliver_due(self, now: float) -> None:
        while self._under_way and self._under_way[0][0] <= now:
            _, _, data, source, destination = heappop(self._under_way)
            receive = self._receivers.get(destination)
            if receive is None:
                self.lost += 1
                continue
            self.delivered += 1
            receive(data, source, now)

    def _run_timers(self, now: float) -> None:
        for participant in self._participants:
            deadline = participant.next_timer()
            if deadline is not None and deadline <= now:
                participant.handle_timer(now)
