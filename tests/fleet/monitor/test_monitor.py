"""A monitor and its parts, in one process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import InvalidArgument, NotFound, Unavailable
from pilotfleet.fleet.monitor import supervision
from pilotfleet.fleet.monitor.monitor import Monitor, MonitorConfig
from pilotfleet.fleet.monitor.outputs.health import MonitorHealth
from pilotfleet.fleet.monitor.supervision import supervise
from pilotfleet.fleet.monitor.watch import fleet_name

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("broker", "name"),
    [("batch-hub", "batch"), ("-hub", "-hub"), ("hub", "hub"), ("a-hub-b", "a-hub-b")],
)
def test_a_fleet_is_called_as_its_hub(broker: str, name: str) -> None:
    assert fleet_name(broker) == name


async def test_two_fleets_of_one_name_are_refused(tmp_path: Path) -> None:
    config = MonitorConfig(fleets=(("a-hub",), ("a",)), home=tmp_path)
    with pytest.raises(InvalidArgument, match="two fleets are called a"):
        Monitor(config)


async def test_the_token_is_in_no_text_of_the_configuration(tmp_path: Path) -> None:
    config = MonitorConfig(fleets=(("a",),), home=tmp_path, token="open-sesame")
    assert "open-sesame" not in repr(config)


async def test_a_monitor_without_a_daemon_says_so_and_leaves_nothing_running(
    tmp_path: Path,
) -> None:
    config = MonitorConfig(
        fleets=(("a-hub",),), home=tmp_path / "home", socket=tmp_path / "none.sock"
    )
    monitor = Monitor(config)
    with pytest.raises(Unavailable):
        await monitor.__aenter__()
    assert len(asyncio.all_tasks()) == 1
    with pytest.raises(NotFound, match="no fleet is called 'b'"):
        monitor.figures("b")
    # Its history is free again.
    with pytest.raises(Unavailable):
        await Monitor(config).__aenter__()


async def test_a_part_that_fails_is_started_again_and_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE_S", 0.0)
    counters = MonitorHealth().output("odd")
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs < 5:
            raise ValueError(f"run {runs}")

    async with asyncio.timeout(10):
        await supervise("the odd part", work, counters)
    assert (runs, counters.errors) == (5, 4)
    assert caplog.text.count("the odd part failed") == 1
