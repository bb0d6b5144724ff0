"""Rates of the registry are those that were served, not those of a core alone."""

from __future__ import annotations

from bench.registry import Rate


def test_a_rate_is_by_the_wall_clock_with_processor_time_beside_it() -> None:
    figures = {"count": 1_000, "wall_s": 0.5, "cpu_s": 0.02, "load_cpu_s": 0.01}
    rate = Rate("lookups_per_s", "lookups", figures)
    assert rate.row == ("lookups", 1_000, 2_000.0, 20.0, 10.0)
    assert (rate.target.key, rate.target.value) == ("lookups_per_s", 2_000.0)
    assert rate.target.method == "wall clock; 20 µs of the registry's CPU each"
