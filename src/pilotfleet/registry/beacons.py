"""Which beacons there are (registry.md section 8). Soft state."""

from __future__ import annotations

from typing import Final

from pilotfleet.registry.directory.refusal import Refused

__all__ = ["BeaconDirectory"]

# From the specification.
BEACON_LIFE_S: Final = 60.0
"""How long a registration lasts."""
# Of our choosing.
MAX_BEACONS: Final = 256
OWN_ID: Final = 1


class BeaconDirectory:
    """Our own beacon and those that registered lately."""

    __slots__ = ("_until", "own_addr")

    def __init__(self, own_addr: str) -> None:
        self.own_addr = own_addr
        """Where nodes reach our beacon; empty: there is none."""
        self._until: dict[int, tuple[str, float]] = {}

    def register(self, beacon: int, addr: str, now: float) -> None:
        """Note that a beacon is there.

        Raises:
            Refused: There are too many.
        """
        self._expire(now)
        if beacon not in self._until and len(self._until) >= MAX_BEACONS:
            raise Refused(f"too many beacons (max {MAX_BEACONS})")
        self._until[beacon] = (addr, now + BEACON_LIFE_S)

    def listed(self, now: float) -> dict[int, str]:
        """Return the addresses by beacon ID."""
        self._expire(now)
        beacons = {OWN_ID: self.own_addr} if self.own_addr else {}
        beacons.update({number: addr for number, (addr, _) in self._until.items()})
        return dict(sorted(beacons.items()))

    def _expire(self, now: float) -> None:
        expired = [n for n, (_, until) in self._until.items() if until <= now]
        for number in expired:
            del self._until[number]
