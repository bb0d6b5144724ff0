"""Events made to break the monitor: none of them may end it, or what it saves."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from pilotfleet.errors import ConfigError, StorageError
from pilotfleet.fleet.monitor.alerts.rules import parse_rules
from pilotfleet.fleet.monitor.history.history import History
from pilotfleet.fleet.monitor.view import graph
from pilotfleet.fleet.monitor.view.fleetview import FleetView

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_800_000_000.0
MOST_BYTES = 1 << 53


def _report(host: str = "h", sent: int = 0, **more: Any) -> bytes:
    totals = {"agents": 1, "tunnels": 1, "bytes_sent": sent, "bytes_received": sent}
    totals |= {key: more.pop(key) for key in ("agents", "tunnels") if key in more}
    return json.dumps({"host": host, "totals": totals, **more}).encode()


@pytest.mark.parametrize("interval_s", [5e-324, 1e-300, 1e-9])
@pytest.mark.parametrize("pause_s", [0.0, 1e-6, 1.0])
def test_an_interval_of_next_to_nothing_gives_no_impossible_rate(
    interval_s: float, pause_s: float
) -> None:
    view = FleetView("made")
    view.take("fleet.node", _report(interval_s=interval_s), at=NOW)
    later = _report(interval_s=interval_s, sent=MOST_BYTES)
    view.take("fleet.node", later, at=NOW + pause_s)
    assert view.figures().events_refused == 0
    assert FleetView.load(view.save(), at=NOW + 9).figures().events == 2


def test_the_sums_of_the_largest_counts_fit_into_64_bits() -> None:
    view = FleetView("made")
    refused = _report("too many", agents=1 << 53)
    view.take("fleet.node", refused, at=NOW)
    for number in range(500):
        report = _report(f"h{number}", agents=1 << 32, tunnels=1 << 32)
        view.take("fleet.node", report, at=NOW)
    figures = view.figures()
    assert figures.events_refused == 1
    assert figures.traffic.tunnels == 500 << 32
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(figures))


def test_a_daemon_that_promises_a_report_in_a_day_gives_way_as_others_do() -> None:
    view = FleetView("made")
    view.take("fleet.node", _report(interval_s=86_400), at=NOW)
    view.advance(NOW + 6 * 3_600)
    assert view.figures().traffic.tunnels == 0


def test_the_status_of_a_task_steers_no_terminal() -> None:
    view = FleetView("made")
    view.take("fleet.health", b'{"agent":"a"}', at=NOW)
    row = {"agent": "a", "task_id": "t", "status": "\x1b]0;x\x07"}
    view.take("fleet.task", json.dumps({"tasks": [row]}).encode(), at=NOW)
    assert view.agent("a").tasks[0].status.isprintable()


def test_tunnels_beyond_all_measure_are_only_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graph, "MAX_TUNNELS", 10)
    view = FleetView("made")
    peers = [f"0:0000.0000.{number:04X}" for number in range(1, 9)]
    rows = [
        {"agent": f"a{number}", "node_id": 100 + number, "peers": peers}
        for number in range(5)
    ]
    report = {"host": "h", "totals": {}, "agents": rows}
    view.take("fleet.node", json.dumps(report).encode(), at=NOW)
    drawn = view.trust_graph()
    assert len(drawn.links) == 16
    assert drawn.hidden_links == 24


def test_a_rule_with_a_number_of_thousands_of_digits_is_told() -> None:
    rule = '[[rule]]\nname = "a"\nmetric = "error_rate"\nabove = '
    with pytest.raises(ConfigError, match="is not TOML"):
        parse_rules(f"{rule}{'9' * 5_000}".encode(), "rules.toml")


@pytest.mark.parametrize(
    "change",
    ["state = 'text'", "positions = 5", "positions = '[]'", "saved_at = 'x'"],
)
async def test_a_history_with_values_of_another_type_is_told(
    tmp_path: Path, change: str
) -> None:
    path = tmp_path / "monitor.db"
    async with History(path) as history:
        await history.store("batch", [], state=b"", positions={})
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"UPDATE fleets SET {change}")
        database.commit()
    async with History(path) as history:
        with pytest.raises(StorageError, match="is damaged"):
            await history.load("batch")
