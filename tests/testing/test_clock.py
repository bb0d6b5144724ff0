from __future__ import annotations

from pilotfleet.testing.clock import FakeClock


def test_a_clock_moves_only_when_told_and_only_forward() -> None:
    clock = FakeClock(5.0)
    assert clock() == 5.0
    assert clock.advance(1.5) == 6.5
    assert clock.advance_to(10.0) == 10.0
    assert clock.advance_to(3.0) == 10.0
    assert clock.now == 10.0
