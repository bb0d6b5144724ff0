"""Fleets with a monitor of their own."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from tests.fleet.support import write_spec, write_tasks
from tests.fleet.upsupport import fleet, fleet_data, fleet_world, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.programs import World

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def net() -> Iterator[World]:
    with fleet_world() as made:
        yield made


def monitored(net: World, *lines: str) -> Path:
    spec = write_spec(net, "cat", count=2)
    table = ["[health]", 'interval = "1s"', "[monitor]", 'http = "127.0.0.1:0"']
    spec.write_text("\n".join([spec.read_text(), *table, *lines, ""]))
    return spec


def monitor_of(status: dict[str, Any]) -> dict[str, Any]:
    [row] = [row for row in status["members"] if row["name"] == "monitor"]
    assert isinstance(row, dict)
    return row


def figures(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}api/fleets/fleet/figures", timeout=10) as page:
        found: dict[str, Any] = json.load(page)
    return found


def test_a_fleet_says_where_its_monitor_is_and_the_monitor_knows_the_fleet(
    net: World,
) -> None:
    up = fleet(net, "up", monitored(net))
    assert up.returncode == 0, up.stderr
    status = fleet_data(net, "status")
    url = status["monitor"]
    assert url in up.stdout
    tasks = write_tasks(net, {"a": "x", "b": "y", "c": "z"})
    assert fleet(net, "submit", "--tasks", tasks, "--wait").returncode == 0
    wait_until(net, lambda _: figures(url)["tasks"]["completed"] == 3)
    wait_until(net, lambda _: figures(url)["agents"]["alive"] == 2)

    # Killed, it comes back at the same place and knows what it knew.
    os.kill(monitor_of(status)["pid"], signal.SIGKILL)
    wait_until(
        net,
        lambda now: (
            monitor_of(now)["restarts"] == 1 and monitor_of(now)["state"] == "running"
        ),
    )
    assert fleet_data(net, "status")["monitor"] == url
    assert figures(url)["tasks"]["completed"] == 3
    assert fleet(net, "down").returncode == 0


def test_a_fleet_does_its_work_without_its_monitor(net: World) -> None:
    up = fleet(net, "up", monitored(net, f'alerts = "{net.home}/none.toml"'))
    assert up.returncode == 0, up.stderr
    assert "the monitor is not up yet" in up.stderr
    assert "cannot read alert rules" in up.stderr
    status = wait_until(net, lambda now: monitor_of(now)["state"] == "failed")
    assert status["monitor"] is None
    assert status["state"] == "up"
    tasks = write_tasks(net, {"a": "x"})
    assert fleet(net, "submit", "--tasks", tasks, "--wait").returncode == 0
