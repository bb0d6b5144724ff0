from __future__ import annotations

import pytest

from pilotfleet.protocol.stream.congestion import Reno

MIB = 1024 * 1024


def test_starts_with_the_reference_values() -> None:
    reno = Reno(MIB)
    assert (reno.window, reno.threshold) == (40960, 512 * 1024)


@pytest.mark.parametrize(("acked", "grown"), [(1152, 1152), (8192, 8192), (9000, 8192)])
def test_slow_start_grows_by_what_arrives(acked: int, grown: int) -> None:
    reno = Reno(MIB)
    reno.on_acknowledged(acked)
    assert reno.window == 40960 + grown


def test_avoidance_grows_by_one_step_per_window() -> None:
    reno = Reno(MIB)
    reno.threshold = reno.window = 40960
    reno.on_acknowledged(4096)
    assert reno.window == 40960 + 4096 * 4096 // 40960
    reno.on_acknowledged(1)
    assert reno.window == 40960 + 409 + 1


def test_window_stops_at_its_cap() -> None:
    reno = Reno(50000)
    for _ in range(10):
        reno.on_acknowledged(8192)
    assert reno.window == 50000
    reno.on_duplicate()
    assert reno.window == 50000


def test_loss_halves_and_recovery_ends_at_the_threshold() -> None:
    reno = Reno(MIB)
    reno.on_loss(100_000)
    assert (reno.threshold, reno.window) == (50_000, 50_000 + 3 * 1152)
    reno.on_duplicate()
    assert reno.window == 50_000 + 4 * 1152
    reno.on_partial(1152)
    assert reno.window == 50_000 + 4 * 1152
    reno.on_partial(100)
    assert reno.window == 50_000 + 4 * 1152 - 100
    reno.on_partial(90_000)
    assert reno.window == 50_000
    reno.on_recovered()
    assert reno.window == 50_000


def test_threshold_has_a_floor() -> None:
    reno = Reno(MIB)
    reno.on_loss(1152)
    assert reno.threshold == 8192


def test_timeout_begins_again_with_a_small_window() -> None:
    reno = Reno(MIB)
    reno.on_timeout(100_000)
    assert (reno.threshold, reno.window) == (50_000, 4096)


def test_steps_scale_with_the_segment_size() -> None:
    reno = Reno(MIB)
    reno.on_segment_size(11520, 8 * MIB)
    assert reno.threshold == 8 * MIB
    reno.on_acknowledged(200_000)
    assert reno.window == 40960 + 81920
    reno.on_timeout(10)
    assert (reno.threshold, reno.window) == (23040, 11520)


def test_smaller_segments_bring_the_cap_back() -> None:
    reno = Reno(8 * MIB)
    reno.window = 4 * MIB
    reno.on_segment_size(1152, MIB)
    assert reno.window == MIB
