"""The directory in any order, by windows: what the page's table reads.

The cursor API walks through IDs and costs the same everywhere. A table wants row
50,000 by name. For that the order of all agents is taken from the last survey, the
filter is a bitmap from the inverted index, and what fits is picked out once, gently,
and remembered for as long as the windows of one view are asked for.
"""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING, Final

from pilotfleet.registry.directory.idset import first_ids
from pilotfleet.registry.directory.search import matching_bits

if TYPE_CHECKING:
    from pilotfleet.registry.dashboard.survey import Order, Survey, Surveyor
    from pilotfleet.registry.dashboard.view import RendezvousView
    from pilotfleet.registry.directory.nodes import Node
    from pilotfleet.registry.directory.search import Query

__all__ = ["Listing", "Window"]

REMEMBERED: Final = 32
"""Arrangements that are kept; each takes four bytes per agent."""
FRESH_S: Final = 2.0
"""How long an arrangement is used though agents came or went."""
FEW: Final = 4_000
"""So many are sorted for themselves; of more, the whole order is gone through."""
_SLICE: Final = 5_000
_BITS: Final = bytes.maketrans(b"01", b"\0\1")


@dataclass(frozen=True, slots=True)
class Window:
    """Some of the agents that fit."""

    nodes: list[Node]
    total: int


@dataclass(frozen=True, slots=True)
class _Arrangement:
    survey: Survey
    bits: int
    ids: array[int]
    at: float


class Listing:
    """Windows on the public directory."""

    def __init__(self, view: RendezvousView, surveyor: Surveyor) -> None:
        self._view = view
        self._surveyor = surveyor
        self._known: dict[tuple[Query, str], _Arrangement] = {}

    async def window(
        self, query: Query, order: str, *, offset: int, limit: int, down: bool
    ) -> Window:
        """Return ``limit`` agents from the ``offset``th on.

        Args:
            query: What fits; its cursor and limit do not count.
            order: One of ``survey.ORDERS``.
            offset: How many to leave out.
            limit: How many at most.
            down: The last of the order first.
        """
        view = self._view
        view.directory.expire_online(view.clock.wall())
        bits = matching_bits(view.directory, query, view.public_bits)
        ids = await self._arranged(replace(query, limit=0, after=0), order, bits)
        if down:
            end = max(0, len(ids) - offset)
            part = ids[max(0, end - limit) : end][::-1]
        else:
            part = ids[offset : offset + limit]
        # Looked at again: what has become private since the survey is left out.
        nodes = [node for node in map(view.public_node, part) if node is not None]
        return Window(nodes, bits.bit_count())

    async def _arranged(self, query: Query, order: str, bits: int) -> array[int]:
        survey = await self._surveyor.current()
        key, now = (query, order), self._view.clock.now()
        known = self._known.pop(key, None)
        if known is None or not (
            now - known.at <= FRESH_S or (known.survey is survey and known.bits == bits)
        ):
            ids = await _pick(survey.orders[order], bits, bits.bit_count())
            known = _Arrangement(survey, bits, ids, now)
        while len(self._known) >= REMEMBERED:
            del self._known[next(iter(self._known))]
        # The last used at the end, so that the first is the one to forget.
        self._known[key] = known
        return known.ids


async def _pick(order: Order, bits: int, count: int) -> array[int]:
    """Return those of ``order`` whose bit is set, in its order."""
    ids, ranks = order
    if count <= FEW:
        known = len(ranks)
        found = first_ids(bits, after=0, limit=count)
        ranked = [number for number in found if number < known and ranks[number]]
        return array("I", sorted(ranked, key=ranks.__getitem__))
    digits = f"{bits:b}"[::-1].encode().translate(_BITS)
    chosen = digits.ljust(len(ranks), b"\0")
    picked = array("I")
    for start in range(0, len(ids), _SLICE):
        part = ids[start : start + _SLICE]
        picked.extend(compress(part, map(chosen.__getitem__, part)))
        await asyncio.sleep(0)
    return picked
