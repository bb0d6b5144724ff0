"""What was measured comes back from its file as it was."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bench import saved
from bench.report import Table
from tests.bench.samples import idle_hosts, run, target

if TYPE_CHECKING:
    from pathlib import Path

MIXED = Table("Mixed", ("a", "b", "c", "d"), [("text", 3, 2.5, None)], "how")


def test_a_run_comes_back_as_it_was(tmp_path: Path) -> None:
    measured = run("hosts", idle_hosts(), MIXED)
    saved.save(tmp_path, measured)
    assert saved.load(tmp_path, "hosts") == measured


def test_parts_are_put_together_with_their_goals(tmp_path: Path) -> None:
    figures = Table("T", ("ms",), [(0.3,)], targets=(target("rtt_ms", 0.3, 0.29),))
    for measured in (run("tunnel", figures), run("hosts", error="it broke")):
        saved.save(tmp_path, measured)
    latest = saved.collect(tmp_path, ("hosts", "tunnel", "mesh"))
    assert saved.load_latest(tmp_path) == latest
    assert [found.part for found in latest.runs] == ["hosts", "tunnel"]
    assert latest.run_of("hosts") is None
    reached = {goal.key: goal.is_reached for goal in latest.goals}
    assert reached["rtt_ms"] is True
    assert reached["memory_idle_slope_kib"] is None


def test_the_file_says_what_the_reference_says(tmp_path: Path) -> None:
    saved.save(tmp_path, run("hosts", idle_hosts()))
    saved.collect(tmp_path, ("hosts",))
    content = json.loads((tmp_path / saved.LATEST).read_text())
    assert content["format"] == 1
    (measured,) = content["runs"]
    assert measured["source"] == {"commit": "0123456789abcdef", "is_clean": True}
    assert measured["machine"]["is_virtual"] is True
    assert measured["tables"][0]["rows"][0][:2] == [100, 0.1]
    (goal, *_) = content["goals"]
    assert goal["key"] == "memory_idle_slope_kib"
    assert (goal["value"], goal["official"]) == (10.24, 13_000.0)
    assert goal["is_reached"] is True


def test_the_text_shows_goals_tables_and_failures(tmp_path: Path) -> None:
    for measured in (run("hosts", idle_hosts()), run("mesh", error="it broke")):
        saved.save(tmp_path, measured)
    saved.collect(tmp_path, ("hosts", "mesh"))
    text = (tmp_path / saved.TEXT).read_text()
    assert "article's claim" in text
    assert "Idle agents in one process" in text
    assert "it broke" in text
    assert "Measured on 2001-09-09 at commit 0123456789ab, in 12 s" in text


def test_nothing_is_measured_where_no_file_is(tmp_path: Path) -> None:
    assert saved.load(tmp_path, "hosts") is None
    latest = saved.load_latest(tmp_path)
    assert not latest.runs
    assert {goal.value for goal in latest.goals} == {None}


def test_a_file_of_before_this_format_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "mesh.json").write_text('{"part": "mesh", "tables": []}')
    assert saved.load(tmp_path, "mesh") is None
