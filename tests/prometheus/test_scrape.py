"""A real Prometheus scrapes the monitor of a real fleet."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fleet.support import write_tasks
from tests.fleet.upsupport import fleet, fleet_data, fleet_world
from tests.prometheus.support import Prometheus, fetch, program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.programs import World

pytestmark = [pytest.mark.prometheus, pytest.mark.timeout(300)]

WORKERS = 10
TASKS = 40
FAILING = 4
DASHBOARD = Path(__file__).parents[2] / "contrib" / "grafana" / "pilotfleet.json"
SPEC = f"""
[fleet]
name = "words"
[workers]
exec = "grep -c good"
count = {WORKERS}
tags = ["worker", "text"]
[health]
interval = "1s"
[monitor]
http = "127.0.0.1:0"
"""


@pytest.fixture(scope="module")
def net() -> Iterator[World]:
    with fleet_world() as world:
        yield world


@pytest.fixture(scope="module")
def monitor(net: World) -> str:
    """The address of the monitor of a fleet that has done its tasks."""
    spec = net.home / "words.toml"
    spec.write_text(SPEC)
    status = fleet_data(net, "up", spec)
    texts = {f"t-{n}": "bad" if n < FAILING else "good" for n in range(TASKS)}
    done = fleet(net, "submit", "--tasks", write_tasks(net, texts), "--wait")
    assert f"{FAILING} failed" in done.stdout + done.stderr
    url: str = status["monitor"]
    return url.removeprefix("http://").rstrip("/")


@pytest.fixture(scope="module")
def prometheus(net: World, monitor: str) -> Prometheus:
    return Prometheus(net, monitor)


def test_the_five_figures_come_back_from_prometheus(
    prometheus: Prometheus, monitor: str
) -> None:
    fleet_is = 'fleet="words"'
    tasks, tag = "pilot_fleet_tasks_total", 'tag="text"'
    counted: dict[str, float] = {
        f'sum(pilot_fleet_agents{{{fleet_is},state="alive"}})': WORKERS,
        f'{tasks}{{{fleet_is},status="completed"}}': TASKS - FAILING,
        f'{tasks}{{{fleet_is},status="failed"}}': FAILING,
        f"pilot_fleet_task_duration_seconds_count{{{fleet_is}}}": TASKS,
        f"pilot_fleet_task_error_ratio{{{fleet_is}}}": FAILING / TASKS,
        f'pilot_fleet_tag_agents{{{fleet_is},{tag},state="alive"}}': WORKERS,
        f"pilot_fleet_polo_agents{{{fleet_is}}}": WORKERS,
        f"pilot_monitor_following{{{fleet_is}}}": 1,
    }
    prometheus.wait_for(lambda: counted)

    def told() -> dict[str, float]:
        # Scores are asked for now and then, so they still move.
        figures = json.loads(fetch(f"http://{monitor}/api/fleets/words/figures"))
        return {
            f"pilot_fleet_trust_links{{{fleet_is}}}": figures["trust_links"],
            f"pilot_fleet_polo_points{{{fleet_is}}}": figures["polo"]["total"],
            f'pilot_fleet_polo{{{fleet_is},rank="p50"}}': figures["polo"]["p50"],
        }

    prometheus.wait_for(told)


def test_promtool_has_nothing_to_complain_about(monitor: str) -> None:
    text = fetch(f"http://{monitor}/metrics")
    assert text.count(b"\n") > 50
    done = subprocess.run(
        [program("promtool"), "check", "metrics"],
        input=text,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_prometheus_takes_every_query_of_the_dashboard(prometheus: Prometheus) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [t["expr"] for panel in panels for t in panel.get("targets", ())]
    assert len(queries) > 20
    for query in queries:
        filled = query.replace("$__rate_interval", "1m").replace("$fleet", ".*")
        assert not re.search(r"\$", filled)
        prometheus.query(filled)
