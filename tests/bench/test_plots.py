"""Pictures are drawn of what grows, with the slope in figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.goals import outcomes
from bench.plots import Line, draw_all, plots_of
from bench.report import Table
from bench.saved import Latest
from tests.bench.samples import idle_hosts, run, searches

if TYPE_CHECKING:
    from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n"


def latest_of(*tables: Table) -> Latest:
    measured = run("hosts", *tables)
    runs = [measured, run("discovery", searches())]
    return Latest(runs, outcomes(measured.targets))


def test_each_picture_is_a_png(tmp_path: Path) -> None:
    files = draw_all(latest_of(Table("Else", ("x",), []), idle_hosts()), tmp_path)
    names = [path.stem for path in files]
    assert names == ["memory", "processor", "search", "start"]
    assert all(path.read_bytes().startswith(PNG) for path in files)


def test_the_slope_is_that_of_the_figures() -> None:
    memory, processor, _, start = plots_of(latest_of(idle_hosts()))
    # 0.01 MiB for each agent in the sample; the official row is no point of the line.
    assert memory.lines[0].fit == pytest.approx((0.01, 40))
    assert memory.slope_text(memory.lines[0]) == "slope 10.2 KiB for 1 agent more"
    assert memory.official == pytest.approx(13_000 / 1024)
    assert processor.slope_text(processor.lines[0]) == (
        "slope 0.5 % for 1,000 agents more"
    )
    assert start.slope_text(start.lines[0]) == "slope 1 ms for 1 agent more"
    assert start.official is None


def test_the_words_say_what_the_picture_shows() -> None:
    memory, *_ = plots_of(latest_of(idle_hosts()))
    assert memory.in_words == (
        "Memory of one process with idle agents, MiB."
        " RSS MiB: 41 at 100, 50 at 1,000, 90 at 5,000, 140 at 10,000;"
        " slope 10.2 KiB for 1 agent more."
        " PSS MiB: 31 at 100, 40 at 1,000, 80 at 5,000, 130 at 10,000;"
        " slope 10.2 KiB for 1 agent more."
        " private MiB: 21 at 100, 30 at 1,000, 70 at 5,000, 120 at 10,000;"
        " slope 10.2 KiB for 1 agent more."
        " official 1.18.0: 12.7 MiB for each agent, a process."
    )


def test_there_is_a_line_for_each_kind_of_search() -> None:
    search = plots_of(latest_of(idle_hosts()))[2]
    assert [line.label for line in search.lines] == ["popular tag", "rare tag"]
    assert search.lines[1].values == pytest.approx((0.501, 0.51, 1.5))
    slopes = {search.slope_text(line) for line in search.lines}
    assert slopes == {"slope 1 µs for 1,000 agents more"}


def test_there_is_no_picture_without_figures(tmp_path: Path) -> None:
    assert not draw_all(Latest([], outcomes(())), tmp_path)
    one = Table("T", ("agents", "start s"), [(100, 1.0)])
    assert not draw_all(Latest([run("hosts", one)], outcomes(())), tmp_path)


def test_a_fit_goes_between_the_points() -> None:
    line = Line("s", (0, 1, 2), (0.0, 3.0, 3.0))
    assert line.fit == pytest.approx((1.5, 0.5))
