"""What several brokers tell, in the order of time. Performs no I/O.

Each replays its log as fast as it can, and one that logged little is in the present at
once. What it tells then waits here until the others have come as far, so that nothing
counts in a second in which it did not happen.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["InOrder"]

MAX_HELD: Final = 50_000
MAX_HELD_BYTES: Final = 32 * 1024 * 1024
"""Beyond these the oldest does not wait any longer."""

_Item = TypeVar("_Item")


@dataclass(slots=True)
class _Lane(Generic[_Item]):
    reached: float = -math.inf
    """All that this broker has still to tell is of this time or later."""
    items: deque[tuple[float, int, _Item]] = field(default_factory=deque)
    """Time, bytes, item."""


class InOrder(Generic[_Item]):
    """One lane for each broker."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane[_Item]] = {}
        self._held = self._bytes = 0

    def clear(self) -> None:
        """Forget everything."""
        self._lanes.clear()
        self._held = self._bytes = 0

    def reach(self, broker: str, at: float) -> None:
        """Take note how far a broker is; infinite for one not to be waited for."""
        self._lane(broker).reached = at

    def put(self, broker: str, item: _Item, *, at: float, size: int) -> None:
        """Add what a broker told, which happened ``at``."""
        self._lane(broker).items.append((at, size, item))
        self._held += 1
        self._bytes += size

    @property
    def oldest(self) -> float:
        """The time of what waits for longest; infinite if nothing does."""
        firsts = [lane.items[0][0] for lane in self._lanes.values() if lane.items]
        return min(firsts, default=math.inf)

    def due(self) -> Iterator[tuple[float, _Item]]:
        """Yield, and remove, what need not wait any longer, with its time."""
        while self._held:
            first = min(
                (lane for lane in self._lanes.values() if lane.items),
                key=lambda lane: lane.items[0][0],
            )
            at, size, item = first.items[0]
            is_full = self._held > MAX_HELD or self._bytes > MAX_HELD_BYTES
            if not is_full and any(
                lane.reached < at for lane in self._lanes.values() if not lane.items
            ):
                return
            first.items.popleft()
            self._held -= 1
            self._bytes -= size
            yield at, item

    def _lane(self, broker: str) -> _Lane[_Item]:
        return self._lanes.setdefault(broker, _Lane())
