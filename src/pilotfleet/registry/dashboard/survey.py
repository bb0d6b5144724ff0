"""What takes a look at every public agent: tag counts, polo, versions, orders.

A survey is made in the background, in small slices, and only while somebody looks at
the pages. Requests are answered from the last one. It holds nothing of a private
agent, not even a number.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from pilotfleet.errors import Busy
from pilotfleet.registry.dashboard.gentle import SLICE, in_slices, sort_gently
from pilotfleet.registry.directory.idset import first_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pilotfleet.registry.dashboard.view import RendezvousView

__all__ = ["ORDERS", "Order", "Survey", "Surveyor", "bins_of"]

ORDERS: Final = ("name", "polo", "last_seen")
PERIOD_S: Final = 2.0
"""Shortest time from one survey to the next."""
LONGEST_PERIOD_S: Final = 20.0
SHARE: Final = 20
"""A survey that took a second is followed by this many seconds without one, up to
the longest period."""
OLD_S: Final = 60.0
"""Older surveys are not shown; whoever asks waits for the next."""
WAIT_S: Final = 10.0
MAX_TAGS: Final = 1_000
"""Tags that are listed; those with the most agents."""
MAX_VERSIONS: Final = 20
MAX_BINS: Final = 20
_ID_BITS: Final = 32
_ID_MASK: Final = (1 << _ID_BITS) - 1


class Order(NamedTuple):
    """All public agents in one order."""

    ids: array[int]
    ranks: array[int]
    """By ID: the place in the order, from 1; 0 for whoever is not in it."""

    @classmethod
    async def of(cls, ids: array[int]) -> Order:
        """Return the order of these agents."""
        ranks = array("I", bytes(4 * (max(ids, default=0) + 1)))
        places = count(1)
        async for part in in_slices(ids):
            for number in part:
                ranks[number] = next(places)
        return cls(ids, ranks)


@dataclass(frozen=True, slots=True)
class Survey:
    """All public agents as they were at one moment."""

    at: float
    """Monotonic time."""
    tags: list[tuple[str, int]]
    """With how many agents carry each; the most frequent first."""
    tag_count: int
    polo: array[int]
    """All scores, ascending."""
    versions: list[tuple[str, int]]
    orders: dict[str, Order] = field(repr=False)
    """By what the agents are ordered."""
    polo_total: int = 0
    polo_bins: list[tuple[int, int, int]] = field(default_factory=list)
    """Scores as a histogram: from, to (inclusive), agents."""

    def share_below(self, polo: int) -> float:
        """Return the share of agents with a lower score than ``polo``."""
        return bisect_left(self.polo, polo) / len(self.polo) if self.polo else 0.0

    def percentile(self, share: float) -> int:
        """Return the score that ``share`` of the agents do not exceed."""
        if not self.polo:
            return 0
        return self.polo[max(0, -(-int(share * 1000) * len(self.polo) // 1000) - 1)]


def bins_of(scores: Sequence[int], most: int = MAX_BINS) -> list[tuple[int, int, int]]:
    """Return ascending scores as a histogram: from, to (inclusive), how many."""
    if not scores:
        return []
    low, high = scores[0], scores[-1]
    width = -(-(high - low + 1) // most)
    starts = range(low, high + 1, width)
    places = [bisect_left(scores, start) for start in starts] + [len(scores)]
    return [
        (start, start + width - 1, end - begin)
        for start, (begin, end) in zip(starts, pairwise(places), strict=True)
    ]


class Surveyor:
    """Makes surveys while there is demand for them."""

    def __init__(self, view: RendezvousView) -> None:
        self._view = view
        self._wanted = asyncio.Event()
        self._done = asyncio.Event()
        self._last: Survey | None = None

    def last(self) -> Survey | None:
        """Return the last survey, however old, and see that the next one comes."""
        self._wanted.set()
        return self._last

    async def current(self) -> Survey:
        """Return a survey that is not old.

        Raises:
            Busy: There is none yet, and none came in time.
        """
        last = self.last()
        if last is not None and self._view.clock.now() - last.at <= OLD_S:
            return last
        try:
            async with asyncio.timeout(WAIT_S):
                await self._done.wait()
        except TimeoutError:
            last = None
        else:
            last = self._last
        if last is None:
            raise Busy("the agents are still being counted", hint="try again")
        return last

    async def run(self) -> None:
        """Make a survey whenever one is wanted; forever."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            began = time.perf_counter()
            self._last = await self.make()
            self._done.set()
            self._done = asyncio.Event()
            took = time.perf_counter() - began
            await asyncio.sleep(max(PERIOD_S, min(took * SHARE, LONGEST_PERIOD_S)))

    async def make(self) -> Survey:
        """Look at every public agent."""
        at = self._view.clock.now()
        polo: list[int] = []
        seen: list[int] = []
        versions: Counter[str] = Counter()
        bits = self._view.public_bits
        low = -1
        while ids := first_ids(bits, after=low, limit=SLICE):
            self._look_at(ids, polo, seen, versions)
            low = ids[-1]
            await asyncio.sleep(0)
        by_polo = await sort_gently(polo)
        by_time = await sort_gently(seen)
        tags, tag_count = await self._count_tags()
        scores = await _picked(by_polo, "l", _score)
        return Survey(
            at=at,
            tags=tags,
            tag_count=tag_count,
            polo=scores,
            polo_total=sum(scores),
            polo_bins=bins_of(scores),
            versions=versions.most_common(MAX_VERSIONS),
            orders={
                "name": await Order.of(await self._by_name()),
                "polo": await _order(by_polo),
                "last_seen": await _order(by_time),
            },
        )

    def _look_at(
        self,
        ids: Iterable[int],
        polo: list[int],
        seen: list[int],
        versions: Counter[str],
    ) -> None:
        """Note each agent's score and time with its ID in the low bits."""
        directory = self._view.directory
        for number in ids:
            node = self._view.public_node(number)
            if node is None:
                continue
            polo.append(directory.polo_score(number) << _ID_BITS | number)
            seen.append(int(node.last_seen) << _ID_BITS | number)
            versions[node.record.version or "unknown"] += 1

    async def _by_name(self) -> array[int]:
        """Return the agents by hostname, then those without one."""
        hosts, view = self._view.directory.hosts, self._view
        order = array("I")
        async for names in in_slices(hosts.names()):
            for name in names:
                claim = hosts.get(name)
                node = view.public_node(claim.node) if claim is not None else None
                # A node may hold a second name that a renaming has left.
                if node is not None and node.hostname == name:
                    order.append(node.record.id)
        bits, low = view.public_bits, -1
        while ids := first_ids(bits, after=low, limit=SLICE):
            nodes = (view.public_node(number) for number in ids)
            order.extend(n.record.id for n in nodes if n is not None and not n.hostname)
            low = ids[-1]
            await asyncio.sleep(0)
        return order

    async def _count_tags(self) -> tuple[list[tuple[str, int]], int]:
        index = self._view.directory.nodes.tags
        counts: list[tuple[str, int]] = []
        async for tags in in_slices(index.names()):
            public = self._view.public_bits
            for tag in tags:
                agents = (index.bits(tag) & public).bit_count()
                if agents:
                    counts.append((tag, agents))
        counts.sort(key=lambda pair: (-pair[1], pair[0]))
        return counts[:MAX_TAGS], len(counts)


async def _order(keys: list[int]) -> Order:
    return await Order.of(await _picked(keys, "I", _ID_MASK.__and__))


def _score(key: int) -> int:
    return key >> _ID_BITS


async def _picked(keys: list[int], kind: str, pick: Callable[[int], int]) -> array[int]:
    """Return a part of each key."""
    result: array[int] = array(kind)
    async for part in in_slices(keys):
        result.extend(map(pick, part))
    return result
