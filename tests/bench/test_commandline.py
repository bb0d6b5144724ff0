"""``python -m bench`` says what it can do, and refuses the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.__main__ import main
from bench.options import PATTERNS, QUICK_WORKERS, Options
from bench.parts import BY_NAME
from bench.saved import PARTIAL, RESULTS

if TYPE_CHECKING:
    from collections.abc import Sequence


@pytest.mark.parametrize("argv", [("speed",), ("table", "speed"), ("hosts", "speed")])
def test_unknown_names_are_refused_with_the_list(
    argv: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("unknown benchmark speed; have hosts, ")
    assert all(name in error for name in (*BY_NAME, "table", "goals", "latest", "docs"))


def test_the_goals_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["goals", "--quick"]) == 0
    assert "| article's claim |" in capsys.readouterr().out


def test_what_is_no_full_run_is_kept_apart() -> None:
    assert Options().folder == RESULTS
    assert Options(quick=True).folder == PARTIAL
    assert Options(workers=(50,)).folder == PARTIAL


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (Options(), ()),
        (
            Options(quick=True, workers=QUICK_WORKERS, patterns=("mesh",)),
            ("--quick", "--pattern", "mesh", "--workers", "6,20"),
        ),
    ],
)
def test_options_have_a_command_line(options: Options, flags: Sequence[str]) -> None:
    assert options.flags == flags
    assert set(options.patterns) <= set(PATTERNS)
