"""A suite runs its parts apart, so that one that fails costs no other's figures."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import pytest

from bench import saved
from bench.options import Options
from bench.report import Table
from bench.suite import Suite, run_here, show
from tests.bench.program import part
from tests.bench.samples import idle_hosts, run, target

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = (sys.executable, "-m", "tests.bench.program")


def suite(folder: Path, *names: str, limit_s: float = 60.0) -> Suite:
    parts = [part(name) for name in names]
    return Suite(parts, folder, (str(folder),), PROGRAM, limit_s)


def test_broken_parts_do_not_lose_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = list(suite(tmp_path, "breaks", "dies", "nonesuch", "works").runs())
    errors = {run.part: run.error for run in runs}
    assert errors == {
        "breaks": "ValueError: the hub gave a wrong result",
        "dies": "ended with status -9 without figures",
        "nonesuch": "ModuleNotFoundError: No module named 'tests.bench.nonesuch'",
        "works": "",
    }
    assert runs[-1].tables == [idle_hosts()]
    # All of it is kept, what failed as well.
    assert [saved.load(tmp_path, name) for name in errors] == runs
    progress = capfd.readouterr().err
    assert "part 1 of 4: breaks" in progress
    assert "part 4 of 4: works" in progress


def test_a_part_that_hangs_is_stopped(tmp_path: Path) -> None:
    (hung,) = suite(tmp_path, "hangs", limit_s=0.5).runs()
    assert hung.error == "ended with status -15 without figures"


def test_an_old_run_is_not_taken_for_the_new_one(tmp_path: Path) -> None:
    saved.save(tmp_path, run("dies", idle_hosts()))
    (died,) = suite(tmp_path, "dies").runs()
    assert died.error
    assert not died.tables


def test_a_part_runs_here_and_is_kept(tmp_path: Path) -> None:
    measured = run_here(part("works"), Options(), tmp_path)
    assert not measured.error
    assert measured.machine.cores > 0
    assert measured.machine.memory_gib > 0
    assert saved.load(tmp_path, "works") == measured


@pytest.mark.parametrize("figure", [math.inf, math.nan])
def test_figures_that_are_none_are_refused(figure: float) -> None:
    with pytest.raises(ValueError, match="is no figure, in table 'Times'"):
        saved.check([Table("Times", ("s",), [(figure,)])])
    with pytest.raises(ValueError, match="is no figure"):
        saved.check([Table("", (), [], targets=(target("rtt_ms", figure),))])


def test_a_key_without_a_goal_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    show(run("works", Table("T", ("s",), [(1.5,)], targets=(target("speed", 1.0),))))
    printed = capsys.readouterr()
    assert printed.err == "no goal has the key speed\n"
    assert "1.5" in printed.out
