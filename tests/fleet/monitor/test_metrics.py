"""Figures as Prometheus metrics."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request

from pilotfleet.fleet.monitor.figures import (
    AgentCounts,
    AlertRow,
    AlertState,
    TagFigures,
    TaskFigures,
)
from pilotfleet.fleet.monitor.outputs.health import MonitorHealth
from pilotfleet.fleet.monitor.outputs.metrics import (
    BOUNDS_S,
    FleetCollector,
    metrics_route,
)
from pilotfleet.fleet.monitor.outputs.tagtotals import MAX_TAGS, OTHER, TagTotals
from pilotfleet.fleet.monitor.samples import DirectoryAgent
from pilotfleet.fleet.monitor.view.fleetview import FleetView
from tests.fleet.monitor.filledview import START, ViewSource, filled_source, publish

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[3]
DASHBOARD = ROOT / "contrib" / "grafana" / "pilotfleet.json"
REFERENCE = ROOT / "docs" / "reference" / "metrics.md"


def text_of(source: ViewSource, health: MonitorHealth | None = None) -> str:
    """Return what a scrape gets."""
    health = health or MonitorHealth()
    collector = FleetCollector(source, health, clock=lambda: START + 5)
    request = Request({"type": "http", "method": "GET", "headers": []})
    answer = asyncio.run(metrics_route(collector).endpoint(request))
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    text: str = answer.body.decode()
    return text


def scrape(
    source: ViewSource, health: MonitorHealth | None = None
) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the value of each series."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text_of(source, health))
        for sample in family.samples
    }


def value(found: Mapping[Any, float], name: str, **labels: str) -> float:
    return found[name, frozenset({"fleet": "words", **labels}.items())]


def test_the_five_figures_are_there() -> None:
    found = scrape(filled_source(agents=3, completed=93, failed=7))
    assert value(found, "pilot_fleet_agents", state="alive") == 3
    assert value(found, "pilot_fleet_tasks_total", status="completed") == 93
    assert value(found, "pilot_fleet_tasks_total", status="failed") == 7
    assert value(found, "pilot_fleet_task_error_ratio") == pytest.approx(0.07)
    assert value(found, "pilot_fleet_trust_links") == 1
    assert value(found, "pilot_fleet_polo", rank="highest") == 3
    assert value(found, "pilot_fleet_polo_points") == 6


def test_task_times_are_a_histogram_in_seconds() -> None:
    found = scrape(filled_source(completed=1_000))
    name = "pilot_fleet_task_duration_seconds"
    assert value(found, f"{name}_count") == 1_000
    assert value(found, f"{name}_sum") == pytest.approx(500.5)
    assert value(found, f"{name}_bucket", le="0.1") == pytest.approx(100, abs=2)
    assert value(found, f"{name}_bucket", le="+Inf") == 1_000
    recent = value(found, "pilot_fleet_task_duration_recent_seconds", rank="p95")
    assert recent == pytest.approx(0.95, rel=0.01)
    assert [*BOUNDS_S] == sorted(BOUNDS_S)


def test_traffic_versions_tags_and_brokers_are_there() -> None:
    found = scrape(filled_source(agents=3, completed=2, failed=1))
    assert value(found, "pilot_fleet_tunnels") == 4
    assert value(found, "pilot_fleet_sent_bytes_total") == 1_000
    assert value(found, "pilot_fleet_agents_by_version", version="1.2.3") == 3
    assert value(found, "pilot_fleet_tag_agents", tag="text", state="alive") == 3
    tasks = "pilot_fleet_tag_tasks_total"
    assert value(found, tasks, tag="text", status="failed") == 1
    kind = {"broker": "words-hub", "kind": "published"}
    assert value(found, "pilot_fleet_broker_events_total", **kind) == 7
    assert value(found, "pilot_fleet_broker_subscribers", broker="words-hub") == 2


def test_the_monitor_tells_of_itself() -> None:
    health = MonitorHealth(started=START)
    health.last_event["words"] = START + 2
    health.history_errors = 3
    health.output("otlp").errors = 4
    source = filled_source()
    source.view.take("fleet.health", b"[]", at=START + 1)
    source.view.count_lost(9)
    found = scrape(source, health)
    assert value(found, "pilot_monitor_following") == 1
    assert value(found, "pilot_monitor_last_event_age_seconds") == 3
    assert value(found, "pilot_monitor_events_refused_total") == 1
    assert value(found, "pilot_monitor_events_lost_total") == 9
    nothing: frozenset[tuple[str, str]] = frozenset()
    assert found["pilot_monitor_history_errors_total", nothing] == 3
    otlp = frozenset({"output": "otlp"}.items())
    assert found["pilot_monitor_output_errors_total", otlp] == 4


def test_a_resolved_alert_is_a_zero() -> None:
    source = filled_source()
    source.rows = [
        AlertRow("errors", "critical", "words", "", AlertState.FIRING, START),
        AlertRow("errors", "critical", "words", "tag:text", AlertState.RESOLVED, START),
        AlertRow("quiet", "info", "words", "", AlertState.RESOLVED, START),
        AlertRow("later", "info", "words", "", AlertState.PENDING, START),
    ]
    found = scrape(source)
    name = "pilot_monitor_alerts_firing"
    assert value(found, name, rule="errors", severity="critical") == 1
    assert value(found, name, rule="quiet", severity="info") == 0
    assert value(found, name, rule="later", severity="info") == 0


def test_the_number_of_series_does_not_grow_with_agents() -> None:
    few = scrape(filled_source(agents=10, completed=10))
    many = scrape(filled_source(agents=10_000, completed=10))
    assert len(few) == len(many)
    assert few.keys() == many.keys()


def test_the_number_of_series_is_bounded_whatever_others_say() -> None:
    source = filled_source()
    view = source.view
    for number in range(500):
        name = f"odd-{number}"
        publish(view, "fleet.health", agent=name, status=f"s{number}")
        totals = {"agents": 1, "tunnels": 0, "bytes_sent": 0, "bytes_received": 0}
        version = f"v{number}"
        publish(view, "fleet.node", host=name, version=version, totals=totals)
        publish(view, "fleet.broker", broker=name, published=1)
    rows = [
        DirectoryAgent(n, "0:0", f"odd-{n}", tags=(f"tag-{n}",), polo=0)
        for n in range(500)
    ]
    view.take_agents(rows, at=START + 1)
    found = scrape(source)
    assert len({key for key in found if "tag" in dict(key[1])}) <= 5 * (MAX_TAGS + 1)
    assert len({key for key in found if "version" in dict(key[1])}) <= 21
    assert len(found) < 1_500


def test_labels_from_outside_cannot_forge_a_line() -> None:
    source = filled_source(tags=('a"} 1\npilot_fleet_agents{x="', "\ud800"))
    found = scrape(source)
    assert sum(name == "pilot_fleet_agents" for name, _ in found) == 4


def test_counters_do_not_fall_when_the_state_is_loaded_again() -> None:
    source = filled_source(completed=20, failed=3)
    before = scrape(source)
    view = FleetView.load(source.view.save(), at=START + 2)
    after = scrape(ViewSource(view))
    counters = [key for key in before if key[0].endswith(("_total", "_bucket"))]
    assert len(counters) > 20
    for key in counters:
        if not key[0].startswith("pilot_monitor_output"):
            assert after[key] >= before[key], key


def tag_figures(tag: str, completed: int) -> TagFigures:
    return TagFigures(tag, AgentCounts(alive=1), TaskFigures(completed=completed))


def test_no_counter_of_a_tag_falls_when_tags_change_places() -> None:
    totals = TagTotals()
    totals.take([tag_figures(f"t{n}", 10) for n in range(MAX_TAGS + 10)])
    assert len(totals.tasks) == MAX_TAGS + 1
    assert totals.tasks[OTHER] == (100, 0)
    # The smallest are the largest now; a user's tag has the name of the rest.
    rows = [tag_figures(f"t{n}", 11) for n in reversed(range(MAX_TAGS + 10))]
    totals.take([tag_figures(OTHER, 5), *rows])
    assert totals.tasks[OTHER] == (115, 0)
    assert totals.tasks["t0"] == (11, 0)
    assert totals.agents[OTHER]["alive"] == 11
    # One that went out of sight and comes back is not counted twice.
    totals.take(rows[-1:])
    totals.take(rows)
    assert totals.tasks[OTHER] == (115, 0)


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\bpilot_[a-z_]+", expression))


def all_metrics() -> set[str]:
    source = filled_source(completed=3, failed=1)
    source.rows = [
        AlertRow("errors", "critical", "words", "", AlertState.FIRING, START)
    ]
    health = MonitorHealth(last_event={"words": START})
    health.output("otlp")
    return {name for name, _ in scrape(source, health)}


def test_the_dashboard_asks_for_nothing_that_is_not_there() -> None:
    board = json.loads(DASHBOARD.read_text())
    panels = board["panels"]
    queries = [t["expr"] for panel in panels for t in panel.get("targets", ())]
    asked = set().union(*map(metrics_in, queries))
    assert asked <= all_metrics()
    # The first row is the five figures.
    top = [panel["title"] for panel in panels if panel["gridPos"]["y"] == 0]
    assert len(top) == 5
    for figure in ("agents", "tasks_total", "task_error_ratio", "trust_links", "polo"):
        assert f"pilot_fleet_{figure}" in asked


def test_the_dashboard_is_sound() -> None:
    board = json.loads(DASHBOARD.read_text())
    panels = board["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert 0 <= at["x"] <= at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells
        targets = panel.get("targets", [])
        assert (panel["type"] == "row") is not bool(targets)
        assert len({target["refId"] for target in targets}) == len(targets)
        assert all(t["datasource"]["uid"] == "${datasource}" for t in targets)
    names = {variable["name"] for variable in board["templating"]["list"]}
    assert names == {"datasource", "fleet"}


def test_the_reference_lists_every_metric_and_no_other() -> None:
    ours, _, _ = REFERENCE.read_text().partition("## The rendezvous")
    listed = set(re.findall(r"^\| `(pilot_[a-z_]+)`", ours, re.M))
    there = {re.sub(r"_(bucket|count|sum)$", "", name) for name in all_metrics()}
    assert listed == there
